"""The chain of an organization's events: what its hashes are of, and finding the first that does not hold.

Each event's hash is SHA-256 over the hash before it and its own fields, each behind its length (four bytes, big
endian; -1 for null), in the order of `FIELDS`; times in microseconds since the epoch. The database takes it when
an event is written; here it is taken again, so that either can be checked by the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg

from continuitybridge import database

TAG = b"bridge-audit-1"
FIELDS = (
    *("tag", "previous_hash", "organization_id", "seq", "event_id", "at", "action", "target", "environment"),
    *("actor_kind", "subject_id", "personal", "details"),
)
CHUNK = 5_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_READ = """
SELECT seq, event_id, at, action, target, environment, actor_kind, subject_id, personal, details::text,
       previous_hash, hash
FROM bridge.audit_events WHERE organization_id = %s AND seq > %s AND seq <= %s ORDER BY seq LIMIT %s
"""
# As one moment sees it: what is appended while the rest is read is for the next time.
_END = """
SELECT coalesce(c.seq, 0), coalesce(c.hash, ''), coalesce(e.seq, 0)
FROM (SELECT max(seq) AS seq FROM bridge.audit_events WHERE organization_id = %(organization)s) e
LEFT JOIN bridge.audit_chains c ON c.organization_id = %(organization)s
"""


@dataclass(frozen=True, slots=True)
class Link:
    """An event as the chain sees it."""

    seq: int
    event_id: UUID
    at: datetime
    action: str
    target: str
    environment: str | None
    actor_kind: str
    subject_id: UUID | None
    personal: bytes | None
    details: str
    previous_hash: bytes
    hash: bytes

    def expected_hash(self, organization_id: UUID, previous_hash: bytes) -> bytes:
        """What the hash must be behind that one."""
        micros = (self.at - _EPOCH) // timedelta(microseconds=1)
        fields = (
            TAG,
            previous_hash,
            organization_id.bytes,
            self.seq.to_bytes(8, "big"),
            self.event_id.bytes,
            micros.to_bytes(8, "big", signed=True),
            self.action.encode(),
            self.target.encode(),
            None if self.environment is None else self.environment.encode(),
            self.actor_kind.encode(),
            None if self.subject_id is None else self.subject_id.bytes,
            self.personal,
            self.details.encode(),
        )
        return hashlib.sha256(b"".join(map(_framed, fields))).digest()


@dataclass(frozen=True, slots=True)
class Fault:
    """Where a chain does not hold: the first event that is wrong, or after which something is missing, and how."""

    organization_id: UUID
    seq: int
    event_id: UUID | None
    problem: str


@dataclass(frozen=True, slots=True)
class Mark:
    """What a chain was at some time: its event `seq` had this hash."""

    seq: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Verified:
    """How far a chain holds: to its end when there is no fault."""

    organization_id: UUID
    events: int
    hash: bytes
    fault: Fault | None


def verify(organization_id: UUID, marks: Iterable[Mark] = ()) -> Verified:
    """Check an organization's whole chain, and that it still is what it was at each mark. Reads it in chunks, so
    that memory does not grow with it."""
    expected = {mark.seq: mark.hash for mark in marks}
    with database.tenant(organization_id) as connection:
        [(written, end, newest)] = connection.execute(_END, {"organization": organization_id}).fetchall()
        seq, last = 0, b""

        def fault(at: int, link: Link | None, problem: str) -> Verified:
            event_id = None if link is None else link.event_id
            return Verified(organization_id, seq, last, Fault(organization_id, at, event_id, problem))

        for link in _links(connection, organization_id, max(written, newest)):
            if link.seq != seq + 1:
                return fault(seq + 1, None, f"event {seq + 1} is missing: event {link.seq} follows")
            if link.previous_hash != last:
                return fault(link.seq, link, "it does not follow the event before it")
            if link.expected_hash(organization_id, last) != link.hash:
                return fault(link.seq, link, "it was changed after it was written")
            if expected.get(link.seq, link.hash) != link.hash:
                return fault(link.seq, link, "it is not the event that stood here at a checkpoint")
            seq, last = link.seq, link.hash
    for mark in sorted(expected):
        if mark > seq:
            return fault(seq + 1, None, f"the trail ends here; at a checkpoint it had {mark} events")
    if seq < written:
        return fault(seq + 1, None, f"the trail ends here; {written} events were written")
    if (seq, last) != (written, end):
        return fault(written + 1, None, f"{written} events were written; here are more, or others")
    return Verified(organization_id, seq, last, None)


def _links(connection: psycopg.Connection[Any], organization_id: UUID, last: int = 2**62) -> Iterator[Link]:
    after = -(2**62)
    while True:
        rows = connection.execute(_READ, (organization_id, after, last, CHUNK)).fetchall()
        for row in rows:
            yield Link(*row)
        if len(rows) < CHUNK:
            return
        after = rows[-1][0]


def _framed(field: bytes | None) -> bytes:
    if field is None:
        return (-1).to_bytes(4, "big", signed=True)
    return len(field).to_bytes(4, "big") + field
