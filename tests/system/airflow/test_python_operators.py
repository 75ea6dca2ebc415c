"""DAGs written in Python with the public operators, run by the real scheduler and triggerer."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest
from trial import Trial, wait_until

EXAMPLE = "example_python_operators"
WAITING = "example_wait_for_webhook"

FLOW = """
flow: incoming
version: 1.0.0
triggers:
  - id: in
    type: webhook_trigger
    config: {slug: orders, verification: api_key}
steps:
  - {id: parse, type: json_parser}
"""


@pytest.fixture(scope="module", autouse=True)
def _examples(trial: Trial) -> None:
    """The example DAGs, switched on, with the connection that they deliver by."""
    trial.api(
        "POST",
        "/connections",
        json={
            "connection_id": "demo_warehouse",
            "conn_type": "http",
            "host": trial.destination.url,
            "extra": json.dumps({"X-API-Key": f"key-{uuid4().hex}"}),
        },
    ).raise_for_status()
    for dag_id in (EXAMPLE, WAITING):
        wait_until(lambda: trial.api("GET", f"/dags/{dag_id}").is_success, within_s=60, what=dag_id)  # noqa: B023
        trial.api("PATCH", f"/dags/{dag_id}", json={"is_paused": False}).raise_for_status()


def start(trial: Trial, dag_id: str, **conf: Any) -> str:
    """Start a run by REST; returns its id."""
    run_id = f"r-{uuid4().hex[:8]}"
    body = {"logical_date": None, "dag_run_id": run_id, "conf": conf}
    trial.api("POST", f"/dags/{dag_id}/dagRuns", json=body).raise_for_status()
    return run_id


def tasks(trial: Trial, dag_id: str, run_id: str) -> dict[str, str]:
    """Task → state."""
    answer = trial.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances").json()
    return {each["task_id"]: each["state"] for each in answer["task_instances"]}


def result(trial: Trial, dag_id: str, run_id: str, task_id: str) -> Any:
    """What the task returned."""
    path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value"
    return trial.api("GET", path, params={"deserialize": "false"}).json()["value"]


def test_the_example_delivers_an_order_and_tries_again_under_the_same_key(trial: Trial) -> None:
    seen = len(trial.destination.of("/orders"))
    run_id = start(trial, EXAMPLE)
    assert trial.await_run(EXAMPLE, run_id, within_s=180) == "success"
    assert {task for task, state in tasks(trial, EXAMPLE, run_id).items() if state == "skipped"} == {
        "note",
        "note_text",
    }
    (delivered,) = trial.destination.of("/orders")[seen:]
    assert delivered.data["order_number"] == "PO-4711"
    assert delivered.data["total"] == 1142
    assert delivered.headers["idempotency-key"] == f"{EXAMPLE}/{run_id}:deliver:1"

    trial.api(
        "POST",
        f"/dags/{EXAMPLE}/clearTaskInstances",
        json={"dry_run": False, "dag_run_id": run_id, "task_ids": ["deliver"], "only_failed": False},
    ).raise_for_status()
    wait_until(lambda: len(trial.destination.of("/orders")) == seen + 2, within_s=120, what="delivered again")
    again = trial.destination.of("/orders")[-1]
    assert again.headers["idempotency-key"] == delivered.headers["idempotency-key"]
    assert again.body == delivered.body


def test_the_example_branches_and_a_bad_order_fails_without_another_try(trial: Trial) -> None:
    lines = [{"sku": "X", "qty": 1_000, "price": 1_000}]
    large = start(trial, EXAMPLE, order=json.dumps({"id": "PO-2", "buyer": {"name": "B"}, "lines": lines}))
    bad = start(trial, EXAMPLE, order='{"id": "PO-3"}')
    assert trial.await_run(EXAMPLE, large, within_s=180) == "success"
    assert tasks(trial, EXAMPLE, large)["deliver"] == "skipped"
    assert result(trial, EXAMPLE, large, "note_text") == "Order PO-2 of B is worth 1000000"
    assert trial.await_run(EXAMPLE, bad, within_s=180) == "failed"
    answer = trial.api("GET", f"/dags/{EXAMPLE}/dagRuns/{bad}/taskInstances/validate").json()
    assert (answer["state"], answer["try_number"]) == ("failed", 1)


def test_the_sensor_waits_in_the_triggerer_until_a_message_has_come(trial: Trial) -> None:
    tenant = trial.organization()
    tenant.deploy("incoming", FLOW, visible=False)
    run_id = start(trial, WAITING, organization=tenant.slug)
    wait_until(
        lambda: tasks(trial, WAITING, run_id).get("wait") == "deferred", within_s=120, what="the sensor deferred"
    )
    message_id = tenant.send("orders", {"id": "PO-9"})
    assert trial.await_run(WAITING, run_id, within_s=180) == "success"
    assert message_id in result(trial, WAITING, run_id, "tell")
