"""Messages through Airflow: every way in, and what its buttons mean."""

from __future__ import annotations

from typing import Any

from trial import FLOW, Gate, Tenant, Trial, delivered, only_run, settled, wait_until


def test_a_webhooks_message_becomes_a_run_and_is_delivered_once(trial: Trial, acme: Tenant) -> None:
    before = len(trial.runs(acme.dag_id("order")))
    message_id = acme.send("order", {"po": "PO-webhook", "note": "x"})
    [delivery] = delivered(acme, "PO-webhook")
    assert delivery.data == {"po": "PO-webhook", "made_by": "1.0.0"}
    assert delivery.headers["idempotency-key"] == f"{message_id}:deliver:1"
    settled(acme, message_id)
    run_id = only_run(trial, acme.dag_id("order"), before)
    assert run_id.startswith("bridge__")
    assert trial.await_run(acme.dag_id("order"), run_id) == "success"
    run = trial.api("GET", f"/dags/{acme.dag_id('order')}/dagRuns/{run_id}").json()
    assert run["logical_date"] is None
    log = trial.task_log(acme.dag_id("order"), run_id, "parse")
    assert f"message {message_id}: done" in log
    assert "1 claimed, 1 done" in log
    assert len(delivered(acme, "PO-webhook")) == 1


def test_messages_that_come_together_share_a_run(trial: Trial, acme: Tenant) -> None:
    dag_id = acme.dag_id("order")
    before = len(trial.runs(dag_id))
    ids = [acme.send("order", {"po": f"PO-together-{number}"}) for number in range(12)]
    for number, message_id in enumerate(ids):
        delivered(acme, f"PO-together-{number}")
        settled(acme, message_id)
    assert len(trial.runs(dag_id)) - before < len(ids)


def test_a_run_started_by_rest_sends_its_payload_through_the_inbox(trial: Trial, acme: Tenant) -> None:
    made = acme.trigger("order", {"payload": {"po": "PO-rest"}})
    assert made.status_code == 200
    run_id = made.json()["dag_run_id"]
    [delivery] = delivered(acme, "PO-rest")
    message_id = delivery.headers["idempotency-key"].split(":")[0]
    settled(acme, message_id)
    dag_id = acme.dag_id("order")
    assert trial.await_run(dag_id, run_id) == "success"
    values = trial.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/parse/xcomEntries/return_value")
    assert values.json()["value"] == {"claimed": 1, "done": 1}


def test_a_payload_that_breaks_the_schema_is_refused_at_the_door(acme: Tenant) -> None:
    wrong = acme.trigger("order", {"payload": {"po": 5}})
    assert wrong.status_code == 400
    assert "5 is not of type 'string'" in wrong.json()["detail"]
    assert acme.trigger("order", {"payload": None}).status_code == 400
    assert acme.trigger("order").status_code == 400


def test_a_run_that_claims_a_batch_it_does_not_have_fails_with_the_reason(trial: Trial, acme: Tenant) -> None:
    made = acme.trigger("order", {"payload": {"bridge:batch": "01"}}, dag_run_id="bridge__made-up")
    assert made.status_code == 200
    assert trial.await_run(acme.dag_id("order"), "bridge__made-up") == "failed"
    assert "start a run by hand" in trial.task_log(acme.dag_id("order"), "bridge__made-up", "parse")


def test_pausing_holds_messages_until_the_dag_runs_again(trial: Trial, acme: Tenant) -> None:
    dag_id = acme.dag_id("order")
    trial.api("PATCH", f"/dags/{dag_id}", json={"is_paused": True}).raise_for_status()
    try:
        before = len(trial.runs(dag_id))
        first = acme.send("order", {"po": "PO-paused"})
        # A message of another flow passes meanwhile: the dispatcher has looked.
        other = trial.organization()
        other.deploy("order", FLOW.format(version="1.0.0", path=other.slug))
        other.send("order", {"po": "PO-not-paused"})
        delivered(other, "PO-not-paused")
        assert len(trial.runs(dag_id)) == before
        assert acme.state_of(first) == "accepted"
    finally:
        trial.api("PATCH", f"/dags/{dag_id}", json={"is_paused": False}).raise_for_status()
    delivered(acme, "PO-paused")
    settled(acme, first)


def test_clearing_a_run_runs_nothing_that_is_settled(trial: Trial, acme: Tenant) -> None:
    dag_id = acme.dag_id("order")
    before = len(trial.runs(dag_id))
    message_id = acme.send("order", {"po": "PO-cleared"})
    delivered(acme, "PO-cleared")
    settled(acme, message_id)
    run_id = only_run(trial, dag_id, before)
    trial.await_run(dag_id, run_id)
    cleared = trial.api("POST", f"/dags/{dag_id}/dagRuns/{run_id}/clear", json={"dry_run": False})
    assert cleared.is_success, cleared.text

    def tried_again() -> bool:
        answer = trial.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/parse").json()
        return answer["try_number"] == 2 and answer["state"] == "success"

    wait_until(tried_again, within_s=60, what="a second try")
    assert "nothing to do" in trial.task_log(dag_id, run_id, "parse", 2)
    assert len(delivered(acme, "PO-cleared")) == 1


