"""Rows of `bridge.replies`: made outside of the transaction, written in the one that settles the message."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
from uuid6 import uuid7

from continuitybridge.engine.message import Failure, Message, Reply
from continuitybridge.engine.replies import explanation, gravest
from continuitybridge.errors import Skipped
from continuitybridge.flows.plan import Plan
from continuitybridge.inbox import payloads
from continuitybridge.vault.keyring import Cipher

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Prepared:
    """An answer, ready to be written. `place` is that of the part which gave it among the message's parts; None
    when nothing left the flow."""

    status: int | None = None
    code: str | None = None
    content: bytes | None = field(default=None, repr=False)
    place: list[int] | None = None


ACCEPTED = Prepared(202)
"""The message goes on, and there is no more to say: the answer that every accepted message gets."""


@dataclass(frozen=True, slots=True)
class Content:
    """What an answer's content holds: headers and body of a result, or what may be said of a failure."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    explanation: dict[str, Any] = field(default_factory=dict)


def prepared(keys: Cipher, organization_id: UUID, message_id: str, reply: Reply) -> Prepared:
    """The engine's answer, encrypted. `message_id` is the accepted message's."""
    place = None if reply.message_id is None else _place(message_id, reply.message_id)
    if reply.code is not None:
        return Prepared(code=reply.code, place=place)
    if not reply.body and not reply.headers and reply.message_id is None:
        return Prepared(reply.status)
    content = json.dumps({"headers": reply.headers}).encode() + b"\n" + reply.body
    return Prepared(reply.status, None, _encrypt(keys, organization_id, message_id, content), place)


def failed(keys: Cipher, organization_id: UUID, message_id: str, failures: Sequence[Failure]) -> Prepared | None:
    """The answer for a message with these final failures."""
    if not failures:
        return None
    failure = gravest(failures)
    told = explanation(failure)
    if not told:
        return Prepared(code=failure.code)
    content = json.dumps({"explanation": told}, default=str).encode() + b"\n"
    return Prepared(code=failure.code, content=_encrypt(keys, organization_id, message_id, content))


def releases_on_retry(plan: Plan | None, message: Message) -> bool:
    """Whether a caller who waits is let go when the message will be tried again, as its trigger says."""
    return _config(plan, message).get("on_retry") == "accept"


def answers_when_ended(plan: Plan | None, message: Message) -> bool:
    """Whether a result may be answered before it is on disk what became of the message: only where its trigger
    says so."""
    return _config(plan, message).get("when") == "ended"


def _config(plan: Plan | None, message: Message) -> dict[str, Any]:
    """The trigger's `result`."""
    if plan is None:
        return {}
    trigger = plan.nodes.get(message.vars.get("trigger") or next(iter(plan.triggers), ""))
    result = trigger.config.get("result") if trigger is not None else None
    return result if isinstance(result, dict) else {}


def open_content(keys: Cipher, organization_id: UUID, message_id: str, content: bytes | None) -> Content:
    """Raises `DecryptionFailed`."""
    if content is None:
        return Content()
    head, _, body = keys.decrypt(organization_id, payloads.REPLY, message_id, content).partition(b"\n")
    said = json.loads(head)
    return Content(said.get("headers", {}), body, said.get("explanation", {}))


def _encrypt(keys: Cipher, organization_id: UUID, message_id: str, content: bytes) -> bytes:
    return keys.encrypt(organization_id, payloads.REPLY, message_id, content)


def _place(message_id: str, part_id: str) -> list[int]:
    behind = part_id.removeprefix(message_id)
    return [int(number) for number in behind.split(".") if number.isdigit()]


# -- writing --------------------------------------------------------------------------------------------------

_INSERT = """
INSERT INTO bridge.replies (organization_id, message_id, reply_id, status, code, content, place, ready, replays)
SELECT %(organization)s, %(message)s, %(reply)s, %(status)s, %(code)s, %(content)b, %(place)s::int4[], %(ready)s,
       %(replays)s
"""
_UNLESS_ANSWERED = """
WHERE NOT EXISTS (SELECT FROM bridge.replies WHERE organization_id = %(organization)s AND message_id = %(message)s
                  AND ready AND replays = %(replays)s)
"""
# A part that gave nothing counts last.
_CHOOSE = """
UPDATE bridge.replies SET ready = true, replays = %(replays)s
WHERE organization_id = %(organization)s AND message_id = %(message)s AND reply_id = (
    SELECT reply_id FROM bridge.replies WHERE organization_id = %(organization)s AND message_id = %(message)s
    AND NOT ready ORDER BY place NULLS LAST, written_at DESC LIMIT 1)
"""
_FORGET_PARTS = """
DELETE FROM bridge.replies WHERE organization_id = %(organization)s AND message_id = %(message)s AND NOT ready
"""


def keep_part(
    connection: Connection, organization_id: UUID, message_id: str, replays: int, part: Prepared
) -> None:
    """What one part gave, while others are under way."""
    connection.execute(_INSERT, _parameters(organization_id, message_id, replays, part, ready=False))


def conclude(
    connection: Connection, organization_id: UUID, message_id: str, replays: int, last: Prepared | None
) -> None:
    """The message is done, `last` is what its last part gave: the first of what all gave is the answer."""
    last = last or ACCEPTED
    place = _parameters(organization_id, message_id, replays, last, ready=False)
    connection.execute(_INSERT, place)
    connection.execute(_CHOOSE, place)


def refuse(connection: Connection, organization_id: UUID, message_id: str, replays: int, answer: Prepared) -> None:
    """The message failed or was skipped; the first failure is the answer."""
    connection.execute(
        _INSERT + _UNLESS_ANSWERED, _parameters(organization_id, message_id, replays, answer, ready=True)
    )


def forget_parts(connection: Connection, organization_id: UUID, message_id: str) -> None:
    """The message begins anew."""
    connection.execute(_FORGET_PARTS, {"organization": organization_id, "message": message_id})


SKIPPED = Prepared(code=Skipped.code)


def _parameters(
    organization_id: UUID, message_id: str, replays: int, answer: Prepared, *, ready: bool
) -> dict[str, Any]:
    return {
        "organization": organization_id,
        "message": message_id,
        "reply": uuid7(),
        "status": answer.status,
        "code": answer.code,
        "content": answer.content,
        "place": answer.place,
        "ready": ready,
        "replays": replays,
    }
