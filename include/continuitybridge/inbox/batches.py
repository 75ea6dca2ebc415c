"""Batches: one run of a flow's DAG over many messages.

A dispatcher commits the batch with its messages, then starts the run `bridge__{batch id}`; if it dies in between,
`unstarted` names the batch again and a second start meets "exists already". Runs that begin elsewhere (Airflow's
UI, its REST API, a schedule) adopt: their first task makes the batch under Airflow's ids.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg.rows import class_row
from uuid6 import uuid7

from continuitybridge import database
from continuitybridge.errors import AllowanceExhausted, NotFound
from continuitybridge.inbox import allowance
from continuitybridge.inbox.accept import Acceptance, Accepted, accept_into
from continuitybridge.inbox.ordering import BEGUN, EARLIER, PUT_BEHIND
from continuitybridge.inbox.pauses import NOT_PAUSED
from continuitybridge.settings import get_settings
from continuitybridge.vault.keyring import Cipher

RUN_ID_PREFIX = "bridge__"

Status = Literal["created", "started", "settled", "abandoned"]
FlowKey = tuple[UUID, str, str]
"""Organization, environment, flow."""


@dataclass(frozen=True, slots=True)
class Batch:
    """`messages` is how many were put into it; `first_stage` the stage where new messages of its flow version
    begin (None when the version is not on record)."""

    organization_id: UUID
    batch_id: str
    environment: str
    flow: str
    version: str
    dag_id: str
    run_id: str
    status: Status
    messages: int
    first_stage: str | None


_COLUMNS = """
    b.organization_id, b.batch_id, b.environment, b.flow, b.version, b.dag_id, b.run_id, b.status, b.messages,
    (SELECT v.plan -> 'stages' -> 0 ->> 'id' FROM bridge.flow_versions v
     WHERE v.organization_id = b.organization_id AND v.flow = b.flow AND v.version = b.version) AS first_stage
"""

# The flows that have something to do, found by jumping through the index from one flow to the next, so that a
# flood of one costs the others nothing; then in turns: every organization gets its first batch before any gets
# its second.
# What is in mode stream is the stream workers'.
_MESSAGES_READY = "state = 'accepted' AND batch_id IS NULL AND NOT behind AND mode = 'batch'"
_HAND_OVERS_READY = "state = 'available' AND batch_id IS NULL AND mode = 'batch'"
_READY = """
WITH RECURSIVE heads AS (
    (SELECT organization_id, environment, flow, version FROM {table}
     WHERE {ready}
     ORDER BY organization_id, environment, flow, version LIMIT 1)
    UNION ALL
    SELECT following.* FROM heads CROSS JOIN LATERAL (
        SELECT m.organization_id, m.environment, m.flow, m.version FROM {table} m
        WHERE {ready}
          AND (m.organization_id, m.environment, m.flow, m.version)
              > (heads.organization_id, heads.environment, heads.flow, heads.version)
        ORDER BY m.organization_id, m.environment, m.flow, m.version LIMIT 1) AS following
)
SELECT heads.*, oldest.available_at FROM heads CROSS JOIN LATERAL (
    SELECT m.available_at FROM {table} m
    WHERE {ready}
      AND m.organization_id = heads.organization_id AND m.environment = heads.environment
      AND m.flow = heads.flow AND m.version = heads.version AND m.available_at <= now()
    ORDER BY m.available_at LIMIT 1) AS oldest
"""
# What is open of an organization and may come to its end. Airflow starts no run of a flow that was removed or that
# it has paused: such a run may stay queued for ever, and must not keep the other flows from theirs.
_UNDER_WAY = f"""
SELECT count(*) FROM bridge.batches b
WHERE b.organization_id = {{row}}.organization_id AND b.status IN ('created', 'started')
  AND EXISTS (SELECT FROM bridge.deployments d
              WHERE d.organization_id = b.organization_id AND d.environment = b.environment AND d.flow = b.flow
                AND d.status <> 'removed')
  AND {NOT_PAUSED.format(row="b")}
