"""The sweep: what was left lying by processes that died is taken up again."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from continuitybridge import database
from continuitybridge.errors import Unavailable
from continuitybridge.inbox import batches, offload, turned_back, units
from continuitybridge.inbox.replies import Notices
from continuitybridge.inbox.waits import release_due
from continuitybridge.settings import get_settings

_log = logging.getLogger(__name__)

BATCH_CREATED_IDLE_S = 900.0
"""A batch whose run never began is given up after this long: Airflow's queue may be slow, its DAG paused."""
BATCH_STARTED_IDLE_S = 300.0
"""A batch nobody has worked on (claim or renewal) for this long is given up."""
REFUSALS_DAYS = 30
BATCHES_DAYS = 30
REPLAY_JOBS_DAYS = 90
_CHUNK = 5_000
_KEY_CHUNKS = 20
"""A sweep forgets so many chunks of idempotency keys at most: what expired all at once must not keep it from the
rest of its work. 100,000 at each sweep keep up with any intake."""


@dataclass(frozen=True, slots=True)
class Swept:
    """How many of each were found."""

    leases_expired: int
    dead_letters: int
    batches_settled: int
    batches_abandoned: int
    units_released: int
    orphans_released: int
    waits_released: int
    keys_forgotten: int
    records_removed: int
    turned_back_woken: int
    payloads_removed: int


def sweep(
    *,
    running: Collection[tuple[str, str]] = (),
    created_idle_s: float = BATCH_CREATED_IDLE_S,
    started_idle_s: float = BATCH_STARTED_IDLE_S,
) -> Swept:
    """Look once. Any number of sweeps may run at once, beside every other verb; each step is a transaction of its
    own, so that a killed sweep leaves nothing half done. Run it every `BRIDGE_SWEEP_INTERVAL_S` or so.

    - Leases that ran out: their units are available again (the attempt counts), or dead letters when their
      attempts are used up.
    - Batches with nothing left to do are settled; those nobody works on are abandoned and their units released,
      except for runs named in `running` ((dag id, run id) that Airflow has queued or running).
    - Units in a batch that is closed (their worker settled after the batch was given up) are released.
    - Units that were turned back by a destination just when it was resumed are available.
    - Large payloads that no message needs any more are removed from the payload store.
    - Waits that are over, or complete, are released (also by dispatcher and workers, more often).
    - Idempotency keys whose window is over (100,000 at a time), old refusals, failures, batches and replay jobs
      are removed.

    So a message that was accepted is run by somebody again at most `BRIDGE_LEASE_S`, or the idle time of its
    batch, plus one interval after whoever had it died.
    """
    settings = get_settings()
    expired, dead = expire_leases()
    settled, abandoned, released = _batches(running, created_idle_s, started_idle_s)
    return Swept(
        expired,
        dead,
        settled,
        abandoned,
        released,
        _orphans(),
        _waits(),
        _keys(),
        _records(settings.retention_standard_days),
        turned_back.wake_forgotten(),
        _payloads(),
    )


def expire_leases() -> tuple[int, int]:
    """The first step of `sweep` alone: how many units are available again, and how many dead letters."""
    expired = dead = 0
    while True:
        notices = Notices()
        with database.relay(after=notices) as connection:
            again, buried = units.expire(
                connection, max_attempts=get_settings().max_attempts, limit=_CHUNK, notices=notices
            )
        expired, dead = expired + again, dead + buried
        if again + buried < _CHUNK:
            return expired, dead


def _batches(
    running: Collection[tuple[str, str]], created_idle_s: float, started_idle_s: float
) -> tuple[int, int, int]:
    with database.relay() as connection:
        settled = connection.execute(
            "UPDATE bridge.batches b SET status = 'settled', settled_at = now()"
            " WHERE b.status IN ('created', 'started') AND b.active_at < now() - interval '30 s'"
            " AND NOT EXISTS (SELECT FROM bridge.messages m WHERE m.organization_id = b.organization_id"
            "  AND m.batch_id = b.batch_id AND m.state IN ('accepted', 'claimed'))"
            " AND NOT EXISTS (SELECT FROM bridge.hand_overs h WHERE h.organization_id = b.organization_id"
            "  AND h.batch_id = b.batch_id AND h.state IN ('available', 'claimed'))"
            " AND NOT EXISTS (SELECT FROM unnest(%s::text[], %s::text[]) AS r (dag_id, run_id)"
            "  WHERE r.dag_id = b.dag_id AND r.run_id = b.run_id)",
            ([run[0] for run in running], [run[1] for run in running]),
        ).rowcount
    with database.relay() as connection:
        idle = connection.execute(
            "SELECT b.organization_id, b.batch_id FROM bridge.batches b"
            " WHERE b.status IN ('created', 'started')"
            " AND b.active_at < now() - make_interval(secs => least(%s, %s))"
            " AND b.active_at < now() - make_interval(secs => CASE b.status WHEN 'created' THEN %s ELSE %s END)"
            " AND NOT EXISTS (SELECT FROM unnest(%s::text[], %s::text[]) AS r (dag_id, run_id)"
            "  WHERE r.dag_id = b.dag_id AND r.run_id = b.run_id)"
            " AND NOT EXISTS (SELECT FROM bridge.messages m WHERE m.organization_id = b.organization_id"
            "  AND m.batch_id = b.batch_id AND m.state = 'claimed')"
            " AND NOT EXISTS (SELECT FROM bridge.hand_overs h WHERE h.organization_id = b.organization_id"
            "  AND h.batch_id = b.batch_id AND h.state = 'claimed')"
            " LIMIT 1000 FOR UPDATE OF b SKIP LOCKED",
            (
                created_idle_s,
                started_idle_s,
                created_idle_s,
                started_idle_s,
                [run[0] for run in running],
                [run[1] for run in running],
            ),
        ).fetchall()
        released = batches._release(connection, idle) if idle else 0
    return settled, len(idle), released


