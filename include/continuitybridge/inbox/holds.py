"""Holding a flow: paused, nothing of it is claimed while accepting goes on; draining, it takes nothing new and
finishes what is there; cancelled, what is there is settled as skipped.

A person's hold and Airflow's pause button stand beside each other: a flow runs when neither holds it. Every claim
looks at the table, so that a hold is obeyed from its commit on. What a worker has claimed by then, it ends.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from continuitybridge import database
from continuitybridge.audit import record
from continuitybridge.errors import NotFound, Unavailable
from continuitybridge.inbox import units
from continuitybridge.inbox.accept import CHANNEL as ACCEPTED
from continuitybridge.inbox.replies import Notices

Connection = psycopg.Connection[Any]

CHANNEL = "bridge_holds"
"""NOTIFY channel; the payload is `<organization_id>/<environment>`: what is held or drained there changed."""

Kind = Literal["pause", "drain"]
Origin = Literal["bridge", "airflow"]

AIRFLOWS_PAUSE = "airflow"
"""Who paused, of a pause that mirrors Airflow's button."""
DRAIN_RETRY_S = 60.0
"""When a sender that met a draining flow is asked to come back."""
MAX_REASON_LENGTH = 500
CHUNK = 500
"""Messages settled per transaction."""


class Draining(Unavailable):
    """The flow takes no new messages, and what it has goes on; facts: `flow`, `retry_after_s`."""

    code = "draining"
    title = "The flow takes no new messages for now"


@dataclass(frozen=True, slots=True)
class Hold:
    """That a flow is held. `origin`: a person's (`bridge`), or Airflow's pause button. `unsettled` counts its
    messages that are not settled and not in triage: 0 of a draining flow means that it is empty."""

    environment: str
    flow: str
    origin: str
    kind: str
    by: str
    reason: str
    since: datetime
    unsettled: int


@dataclass(frozen=True, slots=True)
class Cancelled:
    """What a cancel did. `left` says that its limit was reached before the end: call it again."""

    messages: int
    left: bool


_LIST = """
SELECT h.environment, h.flow, h.origin, h.kind, h.by, h.reason, h.since,
       (SELECT count(*) FROM bridge.messages m
        WHERE m.organization_id = h.organization_id AND m.environment = h.environment AND m.flow = h.flow
          AND m.state <> 'dead') AS unsettled
FROM bridge.flow_holds h WHERE h.organization_id = %(organization)s
  AND (%(environment)s::text IS NULL OR h.environment = %(environment)s)
  AND (%(flow)s::text IS NULL OR h.flow = %(flow)s)
ORDER BY h.environment, h.flow, h.origin
"""


def hold(
    organization_id: UUID, environment: str, flow: str, kind: Kind, *, by: str, reason: str = ""
) -> list[Hold]:
    """Pause or drain a deployed flow; one replaces the other. Returns its holds. Raises `NotFound`."""
    with database.tenant(organization_id) as connection:
        _check_deployed(connection, organization_id, environment, flow)
        connection.execute(
            "INSERT INTO bridge.flow_holds (organization_id, environment, flow, kind, by, reason)"
            " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (organization_id, environment, flow, origin) DO UPDATE"
            " SET kind = excluded.kind, by = excluded.by, reason = excluded.reason,"
            " since = CASE WHEN flow_holds.kind = excluded.kind THEN flow_holds.since ELSE now() END",
            (organization_id, environment, flow, kind, by, reason[:MAX_REASON_LENGTH]),
        )
        _tell(connection, organization_id, environment, flow)
        action = "flow.paused" if kind == "pause" else "flow.drained"
        record(connection, organization_id, action, flow, environment=environment, by=by)
    return list_holds(organization_id, environment, flow)


def resume(organization_id: UUID, environment: str, flow: str) -> list[Hold]:
    """End a person's pause or drain: what waited goes on at once. Returns what still holds the flow, which may be
    Airflow's pause. Raises `NotFound` for a flow that is not deployed."""
    with database.tenant(organization_id) as connection:
        _check_deployed(connection, organization_id, environment, flow)
        connection.execute(
            "DELETE FROM bridge.flow_holds WHERE organization_id = %s AND environment = %s AND flow = %s"
            " AND origin = 'bridge'",
            (organization_id, environment, flow),
        )
        _tell(connection, organization_id, environment, flow)
        record(connection, organization_id, "flow.resumed", flow, environment=environment)
    return list_holds(organization_id, environment, flow)


def list_holds(organization_id: UUID, environment: str | None = None, flow: str | None = None) -> list[Hold]:
    """What is held, by environment and flow."""
    with (
        database.tenant(organization_id) as connection,
        connection.cursor(row_factory=class_row(Hold)) as cursor,
    ):
        cursor.execute(_LIST, {"organization": organization_id, "environment": environment, "flow": flow})
        return cursor.fetchall()


