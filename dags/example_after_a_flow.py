"""A DAG that runs after a flow has finished messages: scheduled on the flow's asset.

Each event of the asset `bridge://{organization}/{environment}/{flow}` tells how many messages ended since the one
before, and how. It is a hint that something happened, not the messages themselves, and one run may answer several
events: look at the sums, or at what the flow has delivered.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Asset, dag, task

ORDERS = Asset("bridge://aurora/prod/order-to-warehouse")


@dag(
    schedule=[ORDERS],
    tags=["example"],
    description="Says how many orders reached the warehouse since the last time",
)
def example_after_a_flow() -> None:
    """Start a report, an invoice run or a reconciliation here."""

    @task
    def sum_up(triggering_asset_events: Any = None) -> dict[str, int]:
        events = triggering_asset_events[ORDERS]
        return {what: sum(event.extra.get(what, 0) for event in events) for what in ("done", "skipped", "dead")}

    sum_up()


example_after_a_flow()
