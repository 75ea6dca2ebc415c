"""Invitations: how somebody becomes a member who is none yet."""

from continuitybridge.invitations.verbs import (
    DAYS,
    MAX_A_DAY,
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
    "MAX_A_DAY",
    "Invitation",
    "NewInvitation",
    "accept",
    "find",
    "get",
    "invite",
    "list_invitations",
    "revoke",
]
