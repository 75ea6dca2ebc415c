"""Large payloads: kept in the payload store, the database holds a reference in their place.

What is above `BRIDGE_PAYLOAD_OFFLOAD_BYTES` is encrypted under the organization's data key, bound to
organization and id as everything is, and stored under a key that begins with the organization's id. The
reference (key, hash and size) is encrypted and bound in the same way: moved to another row or organization,
neither opens.

Order of writing: a row in `payload_objects`, then the object, then whatever holds the reference, each committed
before the next. So an object is never unknown. Order of removing: an object goes when no message needs it, then
its row. A process that dies in between leaves an object that is removed an hour later.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

import orjson
from uuid6 import uuid7

from continuitybridge import database
from continuitybridge.inbox.objects import PayloadLost, open_store
from continuitybridge.settings import get_settings
from continuitybridge.vault.keyring import Cipher

Kind = Literal["message", "part"]
"""A message's own payload, kept as long as the message; or that of a part of one, needed until it is settled,
and as long as another message carries it on."""

REFERENCE = "payload-reference"
"""What a reference's ciphertext is for."""

_MARK = b"\x02"
"""Begins a reference. Ciphertext of the vault begins with another byte."""

GRACE_S = 3_600
"""An object that no committed row needs is given so long: its transaction may be under way."""
MESSAGE_CHECK_S = 86_400
PART_CHECK_S = 900
_CHUNK = 100


@dataclass(frozen=True, slots=True)
class Collected:
    """How many objects were looked at, and removed."""

    checked: int
    removed: int


def is_large(plaintext: bytes) -> bool:
    """Whether it goes to the payload store."""
    return len(plaintext) > get_settings().payload_offload_bytes


def is_reference(stored: bytes) -> bool:
    """Whether the payload itself stands in the payload store."""
    return stored[:1] == _MARK


def seal(
    keys: Cipher, organization_id: UUID, purpose: str, id: str, plaintext: bytes, *, message_id: str, kind: Kind
) -> bytes:
    """What to keep in the database of a payload: its ciphertext, or a reference when it is large; the object is
    stored then. Call it before the transaction that writes the result. Raises `Unavailable`."""
    if not is_large(plaintext):
        return keys.encrypt(organization_id, purpose, id, plaintext)
    object_id = uuid7()
    key = f"{organization_id}/{datetime.now(UTC):%Y/%m/%d}/{object_id}"
    ciphertext = keys.encrypt(organization_id, purpose, id, plaintext)
    with database.tenant(organization_id) as connection:
        connection.execute(
            "INSERT INTO bridge.payload_objects (organization_id, object_id, message_id, kind, key, size_bytes,"
            " due_at) VALUES (%s, %s, %s, %s, %s, %s, now() + make_interval(secs => %s))",
            (organization_id, object_id, message_id, kind, key, len(ciphertext), GRACE_S),
        )
    open_store().put(key, ciphertext)
    reference = {"key": key, "sha256": hashlib.sha256(ciphertext).hexdigest(), "size": len(ciphertext)}
    return _MARK + keys.encrypt(organization_id, REFERENCE, f"{purpose}/{id}", orjson.dumps(reference))


def unseal(keys: Cipher, organization_id: UUID, purpose: str, id: str, stored: bytes) -> bytes:
    """The payload of which `seal` gave `stored`. Raises `DecryptionFailed`; `PayloadLost` when the object is gone
    or is not the one that was stored; `Unavailable` when the payload store does not answer."""
    if not is_reference(stored):
        return keys.decrypt(organization_id, purpose, id, stored)
    reference = orjson.loads(keys.decrypt(organization_id, REFERENCE, f"{purpose}/{id}", stored[1:]))
    key = reference["key"]
    if not key.startswith(f"{organization_id}/"):
        raise PayloadLost("the reference leads out of the organization's part of the payload store", key=key)
    ciphertext = open_store().get(key)
    if hashlib.sha256(ciphertext).hexdigest() != reference["sha256"]:
        raise PayloadLost(
            "the payload store holds something else than what was stored", key=key, size=len(ciphertext)
        )
    return keys.decrypt(organization_id, purpose, id, ciphertext)


def check_reference(keys: Cipher, organization_id: UUID, purpose: str, id: str, stored: bytes) -> None:
    """Open a reference without what it leads to; raises `DecryptionFailed`."""
    keys.decrypt(organization_id, REFERENCE, f"{purpose}/{id}", stored[1:])


_LOOK = """
SELECT o.organization_id, o.object_id, o.key,
       EXISTS (SELECT FROM bridge.messages m
               WHERE m.organization_id = o.organization_id AND m.message_id = o.message_id)
       OR (o.kind = 'part'
           AND EXISTS (SELECT FROM bridge.wait_parts p
                       WHERE p.organization_id = o.organization_id AND p.origin_id = o.message_id))
       OR (o.kind = 'message'
           AND EXISTS (SELECT FROM bridge.settled_messages s
                       WHERE s.organization_id = o.organization_id AND s.message_id = o.message_id)) AS needed
FROM bridge.payload_objects o
WHERE o.created_at <= now() - make_interval(secs => %(grace)s) AND {which}
ORDER BY {order} LIMIT %(chunk)s FOR UPDATE OF o SKIP LOCKED
"""
_DUE = _LOOK.format(which="o.due_at <= now()", order="o.due_at")
_ALL = _LOOK.format(
    which="(o.organization_id, o.object_id) > (%(organization)s, %(object)s)",
    order="o.organization_id, o.object_id",
)


def collect(*, everything: bool = False, limit: int = 1_000) -> Collected:
    """Remove objects that no message needs any more: of messages that retention dropped, of parts whose message is
    settled, of transactions that never came to their end. Looks at those that are due, up to `limit`; with
    `everything` at all that are older than an hour, as after dropping partitions.

    Any number may run at once. A crash leaves an object removed and its row there, which the next run removes.
    Raises `Unavailable` when the database or the payload store does not answer.
    """
    checked = removed = 0
    place = {"grace": GRACE_S, "chunk": _CHUNK, "organization": UUID(int=0), "object": UUID(int=0)}
    while everything or checked < limit:
        with database.relay() as connection:
            rows = connection.execute(_ALL if everything else _DUE, place).fetchall()
            gone = [row for row in rows if not row[3]]
            if gone:
                open_store().delete([row[2] for row in gone])
                connection.execute(
                    "DELETE FROM bridge.payload_objects o USING unnest(%s::uuid[], %s::uuid[])"
                    " AS g (organization_id, object_id)"
                    " WHERE o.organization_id = g.organization_id AND o.object_id = g.object_id",
                    ([row[0] for row in gone], [row[1] for row in gone]),
                )
            needed = [row for row in rows if row[3]]
            connection.execute(
                "UPDATE bridge.payload_objects o"
                " SET due_at = now() + make_interval(secs => CASE o.kind WHEN 'part' THEN %s ELSE %s END)"
                " FROM unnest(%s::uuid[], %s::uuid[]) AS n (organization_id, object_id)"
                " WHERE o.organization_id = n.organization_id AND o.object_id = n.object_id",
                (PART_CHECK_S, MESSAGE_CHECK_S, [row[0] for row in needed], [row[1] for row in needed]),
            )
        checked += len(rows)
        removed += len(gone)
        if len(rows) < _CHUNK:
            break
        place |= {"organization": rows[-1][0], "object": rows[-1][1]}
    return Collected(checked, removed)