"""  # noqa: S608
_READY_FLOWS = f"""
WITH ready AS (
    SELECT organization_id, environment, flow, version, min(available_at) AS available_at
    FROM (({_READY.format(table="bridge.messages", ready=_MESSAGES_READY)})
          UNION ALL
          ({_READY.format(table="bridge.hand_overs", ready=_HAND_OVERS_READY)})) AS units
    GROUP BY organization_id, environment, flow, version
), turns AS (
    SELECT ready.*, o.slug, v.ordering_key IS NOT NULL AS ordered, l.allowed,
           l.organization_id IS NOT NULL AS known,
           row_number() OVER (PARTITION BY ready.organization_id ORDER BY ready.available_at) AS turn
    FROM ready
    JOIN bridge.organizations o USING (organization_id)
    JOIN bridge.deployments d USING (organization_id, environment, flow)
    LEFT JOIN bridge.flow_versions v
        ON (v.organization_id, v.flow, v.version) = (ready.organization_id, ready.flow, ready.version)
    LEFT JOIN bridge.organization_limits l
        ON (l.organization_id, l.resource) = (ready.organization_id, 'concurrent_runs')
    WHERE o.status = 'active' AND d.status = 'active' AND {NOT_PAUSED.format(row="ready")}
      AND NOT EXISTS (
          SELECT FROM unnest(%(paused)s::uuid[], %(paused_environments)s::text[], %(paused_flows)s::text[])
                      AS p (organization_id, environment, flow)
          WHERE (p.organization_id, p.environment, p.flow)
                = (ready.organization_id, ready.environment, ready.flow))
      AND (SELECT count(*) FROM bridge.batches b
           WHERE b.organization_id = ready.organization_id AND b.environment = ready.environment
             AND b.flow = ready.flow AND b.status IN ('created', 'started'))
          < CASE WHEN v.concurrency IS NULL THEN %(max_open)s ELSE 1 END
)
SELECT organization_id, environment, flow, version, slug, ordered FROM turns
WHERE known AND (allowed IS NULL OR turn <= allowed - ({_UNDER_WAY.format(row="turns")}))
ORDER BY turn, available_at LIMIT %(max_batches)s
"""  # noqa: S608  (constants of this module)

_ROOM = f"""
SELECT l.allowed IS NULL OR l.allowed > ({_UNDER_WAY.format(row="l")})
FROM bridge.organization_limits l WHERE l.organization_id = %s AND l.resource = 'concurrent_runs'
"""  # noqa: S608

_INSERT = """
INSERT INTO bridge.batches (organization_id, batch_id, environment, flow, version, dag_id, run_id, status)
VALUES (%(organization_id)s, %(batch_id)s, %(environment)s, %(flow)s, %(version)s, %(dag_id)s, %(run_id)s,
        %(status)s)