def test_marking_a_run_success_settles_what_is_left_as_skipped(trial: Trial, acme: Tenant) -> None:
    dag_id = acme.dag_id("order")
    gate = Gate(trial, "PO-marked")
    before = len(trial.runs(dag_id))
    message_id = acme.send("order", {"po": "PO-marked"})
    assert gate.reached.wait(60)
    run_id = only_run(trial, dag_id, before)
    marked = trial.api("PATCH", f"/dags/{dag_id}/dagRuns/{run_id}", json={"state": "success"})
    assert marked.is_success, marked.text
    settled(acme, message_id, "skipped")
    gate.open.set()
    trial.await_run(dag_id, run_id, "success")
    # Nobody sends it again: another message goes through whole meanwhile.
    other = acme.send("order", {"po": "PO-after-marked"})
    settled(acme, other)
    assert acme.state_of(message_id) == "skipped"
    assert len(delivered(acme, "PO-marked")) == 1


def test_marking_a_run_failed_gives_its_messages_to_a_later_run(trial: Trial, acme: Tenant) -> None:
    dag_id = acme.dag_id("order")
    gate = Gate(trial, "PO-failed")
    before = len(trial.runs(dag_id))
    message_id = acme.send("order", {"po": "PO-failed"})
    assert gate.reached.wait(60)
    run_id = only_run(trial, dag_id, before)
    trial.api("PATCH", f"/dags/{dag_id}/dagRuns/{run_id}", json={"state": "failed"}).raise_for_status()
    keys = {each.headers["idempotency-key"] for each in delivered(acme, "PO-failed", times=2, within_s=120)}
    gate.open.set()
    assert keys == {f"{message_id}:deliver:1"}
    settled(acme, message_id)
    assert trial.run_state(dag_id, run_id) == "failed"


def test_a_backfill_of_an_event_flow_is_refused(trial: Trial, acme: Tenant) -> None:
    asked = trial.api(
        "POST",
        "/backfills",
        json={
            "dag_id": acme.dag_id("order"),
            "from_date": "2026-01-01T00:00:00Z",
            "to_date": "2026-01-03T00:00:00Z",
        },
    )
    assert asked.status_code == 422
    assert "does not support backfills" in asked.text


def test_a_dead_letter_makes_the_run_red_and_holds_nothing_up(trial: Trial, acme: Tenant) -> None:
    dag_id = acme.dag_id("order")
    trial.destination.answer = lambda delivery: 422 if delivery.data["po"] == "PO-dead" else 202
    trial.api("PATCH", f"/dags/{dag_id}", json={"is_paused": True}).raise_for_status()
    before = len(trial.runs(dag_id))
    dead, good = acme.send("order", {"po": "PO-dead"}), acme.send("order", {"po": "PO-good"})
    trial.api("PATCH", f"/dags/{dag_id}", json={"is_paused": False}).raise_for_status()
    settled(acme, good)
    settled(acme, dead, "dead")
    run_id = only_run(trial, dag_id, before)
    assert trial.await_run(dag_id, run_id) == "failed"
    log = trial.task_log(dag_id, run_id, "parse")
    assert "1 messages of this run are dead letters" in log
    assert f"message {dead} failed at deliver (delivery-failed)" in log
    instance = trial.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/parse").json()
    assert instance["try_number"] == 1


def test_a_passing_failure_is_tried_again_in_a_later_run(trial: Trial, acme: Tenant) -> None:
    answers = iter([503])
    trial.destination.answer = lambda delivery: next(answers, 202) if delivery.data["po"] == "PO-503" else 202
    message_id = acme.send("order", {"po": "PO-503"})
    settled(acme, message_id, within_s=90)
    first, second = delivered(acme, "PO-503", times=2)
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


def test_a_schedulers_times_become_messages(trial: Trial) -> None:
    tenant = trial.organization()
    flow: dict[str, Any] = {"tenant": tenant.slug}
    tenant.deploy(
        "tick",
        """\
flow: tick
version: 1.0.0
triggers:
  - id: clock
    type: scheduler
    config: {{cron: "* * * * *", timezone: Europe/Zurich, payload: {{po: "{tenant}"}}}}
steps:
  - {{id: parse, type: json_parser}}
  - {{id: deliver, type: http_request, config: {{connection: target, path: /tick}}}}
""".format(**flow),
    )
    details = trial.api("GET", f"/dags/{tenant.dag_id('tick')}/details").json()
    assert "timetable_summary" in details
    # By hand it sends the scheduler's payload too.
    assert tenant.trigger("tick").status_code == 200
    assert delivered(tenant, tenant.slug)[0].path == "/tick"

    def scheduled() -> bool:
        return any(run["run_type"] == "scheduled" for run in trial.runs(tenant.dag_id("tick")))

    wait_until(scheduled, within_s=120, what="a scheduled run")
    delivered(tenant, tenant.slug, times=2, within_s=120)
    tenant.trial.bridge("flow", "remove", "-o", tenant.slug, "-e", "prod", "tick")
