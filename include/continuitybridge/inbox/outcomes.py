"""How many messages of each flow ended, and how, within a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from continuitybridge import database
from continuitybridge.inbox.batches import FlowKey

SETTLING_S = 1.0
"""What ended so long ago is counted: younger rows may be in transactions that have not committed."""

SETTLING_MAX_S = 60.0
"""A transaction that is open for longer does not hold up the counting: what it settles is not counted."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """`dead` counts final failures that became dead letters, `skipped` what nobody had to deliver any more."""

    done: int
    skipped: int
    dead: int


# A row's time is the begin of its transaction, which is older than its commit.
_COUNTED_UNTIL = """
SELECT greatest(now() - make_interval(secs => %(longest)s), least(now() - make_interval(secs => %(lag)s),
    (SELECT min(xact_start) FROM pg_stat_activity WHERE usename = current_user AND pid <> pg_backend_pid())))
"""
_COUNT = """
WITH asked AS (
    SELECT * FROM unnest(%(organizations)s::uuid[], %(environments)s::text[], %(flows)s::text[],
                         %(sinces)s::timestamptz[]) AS a (organization_id, environment, flow, since)
), dead AS (
    SELECT f.organization_id, f.environment, f.flow, count(DISTINCT f.message_id) AS dead
    FROM bridge.failures f JOIN asked a USING (organization_id, environment, flow)
    WHERE f.final AND f.at >= %(first)s AND f.at >= a.since AND f.at < %(until)s
    GROUP BY 1, 2, 3
)
SELECT a.organization_id, a.environment, a.flow, s.done, s.skipped, coalesce(dead.dead, 0)
FROM asked a CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE result = 'done') AS done, count(*) FILTER (WHERE result = 'skipped') AS skipped
    FROM bridge.settled_messages s
    WHERE s.organization_id = a.organization_id AND s.environment = a.environment AND s.flow = a.flow
      AND s.settled_at >= a.since AND s.settled_at < %(until)s AND s.settled_at >= %(first)s
) AS s LEFT JOIN dead USING (organization_id, environment, flow)
WHERE s.done + s.skipped + coalesce(dead.dead, 0) > 0
"""


def counted_until() -> datetime:
    """Up to which time every outcome is visible now, so that adjoining times count each once."""
    with database.relay() as connection:
        [(until,)] = connection.execute(_COUNTED_UNTIL, {"lag": SETTLING_S, "longest": SETTLING_MAX_S})
    return until  # type: ignore[no-any-return]


def count(since: Mapping[FlowKey, datetime], until: datetime) -> dict[FlowKey, Outcomes]:
    """Outcomes of each flow from its time in `since` (included) to `until` (excluded); flows without any are left
    out. Messages of runs and of stream workers alike."""
    if not since:
        return {}
    keys: list[tuple[UUID, str, str]] = list(since)
    with database.relay() as connection:
        rows = connection.execute(
            _COUNT,
            {
                "organizations": [key[0] for key in keys],
                "environments": [key[1] for key in keys],
                "flows": [key[2] for key in keys],
                "sinces": [since[key] for key in keys],
                "first": min(since.values()),
                "until": until,
            },
        ).fetchall()
    return {(row[0], row[1], row[2]): Outcomes(*row[3:]) for row in rows}
