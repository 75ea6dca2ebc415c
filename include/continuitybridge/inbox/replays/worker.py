"""Working replay jobs: a chunk at a time, each in one transaction with the place behind it.

So a crash undoes a chunk altogether, and the next worker does it again: nothing is replayed twice or left out. Any
number of workers may run: a job's row is locked while one works on it, and the others pass it over.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from continuitybridge import database
from continuitybridge.errors import BridgeError, Unavailable
from continuitybridge.inbox import replay
from continuitybridge.inbox.replays import query as queries
from continuitybridge.inbox.replays.jobs import KEPT_REFUSALS
from continuitybridge.inbox.replays.query import Query

Connection = psycopg.Connection[Any]

POLL_S = 1.0
"""How often is looked for jobs."""
CHUNK = 100
"""Most messages of one transaction."""
_JOBS_AT_ONCE = 20

_log = logging.getLogger(__name__)

_NEXT = """
SELECT query, start, version, rate_per_s, cursor, created_at, created_by, refusals FROM bridge.replay_jobs
WHERE organization_id = %s AND job_id = %s AND status IN ('queued', 'running') AND next_at <= now()
FOR UPDATE SKIP LOCKED
"""
_WORKED = """
UPDATE bridge.replay_jobs
SET status = CASE WHEN %(ended)s THEN 'done' ELSE 'running' END, started_at = coalesce(started_at, now()),
    ended_at = CASE WHEN %(ended)s THEN now() END, cursor = %(cursor)s, replayed = replayed + %(replayed)s,
    refused = refused + %(refused)s, refusals = %(refusals)s,
    next_at = greatest(next_at, now() - interval '1 second') + make_interval(secs => %(wait)s)
WHERE organization_id = %(organization)s AND job_id = %(job)s
"""


def work() -> int:
    """Do a chunk of each job that is due; returns how many messages were looked at. Raises `Unavailable`."""
    with database.relay() as connection:
        due = connection.execute(
            "SELECT organization_id, job_id FROM bridge.replay_jobs WHERE status IN ('queued', 'running')"
            " AND next_at <= now() ORDER BY next_at LIMIT %s",
            (_JOBS_AT_ONCE,),
        ).fetchall()
    looked_at = 0
    for organization_id, job_id in due:
        try:
            looked_at += _work(organization_id, job_id)
        except Unavailable:
            raise
        except Exception as error:
            # It would fail the same way for ever, and hold up the others.
            _log.exception("replay job %s failed", job_id)
            _fail(organization_id, job_id, error)
    return looked_at


def _work(organization_id: UUID, job_id: UUID) -> int:
    flows: set[str] = set()
    with database.tenant(organization_id) as connection:
        row = connection.execute(_NEXT, (organization_id, job_id)).fetchone()
        if row is None:
            return 0
        query, start, version, rate, cursor, created_at, by, refusals = row
        chunk = max(1, min(CHUNK, int(rate)))
        found = queries.find(
            connection,
            organization_id,
            Query.from_json(query),
            before=created_at,
            after=cursor,
            limit=chunk,
        )
        refused = 0
        for each in found:
            try:
                with connection.transaction():
                    replay.replay_within(
                        connection,
                        organization_id,
                        each.message_id,
                        by=f"{by} (job {job_id})",
                        start=start,
                        version=version,
                        flows=flows,
                    )
            except BridgeError as refusal:
                refused += 1
                if len(refusals) < KEPT_REFUSALS:
                    refusals.append({"id": each.message_id, "code": refusal.code, "detail": refusal.detail})
        connection.execute(
            _WORKED,
            {
                "organization": organization_id,
                "job": job_id,
                "ended": len(found) < chunk,
                "cursor": Jsonb(found[-1].place if found else cursor),
                "replayed": len(found) - refused,
                "refused": refused,
                "refusals": Jsonb(refusals),
                "wait": len(found) / rate,
            },
        )
        replay.notify(connection, flows)
    return len(found)


def _fail(organization_id: UUID, job_id: UUID, error: Exception) -> None:
    with database.tenant(organization_id) as connection:
        connection.execute(
            "UPDATE bridge.replay_jobs SET status = 'failed', ended_at = now(), error = %s"
            " WHERE organization_id = %s AND job_id = %s AND status IN ('queued', 'running')",
            (f"{type(error).__name__}: {error}"[:1000], organization_id, job_id),
        )


class ReplayWorker:
    """Works jobs in a thread of its own until `stop`, riding out restarts of the database."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bridge-replays", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the chunk at hand."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(10.0)

    def _run(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                looked_at = work()
            except Unavailable as error:
                _log.warning("the database does not answer, trying again: %s", error.detail)
                looked_at = 0
            except Exception:
                _log.exception("working replay jobs failed, trying again")
                looked_at = 0
            # A job at a high rate is due again before long.
            pause_s = 0.05 if looked_at else POLL_S
            self._stopping.wait(max(0.0, pause_s - (time.monotonic() - began)))
