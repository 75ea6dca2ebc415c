"""Replay jobs: made, listed, cancelled; as the application role of one organization."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb
from uuid6 import uuid7

from continuitybridge import database
from continuitybridge.audit import record
from continuitybridge.errors import ConfigurationError, Conflict, NotFound
from continuitybridge.inbox.replay import ORIGINAL
from continuitybridge.inbox.replays import query as queries
from continuitybridge.inbox.replays.query import Query

DEFAULT_RATE_PER_S = 50.0
MAX_RATE_PER_S = 5_000.0
KEPT_REFUSALS = 50
"""So many refusals are kept with their reason; all are counted."""


@dataclass(frozen=True, slots=True)
class Job:
    """A replay job. `matched` is how many messages its query found when it was made (at most `COUNT_LIMIT` are
    counted); `replayed` run again, `refused` were left as they are, of which `refusals` names the first: `id`,
    `code`, `detail`."""

    job_id: UUID
    query: dict[str, Any]
    start: str
    version: str
    rate_per_s: float
    status: str
    matched: int
    replayed: int
    refused: int
    refusals: list[dict[str, str]]
    error: str | None
    created_at: datetime
    created_by: str
    started_at: datetime | None
    ended_at: datetime | None
    ended_by: str | None


_COLUMNS = """
SELECT job_id, query, start, version, rate_per_s, status, matched, replayed, refused, refusals, error, created_at,
       created_by, started_at, ended_at, ended_by
FROM bridge.replay_jobs
"""


def start(
    organization_id: UUID,
    query: Query,
    *,
    by: str,
    start: Literal["beginning", "failure"] = "beginning",
    version: str = ORIGINAL,
    rate_per_s: float = DEFAULT_RATE_PER_S,
) -> Job:
    """Make a job that replays what the query finds now, at most `rate_per_s` messages a second, as
    `replay.replay` does with each. What ends later is not replayed, be it by this job. When this returns, the
    job is on disk: it is worked by whichever process works jobs, goes on where it was when that dies, and ends,
    unless it is cancelled.

    Raises `ConfigurationError`; `NotFound` when the query finds nothing.
    """
    if not 0.001 <= rate_per_s <= MAX_RATE_PER_S:
        raise ConfigurationError(
            f"the rate must lie between 0.001 and {MAX_RATE_PER_S:g} messages a second",
            field="rate_per_s",
            value=rate_per_s,
        )
    if start == "failure" and set(query.states) != {"dead"} and not query.message_ids:
        raise ConfigurationError(
            "only dead letters have a failed node to start from: ask for state dead alone", field="states"
        )
    job_id = uuid7()
    with database.tenant(organization_id) as connection:
        [(now,)] = connection.execute("SELECT now()")
        matched = sum(each[3] for each in queries.count(connection, organization_id, query, before=now))
        if not matched:
            raise NotFound("the query finds no message that could be replayed")
        connection.execute(
            "INSERT INTO bridge.replay_jobs (organization_id, job_id, query, start, version, rate_per_s, matched,"
            " created_at, created_by) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (organization_id, job_id, Jsonb(query.to_json()), start, version, rate_per_s, matched, now, by),
        )
        details = {"query": query.to_json(), "start": start, "version": version, "matched": matched}
        record(connection, organization_id, "replay.started", str(job_id), details=details, by=by)
    return show(organization_id, job_id)


def show(organization_id: UUID, job_id: UUID) -> Job:
    """One job; raises `NotFound`."""
    with (
        database.tenant(organization_id) as connection,
        connection.cursor(row_factory=class_row(Job)) as cursor,
    ):
        cursor.execute(_COLUMNS + " WHERE organization_id = %s AND job_id = %s", (organization_id, job_id))
        found = cursor.fetchone()
    if found is None:
        raise NotFound(f"no replay job {job_id}")
    return found


def list_jobs(organization_id: UUID, *, limit: int = 50) -> list[Job]:
    """The organization's jobs, newest first."""
    with (
        database.tenant(organization_id) as connection,
        connection.cursor(row_factory=class_row(Job)) as cursor,
    ):
        cursor.execute(
            _COLUMNS + " WHERE organization_id = %s ORDER BY job_id DESC LIMIT %s", (organization_id, limit)
        )
        return cursor.fetchall()


def cancel(organization_id: UUID, job_id: UUID, *, by: str) -> Job:
    """End a job before its end: what it has replayed by then is replayed. Raises `NotFound`, and `Conflict` when
    it has ended."""
    with database.tenant(organization_id) as connection:
        ended = connection.execute(
            "UPDATE bridge.replay_jobs SET status = 'cancelled', ended_at = now(), ended_by = %s"
            " WHERE organization_id = %s AND job_id = %s AND status IN ('queued', 'running')",
            (by, organization_id, job_id),
        ).rowcount
        if ended:
            record(connection, organization_id, "replay.cancelled", str(job_id), by=by)
    job = show(organization_id, job_id)
    if not ended:
        raise Conflict(f"replay job {job_id} has ended ({job.status})", status=job.status)
    return job