def _orphans() -> int:
    released = 0
    for table, state in (("messages", "accepted"), ("hand_overs", "available")):
        with database.relay() as connection:
            released += connection.execute(
                f"UPDATE bridge.{table} u SET batch_id = NULL FROM bridge.batches b"  # noqa: S608  (our own names)
                f" WHERE u.batch_id IS NOT NULL AND u.state = '{state}' AND b.organization_id = u.organization_id"
                " AND b.batch_id = u.batch_id AND b.status IN ('settled', 'abandoned')"
            ).rowcount
    return released


def _waits() -> int:
    released = 0
    while True:
        found = release_due()
        released += found.groups + found.waits
        if not found.is_full:
            break
    while True:
        with database.relay() as connection:
            # Of one that carries on still, what it gathered may be asked for again.
            gone = connection.execute(
                "DELETE FROM bridge.wait_groups g USING ("
                "  SELECT organization_id, group_id FROM bridge.wait_groups f WHERE forget_at <= now()"
                "  AND NOT EXISTS (SELECT FROM bridge.wait_parts p WHERE p.organization_id = f.organization_id"
                "   AND p.wait_id = f.group_id) ORDER BY forget_at LIMIT %s FOR UPDATE SKIP LOCKED) AS old"
                " WHERE g.organization_id = old.organization_id AND g.group_id = old.group_id",
                (_CHUNK,),
            ).rowcount
        if gone < _CHUNK:
            break
    return released


def _keys() -> int:
    forgotten = 0
    for _ in range(_KEY_CHUNKS):
        with database.relay() as connection:
            gone = connection.execute(
                "DELETE FROM bridge.idempotency_keys k USING ("
                "  SELECT organization_id, environment, endpoint, key_hash FROM bridge.idempotency_keys"
                "  WHERE expires_at <= now() ORDER BY expires_at LIMIT %s FOR UPDATE SKIP LOCKED) AS old"
                " WHERE (k.organization_id, k.environment, k.endpoint, k.key_hash)"
                "  = (old.organization_id, old.environment, old.endpoint, old.key_hash)",
                (_CHUNK,),
            ).rowcount
        forgotten += gone
        if gone < _CHUNK:
            break
    return forgotten


def _payloads() -> int:
    try:
        return offload.collect().removed
    except Unavailable as error:
        # Nothing else waits for the payload store.
        _log.warning("payloads that nobody needs are not removed now: %s", error.detail)
        return 0


def _records(failures_days: int) -> int:
    removed = 0
    with database.relay() as connection:
        removed += connection.execute(
            "DELETE FROM bridge.refusals WHERE minute < now() - make_interval(days => %s)", (REFUSALS_DAYS,)
        ).rowcount
    with database.relay() as connection:
        removed += connection.execute(
            "DELETE FROM bridge.replay_jobs WHERE ended_at < now() - make_interval(days => %s)",
            (REPLAY_JOBS_DAYS,),
        ).rowcount
    with database.relay() as connection:
        removed += connection.execute(
            "DELETE FROM bridge.failures f WHERE f.at < now() - make_interval(days => %s)"
            " AND NOT EXISTS (SELECT FROM bridge.messages m WHERE m.organization_id = f.organization_id"
            "  AND m.message_id = f.message_id)",
            (failures_days,),
        ).rowcount
    with database.relay() as connection:
        removed += connection.execute(
            "DELETE FROM bridge.batches b WHERE b.status IN ('settled', 'abandoned')"
            " AND b.settled_at < now() - make_interval(days => %s)"
            " AND NOT EXISTS (SELECT FROM bridge.messages m WHERE m.organization_id = b.organization_id"
            "  AND m.batch_id = b.batch_id)"
            " AND NOT EXISTS (SELECT FROM bridge.hand_overs h WHERE h.organization_id = b.organization_id"
            "  AND h.batch_id = b.batch_id)",
            (BATCHES_DAYS,),
        ).rowcount
    return removed
