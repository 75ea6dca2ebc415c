"""Accepting: the one door through which messages come in, whatever brought them."""

from continuitybridge.inbox.accept.rows import CHANNEL, Acceptance, Accepted, Lease, Mode, Source
from continuitybridge.inbox.accept.sync import accept, accept_into

__all__ = ["CHANNEL", "Acceptance", "Accepted", "Lease", "Mode", "Source", "accept", "accept_into"]
