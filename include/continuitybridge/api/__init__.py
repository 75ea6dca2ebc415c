"""The HTTP API under `/bridge`."""

from continuitybridge.api.app import PREFIX, create_app, mounts
from continuitybridge.api.gate import Authenticate, SignedIn

__all__ = ["PREFIX", "Authenticate", "SignedIn", "create_app", "mounts"]
