"""What is stored of a message's content, and how: ciphertext bound to organization, purpose and id; of what is
large, a reference to it (see `offload`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import orjson

from continuitybridge.engine.message import Message, Resume
from continuitybridge.inbox import offload
from continuitybridge.vault.keyring import Cipher

PAYLOAD = "payload"
HEADERS = "headers"
HAND_OVER = "hand-over"
FAILURE = "failure"
REPLY = "reply"

_BYTES = "bytes"
_JSON = "json"


def seal_body(keys: Cipher, organization_id: UUID, message_id: str, body: bytes) -> bytes:
    """What to keep of an accepted message's body. Call it before the transaction that writes it. Raises
    `Unavailable` when the body is large and cannot be stored."""
    return offload.seal(keys, organization_id, PAYLOAD, message_id, body, message_id=message_id, kind="message")


def open_body(keys: Cipher, organization_id: UUID, message_id: str, stored: bytes) -> bytes:
    """The body of which `seal_body` gave `stored`; raises as `offload.unseal`."""
    return offload.unseal(keys, organization_id, PAYLOAD, message_id, stored)


def encrypt_headers(
    keys: Cipher, organization_id: UUID, message_id: str, headers: Mapping[str, str]
) -> bytes | None:
    """Lower-cased names, as everywhere; None for none."""
    if not headers:
        return None
    lowered = {name.lower(): value for name, value in headers.items()}
    try:
        text = orjson.dumps(lowered)
    except TypeError:
        # Lone surrogates, which the standard library takes.
        text = json.dumps(lowered).encode()
    return keys.encrypt(organization_id, HEADERS, message_id, text)


def decrypt_headers(
    keys: Cipher, organization_id: UUID, message_id: str, ciphertext: bytes | None
) -> dict[str, str]:
    if ciphertext is None:
        return {}
    headers: dict[str, str] = orjson.loads(keys.decrypt(organization_id, HEADERS, message_id, ciphertext))
    return headers


def encrypt_message(keys: Cipher, organization_id: UUID, place: str, message: Message) -> bytes:
    """A message between two stages, for the `hand_over_place` where it is kept. Raises `TypeError`, `ValueError`
    or `RecursionError` when body or vars are neither bytes nor the JSON data model, `Unavailable` when it is
    large and cannot be stored."""
    # The standard library's JSON, because it gives back what it got: integers of any size, infinities and lone
    # surrogates included. Bodies that are bytes follow the head as they are.
    raw = message.body if isinstance(message.body, bytes) else json.dumps(message.body).encode()
    head: dict[str, Any] = {
        "id": message.id,
        "headers": message.headers,
        "vars": message.vars,
        "kind": _BYTES if isinstance(message.body, bytes) else _JSON,
    }
    if message.resume is not None:
        head["resume"] = [message.resume.how, dict(message.resume.facts)]
    content = json.dumps(head).encode() + b"\n" + raw
    message_id = place.rpartition("/")[0]
    return offload.seal(keys, organization_id, HAND_OVER, place, content, message_id=message_id, kind="part")


def decrypt_message(keys: Cipher, organization_id: UUID, place: str, stored: bytes) -> Message:
    """What `encrypt_message` gave; raises as `offload.unseal`."""
    return read_message(offload.unseal(keys, organization_id, HAND_OVER, place, stored))


def read_message(content: bytes) -> Message:
    """A message of the text that stands for it in a hand-over."""
    head_text, _, raw = content.partition(b"\n")
    head: dict[str, Any] = json.loads(head_text)
    body = raw if head["kind"] == _BYTES else json.loads(raw)
    resume = Resume(*head["resume"]) if "resume" in head else None
    return Message(head["id"], body, head["headers"], head["vars"], resume=resume)


def hand_over_place(message_id: str, hand_over_id: UUID) -> str:
    """What a hand-over's ciphertext is bound to."""
    return f"{message_id}/{hand_over_id}"
