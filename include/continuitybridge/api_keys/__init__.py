"""API keys: how programs sign in."""

from continuitybridge.api_keys.holder import Holder, Scope, current_holder, held
from continuitybridge.api_keys.verbs import (
    PREFIX,
    ApiKey,
    NewKey,
    create,
    list_keys,
    revoke,
    verify,
)

__all__ = [
    "PREFIX",
    "ApiKey",
    "Holder",
    "NewKey",
    "Scope",
    "create",
    "current_holder",
    "held",
    "list_keys",
    "revoke",
    "verify",
]
