"""Tokens by which whoever sent a message may see where it is, without an account.

A token is a capability: it holds for one message of one organization, and says nothing but which organization's
key to check it with. It is made from the organization's data key (no table), so it holds as long as the message is
kept, and through rotations of the key.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from uuid import UUID

from continuitybridge.errors import NotFound
from continuitybridge.vault.keyring import Cipher

MAX_TOKEN_CHARACTERS = 100
_UUID_BYTES = 16
_MARK_BYTES = 36


def token(keys: Cipher, organization_id: UUID, message_id: str) -> str:
    """Raises `NotFound` when the organization has no data key here."""
    mark = keys.fingerprint(organization_id, _marked(message_id))
    return urlsafe_b64encode(organization_id.bytes + mark).decode().rstrip("=")


def organization_of(keys: Cipher, given: str, message_id: str) -> UUID | None:
    """The organization whose message the token is for; None for a token that is none, or another message's."""
    if len(given) > MAX_TOKEN_CHARACTERS:
        return None
    try:
        raw = urlsafe_b64decode(given + "=" * (-len(given) % 4))
    except (binascii.Error, ValueError):
        return None
    if len(raw) != _UUID_BYTES + _MARK_BYTES:
        return None
    organization_id = UUID(bytes=raw[:_UUID_BYTES])
    try:
        holds = keys.matches(organization_id, _marked(message_id), raw[_UUID_BYTES:])
    except NotFound:
        return None
    return organization_id if holds else None


def _marked(message_id: str) -> bytes:
    # No payload's fingerprint, which is made with the same key, can be a token: they are never shown.
    return b"where is message " + message_id.encode()
