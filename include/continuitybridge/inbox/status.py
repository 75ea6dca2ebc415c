"""Where a message is and what happened to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.rows import class_row

from continuitybridge import database
from continuitybridge.errors import NotFound


@dataclass(frozen=True, slots=True)
class OpenPart:
    """A hand-over that is not done: at which node it goes on, and when it may. `waits_for` is the destination that
    turned it back, or, where it waits, a `group`, a `person` or a `flow` (`called_id` is the message that was
    called); `until` when at most."""

    child_id: str
    stage: str
    node_id: str
    state: str
    attempts: int
    available_at: datetime
    waits_for: str | None = None
    until: datetime | None = None
    called_id: str | None = None


@dataclass(frozen=True, slots=True)
class FailedTry:
    """One failure of the message; `final` when it was not tried again by itself."""

    failure_id: UUID
    child_id: str
    node_id: str | None
    node_type: str | None
    code: str
    verdict: str
    final: bool
    attempt: int
    at: datetime


@dataclass(frozen=True, slots=True)
class MessageStatus:
    """`state` is one of accepted, claimed, handed_over, waiting, dead (in triage), done, skipped, discarded.
    `trace` holds each node's counts and microseconds, and who skipped or replayed it. `waits_for` is the
    destination that turned the message back as a whole."""

    message_id: str
    environment: str
    flow: str
    version: str
    source: str
    endpoint: str | None
    state: str
    generation: int
    replays: int
    attempts: int
    size_bytes: int
    keys: dict[str, Any]
    trace: list[dict[str, Any]]
    batch_id: str | None
    run_id: str | None
    accepted_at: datetime
    available_at: datetime | None
    ended_at: datetime | None
    waits_for: str | None
    parts: list[OpenPart] = field(default_factory=list)
    failures: list[FailedTry] = field(default_factory=list)


_HOT = """
SELECT m.message_id, m.environment, m.flow, m.version, m.source, m.endpoint, m.state, m.generation, m.replays,
       m.attempts, m.size_bytes, m.keys, m.trace, m.batch_id, b.run_id, m.accepted_at, m.available_at,
       m.dead_at AS ended_at, m.waits_for
FROM bridge.messages m LEFT JOIN bridge.batches b USING (organization_id, batch_id)
WHERE m.organization_id = %(organization)s AND m.message_id = %(message)s
"""
_SETTLED = """
SELECT s.message_id, s.environment, s.flow, s.version, s.source, s.endpoint,
       CASE s.result WHEN 'dead' THEN 'discarded' ELSE s.result END AS state, s.generation, s.replays, s.attempts,
       s.size_bytes, s.keys, s.trace, s.batch_id, b.run_id, s.accepted_at, NULL::timestamptz AS available_at,
       s.settled_at AS ended_at, NULL::text AS waits_for
FROM bridge.settled_messages s LEFT JOIN bridge.batches b USING (organization_id, batch_id)
WHERE s.organization_id = %(organization)s AND s.message_id = %(message)s
ORDER BY s.settled_at DESC, s.replays DESC LIMIT 1
"""


def status(organization_id: UUID, message_id: str) -> MessageStatus:
    """One message of the organization, as the application role; raises `NotFound` for what is not there and for
    what is another's alike. Times are UTC."""
    place = {"organization": organization_id, "message": message_id}
    with database.tenant(organization_id) as connection:
        found = None
        # The hot table last: a message that is settled between two looks is then found by the third.
        for query in (_HOT, _SETTLED, _HOT):
            with connection.cursor(row_factory=class_row(MessageStatus)) as cursor:
                found = cursor.execute(query, place).fetchone()
            if found is not None:
                break
        if found is None:
            raise NotFound(f"no message {message_id}", message_id=message_id)
        with connection.cursor(row_factory=class_row(OpenPart)) as parts:
            parts.execute(
                "SELECT h.child_id, h.stage, h.node_id, h.state, h.attempts, h.available_at,"
                " coalesce(w.kind, h.waits_for) AS waits_for, coalesce(g.until, w.until) AS until, w.called_id"
                " FROM bridge.hand_overs h LEFT JOIN bridge.waits w USING (organization_id, hand_over_id)"
                " LEFT JOIN bridge.wait_groups g ON g.organization_id = w.organization_id"
                "  AND g.group_id = w.group_id"
                " WHERE h.organization_id = %(organization)s AND h.message_id = %(message)s"
                " ORDER BY h.hand_over_id",
                place,
            )
            found.parts.extend(parts)
        with connection.cursor(row_factory=class_row(FailedTry)) as failures:
            failures.execute(
                "SELECT failure_id, child_id, node_id, node_type, code, verdict, final, attempt, at"
                " FROM bridge.failures WHERE organization_id = %(organization)s AND message_id = %(message)s"
                " ORDER BY at, failure_id",
                place,
            )
            found.failures.extend(failures)
    return found
