"""Invitations: how somebody becomes a member who is none yet."""

from continuitybridge.invitations.verbs import (
    DAYS,
    MAX_A_DAY,
    Invitation,
    NewInvitation,
    accept,
    accept_all,
    find,
    get,
    invite,
    is_invited,
    list_invitations,
    revoke,
)

__all__ = [
    "DAYS",
    "MAX_A_DAY",
    "Invitation",
    "NewInvitation",
    "accept",
    "accept_all",
    "find",
    "get",
    "invite",
    "is_invited",
    "list_invitations",
    "revoke",
]
