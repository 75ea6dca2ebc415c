"""Approvals on Airflow's page of required actions: shown, responded to there or elsewhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
from trial import Tenant, Trial, delivered, settled, wait_until

FLOW = """\
flow: asked
version: 1.0.0
mode: {mode}
index: {{po: .po}}
triggers: [{{id: in, type: webhook_trigger, config: {{slug: asked-{mode}, verification: api_key}}}}]
steps:
  - {{id: parse, type: json_parser}}
  - id: ask
    label: A person looks
    type: approval
    config: {{title: "Order {{{{ body.po }}}}", details: "{{po, note}}"}}
    next: {{approved: mark, rejected: end}}
  - {{id: mark, type: jq, config: {{program: '.by = $vars.approval.by | .why = $vars.approval.comment'}}}}
  - {{id: deliver, type: http_request, config: {{connection: target, path: /asked}}}}
"""


@pytest.fixture(scope="module")
def asked(trial: Trial) -> Tenant:
    """An organization with the flow as a stream and as a batch, an admin and a reader."""
    tenant = trial.organization()
    for mode in ("stream", "batch"):
        text = FLOW.format(mode=mode).replace("flow: asked", f"flow: asked-{mode}")
        tenant.deploy(f"asked-{mode}", text)
    passwords = trial.accounts([f"{tenant.slug}-admin", f"{tenant.slug}-reader"])
    for name, role in ((f"{tenant.slug}-admin", "customer_admin"), (f"{tenant.slug}-reader", "customer_user")):
        trial.bridge("organization", "member", "add", "-o", tenant.slug, name, "--role", role)
        trial.sign_in(name, passwords[name])
    return tenant


def required(tenant: Tenant, user: str) -> list[dict[str, Any]]:
    """What waits for a response on the page, as this user sees it."""
    path = "/dags/~/dagRuns/~/hitlDetails"
    answer = tenant.trial.api("GET", path, user=user, params={"response_received": False, "limit": 100})
    answer.raise_for_status()
    return [each for each in answer.json()["hitl_details"] if each["task_instance"]["state"] == "awaiting_input"]


@pytest.mark.parametrize("mode", ["stream", "batch"])
def test_a_message_is_decided_by_a_response_on_the_page(trial: Trial, asked: Tenant, mode: str) -> None:
    admin, reader = f"{asked.slug}-admin", f"{asked.slug}-reader"
    po = f"PO-page-{mode}"
    message = asked.send(f"asked-{mode}", {"po": po, "note": "secret of the payload"})
    request = wait_until(
        lambda: next((each for each in required(asked, admin) if po in each["body"]), None),
        within_s=60,
        what="the request on the page",
    )
    assert request["subject"] == f"asked-{mode}: A person looks"
    assert message in request["body"]
    assert "secret of the payload" not in json.dumps(request)
    task = request["task_instance"]
    assert task["dag_id"] == f"{asked.slug}.prod._approvals"
    path = f"/dags/{task['dag_id']}/dagRuns/{task['dag_run_id']}/taskInstances/{task['task_id']}/-1/hitlDetails"
    answer = {"chosen_options": ["Approve"], "params_input": {"comment": "as agreed"}}
    assert trial.api("PATCH", path, user=reader, json=answer).status_code in (403, 404)
    assert trial.api("PATCH", path, user=admin, json=answer).status_code == 200
    [delivery] = delivered(asked, po)
    assert (delivery.data["by"], delivery.data["why"]) == (admin, "as agreed")
    settled(asked, message)
    assert trial.await_run(task["dag_id"], task["dag_run_id"]) == "success"


def test_a_decision_made_elsewhere_takes_the_request_off_the_page(trial: Trial, asked: Tenant) -> None:
    admin = f"{asked.slug}-admin"
    message = asked.send("asked-stream", {"po": "PO-elsewhere"})
    wait_until(
        lambda: any("PO-elsewhere" in each["body"] for each in required(asked, admin)), within_s=60, what="it"
    )
    listed = json.loads(trial.bridge("approvals", "list", "-o", asked.slug, "--json").stdout)
    [approval] = [each for each in listed if each["message_id"] == message]
    assert approval["title"] == "Order PO-elsewhere"
    trial.bridge("approvals", "reject", approval["approval_id"], "-o", asked.slug, "-m", "no")
    settled(asked, message)
    wait_until(lambda: not required(asked, admin), within_s=60, what="nothing on the page")
    run_id = f"bridge__approval__{approval['approval_id']}"
    path = f"/dags/{asked.slug}.prod._approvals/dagRuns/{run_id}/taskInstances/decide"
    assert trial.api("GET", path).json()["state"] == "skipped"
    assert not [each for each in trial.destination.deliveries if each.data.get("po") == "PO-elsewhere"]
