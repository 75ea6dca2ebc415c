"""Invitations: how somebody becomes a member who is none yet."""

from continuitybridge.invitations.verbs import (
    DAYS,
    Invitation,
    NewInvitation,
    accept,
    find,
    get,
    invite,
    list_invitations,
    revoke,
)

__all__ = [
    "DAYS",
    "Invitation",
    "NewInvitation",
    "accept",
    "find",
    "get",
    "invite",
    "list_invitations",
    "revoke",
]