ON CONFLICT (dag_id, run_id) DO NOTHING
"""

# Of an ordering key, messages that follow each other go into a batch together: it runs them one by one. Not those
# behind one that will not be in it.
_LEFT_OUT = (
    EARLIER
    + f" AND NOT ({_MESSAGES_READY.replace('behind', 'b.behind')}"
    + " AND b.version = {row}.version AND b.available_at <= now())"
)
_IN_FRONT = f"({BEGUN} UNION ALL {_LEFT_OUT} LIMIT 1)"
_PUT_BEHIND = f"""
WITH waiting AS MATERIALIZED (
    SELECT m.organization_id, m.message_id, front.message_id AS front
    FROM (SELECT * FROM bridge.messages
          WHERE {_MESSAGES_READY} AND organization_id = %(organization_id)s AND environment = %(environment)s
            AND flow = %(flow)s AND version = %(version)s AND available_at <= now() AND ordering_key IS NOT NULL
          ORDER BY available_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED) m
        CROSS JOIN LATERAL {_IN_FRONT.format(row="m")} AS front
), {PUT_BEHIND}
SELECT count(*) FROM put_behind
"""  # noqa: S608
_MAY_BE_TAKEN = f"(ordering_key IS NULL OR NOT EXISTS {_IN_FRONT.format(row='messages')})"

# Those that another dispatcher is looking at are passed over.
_TAKE = """
WITH taken AS (
    SELECT organization_id, {id} FROM {table}
    WHERE {ready} AND organization_id = %(organization_id)s
      AND environment = %(environment)s AND flow = %(flow)s AND version = %(version)s AND available_at <= now()
    ORDER BY available_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE {table} u SET batch_id = %(batch_id)s FROM taken
WHERE u.organization_id = taken.organization_id AND u.{id} = taken.{id}
"""
_TAKE_MESSAGES = _TAKE.format(
    table="bridge.messages", id="message_id", ready=f"{_MESSAGES_READY} AND {_MAY_BE_TAKEN}"
)
_TAKE_HAND_OVERS = _TAKE.format(table="bridge.hand_overs", id="hand_over_id", ready=_HAND_OVERS_READY)

_ABANDON = """
UPDATE bridge.batches u SET status = 'abandoned', settled_at = now()
FROM unnest(%(organizations)s::uuid[], %(batches)s::text[]) AS b (organization_id, batch_id)
WHERE u.organization_id = b.organization_id AND u.batch_id = b.batch_id AND u.status IN ('created', 'started')
"""
_FREE = """
UPDATE {table} u SET batch_id = NULL
FROM unnest(%(organizations)s::uuid[], %(batches)s::text[]) AS b (organization_id, batch_id)
WHERE u.organization_id = b.organization_id AND u.batch_id = b.batch_id AND u.state = {state}
"""
_FREE_MESSAGES = _FREE.format(table="bridge.messages", state="'accepted'")
_FREE_HAND_OVERS = _FREE.format(table="bridge.hand_overs", state="'available'")


def dispatch_ready(
    *,
    max_messages: int | None = None,
    max_batches: int = 16,
    max_open_per_flow: int = 2,
    paused: Collection[FlowKey] = (),
) -> list[Batch]:
    """Put accepted messages (and hand-overs due for another try) into new batches, in one transaction; the
    caller starts a run for each.

    One batch holds messages of one organization, environment, flow and version, at most `max_messages` (default
    `BRIDGE_BATCH_MAX_MESSAGES`). Organizations take turns: none gets its second batch before every other with
    something to do has its first. Left alone are held flows (`holds`) and those in `paused`, disabled or removed
    deployments, organizations that are suspended, have used up their runs or have as many under way as they may
    (`concurrent_runs`; those of flows that were removed or are paused do not count), and flows with
    `max_open_per_flow` batches open: their messages stay accepted.

    Any number of dispatchers may run at once: no message gets into two batches. A crash before the commit leaves
    everything as it was; after it, `unstarted` gives the batches again.
    """
    limit = max_messages or get_settings().batch_max_messages
    with database.relay() as connection:
        ready = connection.execute(
            _READY_FLOWS,
            {
                "paused": [key[0] for key in paused],
                "paused_environments": [key[1] for key in paused],
                "paused_flows": [key[2] for key in paused],
                "max_open": max_open_per_flow,
                "max_batches": max_batches,
            },
        ).fetchall()
        made = []
        for organization_id, environment, flow, version, slug, ordered in ready:
            batch_id = str(uuid7())
            names = {
                "organization_id": organization_id,
                "batch_id": batch_id,
                "environment": environment,
                "flow": flow,
                "version": version,
                "dag_id": f"{slug}.{environment}.{flow}",
                "run_id": f"{RUN_ID_PREFIX}{batch_id}",
                "status": "created",
                "limit": limit,
            }
            try:
                allowance.take(connection, organization_id, "runs", 1)
            except AllowanceExhausted:
                continue
            # Counting the run made other dispatchers wait: what they have begun is seen now.
            if connection.execute(_ROOM, (organization_id,)).fetchone() != (True,):
                allowance.give_back(connection, organization_id, "runs", 1)
                continue
            if ordered:
                connection.execute(_PUT_BEHIND, names)
            connection.execute(_INSERT, names)
            taken = connection.execute(_TAKE_MESSAGES, names).rowcount
            if taken < limit:
                taken += connection.execute(_TAKE_HAND_OVERS, {**names, "limit": limit - taken}).rowcount
            if taken:
                connection.execute(
                    "UPDATE bridge.batches SET messages = %s WHERE organization_id = %s AND batch_id = %s",
                    (taken, organization_id, batch_id),
                )
                made.append((organization_id, batch_id))
            else:
                connection.execute(
                    "DELETE FROM bridge.batches WHERE organization_id = %s AND batch_id = %s",
                    (organization_id, batch_id),
                )
                allowance.give_back(connection, organization_id, "runs", 1)
        return [_get(connection, *key) for key in made]


def adopt(
    dag_id: str,
    run_id: str,
    *,
    organization_id: UUID,
    environment: str,
    flow: str,
    version: str,
    acceptances: Sequence[Acceptance] = (),
    keys: Cipher,
) -> Batch:
    """The batch of a run: the dispatcher's for a run it started; else one under the run's own ids, made with its
    messages (accepted in the same transaction) when the run's first task comes here for the first time.

    Idempotent: a task that is retried, cleared or running twice gets the same batch and no second copy of the
    messages. Raises `Conflict` when an acceptance's idempotency key was used with another body, and
    `AllowanceExhausted` for a run (or its messages) beyond what the organization may begin.
    """
    with database.relay() as connection:
        made = connection.execute(
            _INSERT,
            {
                "organization_id": organization_id,
                "batch_id": str(uuid7()),
                "environment": environment,
                "flow": flow,
                "version": version,
                "dag_id": dag_id,
                "run_id": run_id,
                "status": "started",
            },
        )
        allowance.take(connection, organization_id, "runs", made.rowcount)
        batch = _find(connection, dag_id, run_id, lock=True)
        # The row lock makes a second task wait for the first one's commit and see what it accepted.
        if batch.messages == 0 and batch.status == "started" and acceptances:
            accepted: list[Accepted] = accept_into(connection, organization_id, batch.batch_id, acceptances, keys)
            new = sum(not each.duplicate for each in accepted)
            connection.execute(
                "UPDATE bridge.batches SET messages = %s WHERE organization_id = %s AND batch_id = %s",
                (new, organization_id, batch.batch_id),
            )
        connection.execute(
            "UPDATE bridge.batches SET status = 'started', started_at = coalesce(started_at, now()),"
            " active_at = now() WHERE organization_id = %s AND batch_id = %s AND status IN ('created', 'started')",
            (organization_id, batch.batch_id),
        )
        return _get(connection, organization_id, batch.batch_id)


def find(dag_id: str, run_id: str) -> Batch:
    """The batch of a run; raises `NotFound`."""
    with database.relay() as connection:
        return _find(connection, dag_id, run_id, lock=False)


def unstarted(*, older_than_s: float = 5.0, limit: int = 100) -> list[Batch]:
    """Batches whose run nobody has been seen to start: start it again (a duplicate run id means it exists)."""
    with database.relay() as connection, connection.cursor(row_factory=class_row(Batch)) as cursor:
        cursor.execute(
            f"SELECT {_COLUMNS} FROM bridge.batches b WHERE b.status = 'created'"  # noqa: S608
            " AND b.created_at < now() - make_interval(secs => %s) ORDER BY b.created_at LIMIT %s",
            (older_than_s, limit),
        )
        return cursor.fetchall()


def open_batches(*, limit: int = 10_000) -> list[Batch]:
    """Batches that are not closed, oldest first: what their runs should still be working on."""
    with database.relay() as connection, connection.cursor(row_factory=class_row(Batch)) as cursor:
        cursor.execute(
            f"SELECT {_COLUMNS} FROM bridge.batches b WHERE b.status IN ('created', 'started')"  # noqa: S608
            " ORDER BY b.created_at LIMIT %s",
            (limit,),
        )
        return cursor.fetchall()


def dead_letters(batch: Batch) -> int:
    """How many messages of the batch wait in triage."""
    with database.relay() as connection:
        [(count,)] = connection.execute(
            "SELECT count(*) FROM bridge.messages WHERE organization_id = %s AND batch_id = %s AND state = 'dead'",
            (batch.organization_id, batch.batch_id),
        )
        return int(count)


def finish(batch: Batch) -> bool:
    """Close the batch if nothing in it is left to do; true when it is closed (now or before). Call it at the end
    of a run: an open batch counts against its flow's `max_open_per_flow` until the sweep closes it."""
    with database.relay() as connection:
        connection.execute(
            "UPDATE bridge.batches b SET status = 'settled', settled_at = now()"
            " WHERE b.organization_id = %(organization)s AND b.batch_id = %(batch)s"
            " AND b.status IN ('created', 'started')"
            " AND NOT EXISTS (SELECT FROM bridge.messages m WHERE m.organization_id = b.organization_id"
            "  AND m.batch_id = b.batch_id AND m.state IN ('accepted', 'claimed'))"
            " AND NOT EXISTS (SELECT FROM bridge.hand_overs h WHERE h.organization_id = b.organization_id"
            "  AND h.batch_id = b.batch_id AND h.state IN ('available', 'claimed'))",
            {"organization": batch.organization_id, "batch": batch.batch_id},
        )
        return _get(connection, batch.organization_id, batch.batch_id).status in ("settled", "abandoned")


def release(batch: Batch) -> int:
    """Give up the batch (its run failed, was deleted or cannot be started): what is not under a lease goes back to
    be dispatched again; returns how many units. What is under a lease follows when the lease ends."""
    with database.relay() as connection:
        return _release(connection, [(batch.organization_id, batch.batch_id)])


def _release(connection: psycopg.Connection[Any], batches: Sequence[tuple[UUID, str]]) -> int:
    parameters = {"organizations": [key[0] for key in batches], "batches": [key[1] for key in batches]}
    connection.execute(_ABANDON, parameters)
    released = connection.execute(_FREE_MESSAGES, parameters).rowcount
    return released + connection.execute(_FREE_HAND_OVERS, parameters).rowcount


def _get(connection: psycopg.Connection[Any], organization_id: UUID, batch_id: str) -> Batch:
    with connection.cursor(row_factory=class_row(Batch)) as cursor:
        cursor.execute(
            f"SELECT {_COLUMNS} FROM bridge.batches b WHERE b.organization_id = %s AND b.batch_id = %s",  # noqa: S608
            (organization_id, batch_id),
        )
        batch = cursor.fetchone()
    if batch is None:
        raise NotFound(f"no batch {batch_id}")
    return batch


def _find(connection: psycopg.Connection[Any], dag_id: str, run_id: str, *, lock: bool) -> Batch:
    with connection.cursor(row_factory=class_row(Batch)) as cursor:
        cursor.execute(
            f"SELECT {_COLUMNS} FROM bridge.batches b WHERE b.dag_id = %s AND b.run_id = %s"  # noqa: S608
            + (" FOR UPDATE OF b" if lock else ""),
            (dag_id, run_id),
        )
        batch = cursor.fetchone()
    if batch is None:
        raise NotFound(f"run {run_id} of {dag_id} has no batch")
    return batch