def mirror_airflow(paused: Collection[tuple[UUID, str, str]]) -> int:
    """Make the pauses of origin `airflow` exactly these flows (organization, environment, flow); returns how many
    changed. As the relay role, for the process that watches Airflow. What is not deployed is passed over."""
    wanted = {
        "organizations": [key[0] for key in paused],
        "environments": [key[1] for key in paused],
        "flows": [key[2] for key in paused],
    }
    with database.relay() as connection:
        changed = connection.execute(
            "DELETE FROM bridge.flow_holds h WHERE h.origin = 'airflow' AND NOT EXISTS ("
            "  SELECT FROM unnest(%(organizations)s::uuid[], %(environments)s::text[], %(flows)s::text[])"
            "   AS w (organization_id, environment, flow)"
            "  WHERE (w.organization_id, w.environment, w.flow) = (h.organization_id, h.environment, h.flow))"
            " RETURNING h.organization_id, h.environment, h.flow",
            wanted,
        ).fetchall()
        changed += connection.execute(
            "INSERT INTO bridge.flow_holds (organization_id, environment, flow, origin, kind, by, reason)"
            " SELECT organization_id, environment, flow, 'airflow', 'pause', %(by)s, 'the DAG is paused'"
            " FROM unnest(%(organizations)s::uuid[], %(environments)s::text[], %(flows)s::text[])"
            "  AS w (organization_id, environment, flow)"
            " JOIN bridge.deployments USING (organization_id, environment, flow)"
            " ON CONFLICT (organization_id, environment, flow, origin) DO NOTHING"
            " RETURNING organization_id, environment, flow",
            {**wanted, "by": AIRFLOWS_PAUSE},
        ).fetchall()
        for organization_id, environment, flow in changed:
            _tell(connection, organization_id, environment, flow)
    return len(changed)


def check_taking(organization_id: UUID, environment: str, flow: str, version: str) -> None:
    """Raise `Draining` when the flow takes no new messages: it drains, or a destination of that version does. For
    sources that make messages; intake knows by itself. As the relay role."""
    with database.relay() as connection:
        [(why,)] = connection.execute(
            "SELECT bridge.draining(%s, %s, %s, %s)", (organization_id, environment, flow, version)
        )
    if why is not None:
        raise Draining(f"{why}: it takes no new messages", flow=flow, retry_after_s=DRAIN_RETRY_S)


def cancel(
    organization_id: UUID, environment: str, flow: str, *, by: str, reason: str = "", limit: int = 20_000
) -> Cancelled:
    """Settle as skipped what the flow has not settled and what is not in triage, whoever holds it, up to `limit`
    messages; who and why stands in each one's trace. Messages accepted after this began are left alone.

    A holder's settlement is refused afterwards; what it has sent by then is sent. As the application role, in
    transactions of some hundred messages: a crash leaves some cancelled and the others as they were. Raises
    `NotFound` for a flow that never was deployed there.
    """
    note = Jsonb([{"skipped_by": by, "reason": reason[:MAX_REASON_LENGTH]}])
    cancelled = 0
    with database.tenant(organization_id) as connection:
        _check_deployed(connection, organization_id, environment, flow, removed=True)
        [(began,)] = connection.execute("SELECT clock_timestamp()")
        record(connection, organization_id, "flow.cancelled", flow, environment=environment, by=by)
    while True:
        notices = Notices()
        with database.tenant(organization_id, after=notices) as connection:
            rows = connection.execute(
                "SELECT message_id FROM bridge.messages WHERE organization_id = %s AND environment = %s"
                " AND flow = %s AND state <> 'dead' AND accepted_at <= %s ORDER BY message_id LIMIT %s FOR UPDATE",
                (organization_id, environment, flow, began, min(CHUNK, limit - cancelled)),
            ).fetchall()
            for (message_id,) in rows:
                units.append_trace(connection, organization_id, message_id, note)
                units.move_to_settled(connection, organization_id, message_id, "skipped", notices=notices)
        cancelled += len(rows)
        if len(rows) < CHUNK:
            return Cancelled(cancelled, left=cancelled >= limit)
        if cancelled >= limit:
            return Cancelled(cancelled, left=True)


def notify(connection: Connection, organization_id: UUID, environment: str) -> None:
    """Tell that what is held or drained there changed, at the caller's commit."""
    connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, f"{organization_id}/{environment}"))


def drains_may_differ(connection: Connection, organization_id: UUID, environment: str) -> None:
    """A flow is deployed there in another version, or no more: while something is drained, flows that call it may
    take messages now that took none, or no more. Tells so at the caller's commit."""
    connection.execute(
        "SELECT pg_notify(%s, %s) WHERE EXISTS (SELECT FROM bridge.flow_holds"
        " WHERE organization_id = %s AND environment = %s AND kind = 'drain') OR EXISTS (SELECT FROM"
        " bridge.destinations WHERE organization_id = %s AND environment = %s AND status = 'draining')",
        (CHANNEL, f"{organization_id}/{environment}", *(organization_id, environment) * 2),
    )


def _tell(connection: Connection, organization_id: UUID, environment: str, flow: str) -> None:
    notify(connection, organization_id, environment)
    # Whoever waits for messages looks again.
    connection.execute("SELECT pg_notify(%s, %s)", (ACCEPTED, f"{organization_id}/{environment}/{flow}"))


def _check_deployed(
    connection: Connection, organization_id: UUID, environment: str, flow: str, *, removed: bool = False
) -> None:
    known = connection.execute(
        "SELECT 1 FROM bridge.deployments WHERE organization_id = %s AND environment = %s AND flow = %s"
        " AND (%s OR status <> 'removed')",
        (organization_id, environment, flow, removed),
    ).fetchone()
    if known is None:
        raise NotFound(f"flow {flow!r} is not deployed in {environment}", field="flow", value=flow)
