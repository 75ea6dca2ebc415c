"""What became of messages reaches Airflow as counted events of the flow's asset, on which DAGs are scheduled."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from trial import FLOW, Tenant, Trial, settled, wait_until

CONSUMER = "example_after_a_flow"


@pytest.fixture(scope="module")
def aurora(trial: Trial) -> Tenant:
    """The organization on whose flow the example DAG is scheduled."""
    tenant = trial.organization("aurora")
    text = FLOW.format(version="1.0.0", path="aurora").replace("flow: order", "flow: order-to-warehouse")
    tenant.deploy("order-to-warehouse", text)
    return tenant


def events(trial: Trial, uri: str) -> list[dict[str, Any]]:
    """The events of this asset, oldest first."""
    found = trial.api("GET", "/assets", params={"uri_pattern": uri})
    found.raise_for_status()
    if not found.json()["assets"]:
        return []
    asset_id = found.json()["assets"][0]["id"]
    answer = trial.api("GET", "/assets/events", params={"asset_id": asset_id, "order_by": "timestamp"})
    assert answer.is_success, trial.log("api-server")[-6000:]
    return [event["extra"] for event in answer.json()["asset_events"]]


def total(trial: Trial, uri: str) -> dict[str, int]:
    told = events(trial, uri)
    return {what: sum(event[what] for event in told) for what in ("done", "skipped", "dead")}


def test_each_outcome_is_counted_in_one_event_and_starts_the_dags_that_wait_for_it(
    trial: Trial, aurora: Tenant
) -> None:
    uri = "bridge://aurora/prod/order-to-warehouse"
    wait_until(lambda: trial.api("GET", f"/dags/{CONSUMER}").is_success, within_s=60, what="the example DAG")
    trial.api("PATCH", f"/dags/{CONSUMER}", json={"is_paused": False}).raise_for_status()
    trial.destination.answer = lambda delivery: 422 if delivery.data["po"].startswith("bad") else 202
    sent = [aurora.send("order", {"po": po}) for po in ("good-1", "good-2", "bad-1", "good-3")]
    for message_id, state in zip(sent, ("done", "done", "dead", "done"), strict=True):
        settled(aurora, message_id, state)
    wait_until(lambda: sum(total(trial, uri).values()) >= 4, within_s=60, what="events of four outcomes")
    assert total(trial, uri) == {"done": 3, "skipped": 0, "dead": 1}
    told = events(trial, uri)
    assert all(first["until"] <= second["since"] for first, second in itertools.pairwise(told))

    def summed() -> int:
        """What the runs saw of it: Airflow puts events into runs as it likes, and may leave some for later."""
        counted = 0
        for run in trial.runs(CONSUMER):
            path = f"/dags/{CONSUMER}/dagRuns/{run['dag_run_id']}/taskInstances/sum_up/xcomEntries/return_value"
            answer = trial.api("GET", path)
            counted += answer.json()["value"]["done"] if answer.is_success else 0
        return counted

    assert wait_until(summed, within_s=60, what="a run of the example DAG that saw events") <= 3
    # Nothing ended since: no further event.
    assert len(events(trial, uri)) == len(told)


def test_a_flow_without_outcomes_has_its_asset_and_no_events(trial: Trial, acme: Tenant) -> None:
    quiet = trial.organization()
    quiet.deploy("quiet", FLOW.format(version="1.0.0", path=quiet.slug).replace("flow: order", "flow: quiet"))
    uri = f"bridge://{quiet.slug}/prod/quiet"
    assets = wait_until(
        lambda: trial.api("GET", "/assets", params={"uri_pattern": uri}).json()["assets"],
        within_s=60,
        what="the flow's asset",
    )
    assert [task["dag_id"] for task in assets[0]["producing_tasks"]] == [quiet.dag_id("quiet")]
    assert events(trial, uri) == []
