"""What is stored of a message's content, and how: ciphertext bound to organization, purpose and id."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from continuitybridge.engine.message import Message
from continuitybridge.vault.keyring import Cipher

PAYLOAD = "payload"
HEADERS = "headers"
HAND_OVER = "hand-over"
FAILURE = "failure"
REPLY = "reply"

_BYTES = "bytes"
_JSON = "json"


def encrypt_headers(
    keys: Cipher, organization_id: UUID, message_id: str, headers: Mapping[str, str]
) -> bytes | None:
    """Lower-cased names, as everywhere; None for none."""
    if not headers:
        return None
    text = json.dumps({name.lower(): value for name, value in headers.items()}).encode()
    return keys.encrypt(organization_id, HEADERS, message_id, text)


def decrypt_headers(
    keys: Cipher, organization_id: UUID, message_id: str, ciphertext: bytes | None
) -> dict[str, str]:
    if ciphertext is None:
        return {}
    headers: dict[str, str] = json.loads(keys.decrypt(organization_id, HEADERS, message_id, ciphertext))
    return headers


def encrypt_message(keys: Cipher, organization_id: UUID, place: str, message: Message) -> bytes:
    """A message between two stages. Raises `TypeError`, `ValueError` or `RecursionError` when body or vars are
    neither bytes nor the JSON data model."""
    # The standard library's JSON, because it gives back what it got: integers of any size, infinities and lone
    # surrogates included. Bodies that are bytes follow the head as they are.
    raw = message.body if isinstance(message.body, bytes) else json.dumps(message.body).encode()
    head = {
        "id": message.id,
        "headers": message.headers,
        "vars": message.vars,
        "kind": _BYTES if isinstance(message.body, bytes) else _JSON,
    }
    return keys.encrypt(organization_id, HAND_OVER, place, json.dumps(head).encode() + b"\n" + raw)


def decrypt_message(keys: Cipher, organization_id: UUID, place: str, ciphertext: bytes) -> Message:
    head_text, _, raw = keys.decrypt(organization_id, HAND_OVER, place, ciphertext).partition(b"\n")
    head: dict[str, Any] = json.loads(head_text)
    body = raw if head["kind"] == _BYTES else json.loads(raw)
    return Message(head["id"], body, head["headers"], head["vars"])


def hand_over_place(message_id: str, hand_over_id: UUID) -> str:
    """What a hand-over's ciphertext is bound to."""
    return f"{message_id}/{hand_over_id}"
