"""Airflow's pools, sized by our settings: the stream workers' own, and the default one for all else."""

from __future__ import annotations

from airflow.models.pool import Pool
from airflow.utils.session import create_session

from continuitybridge.airflow.configuration import STREAM_POOL, stream_slots
from continuitybridge.settings import Settings


def ensure_pools(settings: Settings) -> None:
    """Make the stream workers' pool, and give both pools the slots that the settings say. Idempotent."""
    wanted = {
        STREAM_POOL: (stream_slots(settings), "Stream workers, of two generations while one takes over"),
        Pool.DEFAULT_POOL_NAME: (settings.task_parallelism, "Everything but the stream workers"),
    }
    with create_session() as session:
        for name, (slots, description) in wanted.items():
            Pool.create_or_update_pool(name, slots, description, include_deferred=False, session=session)
