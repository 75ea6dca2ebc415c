"""Units of work that a destination turned back: it was paused, or its circuit open. Each names what it waits for
in `waits_for`, and comes back by itself when its time has come; these verbs make that now, or never."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from continuitybridge import database
from continuitybridge.inbox import units
from continuitybridge.inbox.accept import CHANNEL
from continuitybridge.inbox.replies import Notices

Connection = psycopg.Connection[Any]

CHUNK = 2_000
"""Units per transaction."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many units wait for a destination."""

    environment: str
    destination: str
    units: int


_WAKE = """
UPDATE {table} u SET available_at = now(), waits_for = NULL
FROM (SELECT organization_id, {id} FROM {table}
      WHERE organization_id = %(organization)s AND environment = %(environment)s AND waits_for = %(destination)s
        AND state = {state} LIMIT %(limit)s FOR UPDATE SKIP LOCKED) AS w
WHERE u.organization_id = w.organization_id AND u.{id} = w.{id}
RETURNING u.flow
"""
_WAKE_MESSAGES = _WAKE.format(table="bridge.messages", id="message_id", state="'accepted'")
_WAKE_HAND_OVERS = _WAKE.format(table="bridge.hand_overs", id="hand_over_id", state="'available'")

# Safe while nobody says that the destination is closed: what is said is in the table before a message is turned
# back for it.
_FORGOTTEN = """
SELECT DISTINCT organization_id, environment, waits_for FROM {table} u
WHERE waits_for IS NOT NULL AND state = {state} AND available_at > now()
  AND NOT EXISTS (
      SELECT FROM bridge.destinations d
      WHERE d.organization_id = u.organization_id AND d.environment = u.environment AND d.name = u.waits_for
        AND (d.status = 'paused' OR d.openings > 0))
"""
_ALL_FORGOTTEN = (
    _FORGOTTEN.format(table="bridge.messages", state="'accepted'")
    + " UNION "
    + _FORGOTTEN.format(table="bridge.hand_overs", state="'available'")
)


def wake(organization_id: UUID, environment: str, destination: str) -> int:
    """Make available at once what waits for the destination; returns how many units. As the application role of
    the organization, in transactions of some thousand units; what a worker holds is left alone."""
    place = {"organization": organization_id, "environment": environment, "destination": destination}
    woken = 0
    while True:
        with database.tenant(organization_id) as connection:
            flows = [row[0] for row in connection.execute(_WAKE_MESSAGES, {**place, "limit": CHUNK})]
            flows += [row[0] for row in connection.execute(_WAKE_HAND_OVERS, {**place, "limit": CHUNK})]
            _notify(connection, organization_id, environment, flows)
        woken += len(flows)
        if len(flows) < CHUNK:
            return woken


def wake_forgotten() -> int:
    """For the sweep: wake what waits for a destination that is neither paused nor has its circuit open or probing
    (it was resumed while the unit was being turned back). Returns how many units."""
    with database.relay() as connection:
        places = connection.execute(_ALL_FORGOTTEN).fetchall()
    return sum(wake(*place) for place in places)


def count(organization_id: UUID) -> list[Waiting]:
    """How many units of the organization wait for what."""
    with database.tenant(organization_id) as connection:
        rows = connection.execute(
            "SELECT environment, waits_for, count(*) FROM ("
            "  SELECT environment, waits_for FROM bridge.messages WHERE organization_id = %(organization)s"
            "  AND waits_for IS NOT NULL AND state = 'accepted' UNION ALL"
            "  SELECT environment, waits_for FROM bridge.hand_overs WHERE organization_id = %(organization)s"
            "  AND waits_for IS NOT NULL AND state = 'available') AS w"
            " GROUP BY environment, waits_for ORDER BY environment, waits_for",
            {"organization": organization_id},
        ).fetchall()
    return [Waiting(*row) for row in rows]


def skip(organization_id: UUID, environment: str, destination: str, *, by: str, reason: str = "") -> int:
    """Settle as skipped what waits for the destination; returns how many units. As the application role, in
    transactions of some hundred messages. The other parts of such a message go on; it is settled, as skipped, when
    nothing of it is left. Who and why is noted in its trace."""
    note = Jsonb([{"skipped_by": by, "reason": reason, "destination": destination}])
    place = {"organization": organization_id, "environment": environment, "destination": destination}
    skipped = 0
    while True:
        notices = Notices()
        with database.tenant(organization_id, after=notices) as connection:
            messages = connection.execute(
                "SELECT message_id FROM bridge.messages WHERE organization_id = %(organization)s"
                " AND environment = %(environment)s AND waits_for = %(destination)s AND state = 'accepted'"
                " ORDER BY message_id LIMIT 200 FOR UPDATE SKIP LOCKED",
                place,
            ).fetchall()
            for (message_id,) in messages:
                units.append_trace(connection, organization_id, message_id, note)
                units.move_to_settled(connection, organization_id, message_id, "skipped", notices=notices)
            parts = connection.execute(
                "SELECT DISTINCT message_id FROM bridge.hand_overs WHERE organization_id = %(organization)s"
                " AND environment = %(environment)s AND waits_for = %(destination)s AND state = 'available'"
                " ORDER BY message_id LIMIT 200",
                place,
            ).fetchall()
            for (message_id,) in parts:
                skipped += _skip_parts(connection, {**place, "message": message_id, "note": note}, notices)
        skipped += len(messages)
        if not messages and not parts:
            return skipped


def _skip_parts(connection: Connection, place: dict[str, Any], notices: Notices) -> int:
    if not units.lock(connection, place["organization"], place["message"]):
        return 0
    skipped = connection.execute(
        "UPDATE bridge.hand_overs SET state = 'skipped', epoch = epoch + 1, waits_for = NULL"
        " WHERE organization_id = %(organization)s AND message_id = %(message)s"
        " AND waits_for = %(destination)s AND state = 'available'",
        place,
    ).rowcount
    if skipped:
        units.append_trace(connection, place["organization"], place["message"], place["note"])
        units.conclude(connection, place["organization"], place["message"], notices=notices)
    return skipped


def _notify(connection: Connection, organization_id: UUID, environment: str, flows: Sequence[str]) -> None:
    connection.execute(
        "SELECT pg_notify(%s, payload) FROM unnest(%s::text[]) AS t (payload)",
        (CHANNEL, sorted({f"{organization_id}/{environment}/{flow}" for flow in flows})),
    )
