"""Approvals over HTTP: who sees what waits, and who may decide."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from waits_world import World

from continuitybridge.organizations import Organization
from continuitybridge.vault.keyring import Keyring

from .conftest import SignIn


@pytest.fixture
def waiting(organization: Organization, keyring: Keyring) -> World:
    """Two messages of an organization wait for a decision."""
    world = World(organization, keyring)
    world.deploy(
        "ask",
        "{id: ask, type: approval, config: {title: 'Order {{ body.n }}', details: '{n}'},"
        " next: {approved: end, rejected: end}}",
    )
    for n in (1, 2):
        world.accept("ask", {"n": n})
    world.work()
    return world


def test_those_who_may_write_decide_and_the_others_look_on(
    waiting: World, organization: Organization, sign_in: SignIn
) -> None:
    reader, admin = sign_in({organization: "customer_user"}), sign_in({organization: "customer_admin"})
    seen = reader.get("/bridge/approvals")
    assert seen.status_code == 200
    first, second = seen.json()
    assert (first["title"], first["details"], first["step"], first["may_decide"]) == (
        "Order 1",
        {"n": 1},
        "ask",
        False,
    )
    path = f"/bridge/approvals/{first['id']}"
    refused = reader.post(f"{path}/decision", json={"decision": "approved"})
    assert (refused.status_code, refused.json()["code"]) == (403, "not-allowed")
    assert admin.get(path).json()["may_decide"] is True
    decided = admin.post(f"{path}/decision", json={"decision": "approved", "comment": "fine"})
    assert (decided.status_code, decided.json()["message"]) == (200, first["message"])
    assert admin.post(f"{path}/decision", json={"decision": "rejected"}).status_code == 404
    assert [each["id"] for each in reader.get("/bridge/approvals").json()] == [second["id"]]
    waiting.work()
    shown = reader.get(f"/bridge/messages/{first['message']}").json()
    assert shown["state"] == "done"
    [entry] = [entry for entry in shown["trace"] if "decided_at" in entry]
    assert (entry["by"], entry["comment"]) == (admin.name, "fine")
    [part] = reader.get(f"/bridge/messages/{second['message']}").json()["parts"]
    assert (part["state"], part["waits_for"]) == ("waiting", "person")


def test_pages_of_what_began_to_wait_at_one_moment_show_each_once(
    organization: Organization, keyring: Keyring, sign_in: SignIn
) -> None:
    world = World(organization, keyring)
    world.deploy(
        "ask", "{id: each, type: split}", "{id: ask, type: approval, next: {approved: end, rejected: end}}"
    )
    message = world.accept("ask", list(range(7)))
    world.work()
    reader = sign_in({organization: "customer_user"})
    seen: list[str] = []
    last: dict[str, str] = {}
    while page := reader.get("/bridge/approvals", params={"limit": "3", **last}).json():
        seen += [each["part"] for each in page]
        last = {"after": page[-1]["id"]}
    assert seen == [f"{message}.{n}" for n in range(1, 8)]


def test_a_message_at_the_end_of_a_chain_of_calls_has_its_address(
    organization: Organization, keyring: Keyring, sign_in: SignIn
) -> None:
    world = World(organization, keyring)
    step = "s" * 64
    world.deploy("last", "{id: ask, type: approval, next: {approved: end, rejected: end}}")
    for called, flow in (("last", "third"), ("third", "second"), ("second", "first")):
        world.deploy(flow, f"{{id: {step}, type: subflow, config: {{flow: {called}}}}}")
    message = world.accept("first", {})
    world.work()
    reader, writer = sign_in({organization: "customer_user"}), sign_in({organization: "customer_admin"})
    [waiting] = reader.get("/bridge/approvals").json()
    assert waiting["message"] == ".".join([message, step, step, step])
    assert reader.get(f"/bridge/messages/{waiting['message']}").json()["state"] == "handed_over"
    query = {"messages": [waiting["message"]]}
    assert writer.post("/bridge/replays/preview", json={"query": query}).status_code == 200


def test_another_organizations_approvals_are_not_there(
    waiting: World, make_organization: Callable[[], Organization], sign_in: SignIn
) -> None:
    [approval, _] = [str(each) for each in _ids(waiting)]
    stranger = sign_in({make_organization(): "customer_admin"})
    assert stranger.get("/bridge/approvals").json() == []
    for response in (
        stranger.get(f"/bridge/approvals/{approval}"),
        stranger.post(f"/bridge/approvals/{approval}/decision", json={"decision": "approved"}),
    ):
        assert (response.status_code, response.json()["code"]) == (404, "not-found")


def test_what_is_no_decision_is_refused(waiting: World, organization: Organization, sign_in: SignIn) -> None:
    [approval, _] = _ids(waiting)
    admin = sign_in({organization: "customer_admin"})
    for body in ({}, {"decision": "maybe"}, {"decision": "approved", "comment": "x" * 2001}):
        response = admin.post(f"/bridge/approvals/{approval}/decision", json=body)
        assert (response.status_code, response.json()["code"]) == (422, "configuration-error")


def _ids(world: World) -> list[object]:
    from continuitybridge.inbox import waits

    return [each.approval_id for each in waits.list_approvals(world.organization_id, keys=world.keyring)]
