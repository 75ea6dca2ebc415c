"""Airflow's pools: the stream workers' own, one for each organization's batch flows, the default one for all else.

The first and the last have the slots that our settings say; an organization's has as many as it may have runs
under way (`concurrent_runs`), so that whatever starts its runs, no more of its tasks run at once.
"""

from __future__ import annotations

from airflow.models.pool import Pool
from airflow.utils.session import create_session
from sqlalchemy import text

from continuitybridge import database
from continuitybridge.airflow.configuration import STREAM_POOL, organization_pool, stream_slots
from continuitybridge.settings import Settings

_LIMITS = """
SELECT o.slug, l.allowed FROM bridge.organizations o
LEFT JOIN bridge.organization_limits l ON l.organization_id = o.organization_id AND l.resource = 'concurrent_runs'
"""
_THERE = text("SELECT pool, slots FROM slot_pool WHERE starts_with(pool, :prefix)")
_GONE = text("DELETE FROM slot_pool WHERE pool = ANY(:names)")


def ensure_pools(settings: Settings) -> None:
    """Make the stream workers' pool, and give both pools the slots that the settings say. Idempotent."""
    wanted = {
        STREAM_POOL: (stream_slots(settings), "Stream workers, of two generations while one takes over"),
        Pool.DEFAULT_POOL_NAME: (settings.task_parallelism, "Everything but stream workers and batch flows"),
    }
    with create_session() as session:
        for name, (slots, description) in wanted.items():
            Pool.create_or_update_pool(name, slots, description, include_deferred=False, session=session)


def ensure_organization_pools(settings: Settings) -> int:
    """Make, resize and remove organizations' pools; returns how many were touched. Idempotent."""
    with database.relay() as connection:
        limits = connection.execute(_LIMITS).fetchall()
    wanted = {
        organization_pool(slug): settings.task_parallelism if allowed is None else int(allowed)
        for slug, allowed in limits
    }
    with create_session() as session:
        there = {row[0]: row[1] for row in session.execute(_THERE, {"prefix": organization_pool("")})}
        changed = {name: slots for name, slots in wanted.items() if there.get(name) != slots}
        for name, slots in changed.items():
            Pool.create_or_update_pool(
                name, slots, "Batch flows of an organization", include_deferred=False, session=session
            )
        gone = sorted(there.keys() - wanted.keys())
        if gone:
            session.execute(_GONE, {"names": gone})
    return len(changed) + len(gone)
