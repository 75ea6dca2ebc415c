"""Deploying while messages are under way."""

from __future__ import annotations

from trial import FLOW, Gate, Trial, delivered, settled, wait_until

FIRST = """\
flow: relay
version: 1.0.0
triggers:
  - {id: order-in, type: webhook_trigger, config: {slug: order, verification: api_key}}
steps:
  - {id: parse, type: json_parser}
  - {id: announce, type: http_request, isolate: true, config: {connection: target, path: /announce}}
  - {id: shape, type: jq, isolate: true, config: {program: '{po, made_by: "first"}'}}
  - {id: deliver, type: http_request, config: {connection: target, path: /deliver}}
"""
SECOND = """\
flow: relay
version: 2.0.0
triggers:
  - {id: order-in, type: webhook_trigger, config: {slug: order, verification: api_key}}
steps:
  - {id: parse, type: json_parser}
  - {id: reshape, type: jq, config: {program: '{po, made_by: "second"}'}}
  - {id: send, type: http_request, config: {connection: target, path: /deliver}}
"""


def test_a_changed_flow_is_a_new_dag_version_and_the_same_again_is_none(trial: Trial) -> None:
    tenant = trial.organization()
    dag_id = tenant.dag_id("order")

    def versions() -> int:
        return int(trial.api("GET", f"/dags/{dag_id}/dagVersions").json()["total_entries"])

    tenant.deploy("order", FLOW.format(version="1.0.0", path="v"))
    # A version that nothing ran under is replaced by the next.
    tenant.send("order", {"po": "PO-old-version"})
    assert delivered(tenant, "PO-old-version")[0].data["made_by"] == "1.0.0"
    assert versions() == 1
    tenant.deploy("order", FLOW.format(version="1.1.0", path="v"))
    tenant.send("order", {"po": "PO-new-version"})
    assert delivered(tenant, "PO-new-version")[0].data["made_by"] == "1.1.0"
    assert versions() == 2
    # Another flow's deploy rewrites the same file; this DAG stays as it is.
    tenant.deploy("other", FLOW.format(version="1.0.0", path="w").replace("order", "other"))
    assert versions() == 2


def test_a_message_finishes_on_the_version_it_began_on(trial: Trial) -> None:
    tenant = trial.organization()
    tenant.deploy("relay", FIRST)
    gate = Gate(trial, "PO-between")
    message_id = tenant.send("order", {"po": "PO-between"})
    assert gate.reached.wait(60)
    # The new version has none of the stages that the message has yet to pass.
    tenant.deploy("relay", SECOND)
    gate.open.set()
    settled(tenant, message_id, within_s=120)
    announced, last = delivered(tenant, "PO-between", times=2)
    assert (announced.path, last.path) == ("/announce", "/deliver")
    assert last.data["made_by"] == "first"
    tenant.send("order", {"po": "PO-afterwards"})
    assert delivered(tenant, "PO-afterwards")[0].data["made_by"] == "second"


def test_a_removed_flows_dag_goes(trial: Trial) -> None:
    tenant = trial.organization()
    tenant.deploy("order", FLOW.format(version="1.0.0", path="v"))
    trial.bridge("flow", "remove", "-o", tenant.slug, "-e", "prod", "order")

    def gone() -> bool:
        answer = trial.api("GET", f"/dags/{tenant.dag_id('order')}")
        return answer.status_code == 404 or answer.json()["is_stale"]

    wait_until(gone, within_s=90, what="the DAG stale")
    assert tenant.trigger("order", {"payload": {"po": "x"}}).status_code == 404
