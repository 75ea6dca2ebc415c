"""Keeps what is settled for as long as its retention class says, and no longer."""

from __future__ import annotations

import logging
from datetime import timedelta

from airflow.sdk import CronTriggerTimetable, dag, task

log = logging.getLogger(__name__)


@dag(
    schedule=CronTriggerTimetable("17 3 * * *", timezone="UTC"),
    catchup=False,
    is_paused_upon_creation=False,
    max_active_runs=1,
    default_args={"owner": "platform", "retries": 3, "retry_delay": timedelta(minutes=5)},
    tags=["maintenance"],
    description="Makes the next partitions of settled messages, drops those whose time is over.",
)
def maintenance_retention() -> None:
    """Cleaning up is a drop of partitions; rows under legal hold stand in one of their own. A day without this run
    costs tidiness only: rows go into the default partition and are moved when theirs is made. Large payloads go
    with their messages."""

    @task
    def make_partitions() -> int:
        from continuitybridge.inbox.retention import ensure_partitions

        made = ensure_partitions()
        log.info("%d partitions made", made)
        return made

    @task
    def drop_expired_partitions() -> list[str]:
        from continuitybridge.inbox.retention import drop_expired

        dropped = drop_expired()
        log.info("dropped: %s", ", ".join(dropped) or "none is over")
        return dropped

    @task
    def expire_by_tier() -> int:
        from continuitybridge.inbox.retention import expire_by_tier

        removed = expire_by_tier()
        log.info("%d settled messages were older than their organization's tier keeps them", removed)
        return removed

    @task
    def remove_payloads() -> int:
        from continuitybridge.inbox.offload import collect

        collected = collect(everything=True)
        log.info("%d objects of the payload store looked at, %d removed", collected.checked, collected.removed)
        return collected.removed

    @task
    def measure_storage() -> int:
        from continuitybridge.inbox.storage import measure_all

        held = measure_all()
        log.info("all organizations together hold %d bytes", held)
        return held

    removed = make_partitions() >> drop_expired_partitions() >> expire_by_tier() >> remove_payloads()
    removed >> measure_storage()


maintenance_retention()
