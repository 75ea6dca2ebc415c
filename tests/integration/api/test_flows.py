"""Flows, messages, endpoints and node types over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import jsonschema
import pytest

from continuitybridge import database
from continuitybridge.organizations import Organization

from .conftest import Deployed, SignIn, User, flow_text


@pytest.fixture
def admin(sign_in: SignIn, organization: Organization) -> User:
    return sign_in({organization: "customer_admin"})


def deploy(user: User, organization: Organization, text: str, status: int = 201, **body: Any) -> dict[str, Any]:
    response = user.post(f"/bridge/flows/{organization.slug}/dev", json={"source": text, **body})
    assert response.status_code == status, response.text
    found: dict[str, Any] = response.json()
    return found


def test_a_flow_is_deployed_shown_and_rolled_back(admin: User, organization: Organization) -> None:
    slug = organization.slug
    first = deploy(admin, organization, flow_text())
    assert first["changed"]
    assert first["secrets"]["orders"]
    assert first["deployed_by"] == admin.name
    again = deploy(admin, organization, flow_text(), status=200)
    assert not again["changed"]
    assert again["secrets"] == {}
    deploy(admin, organization, flow_text(version="1.1.0", description="newer"))
    shown = admin.get(f"/bridge/flows/{slug}/dev/orders").json()
    assert shown["version"] == "1.1.0"
    assert [h["action"] for h in shown["history"]] == ["deploy", "deploy"]
    found = admin.get(f"/bridge/flows/{slug}/dev/orders/versions").json()
    assert {v["version"]: v["environments"] for v in found} == {"1.1.0": ["dev"], "1.0.0": []}
    source = admin.get(f"/bridge/flows/{slug}/dev/orders/versions/1.0.0").json()["source"]
    assert json.loads(source) == json.loads(flow_text())
    diff = admin.get(f"/bridge/flows/{slug}/dev/orders/diff", params={"old": "1.0.0", "new": "1.1.0"}).json()
    assert "newer" in diff["diff"]
    back = admin.post(f"/bridge/flows/{slug}/dev/orders/rollback").json()
    assert back["version"] == "1.0.0"
    forward = admin.post(f"/bridge/flows/{slug}/dev/orders/rollback", json={"to": "1.1.0"}).json()
    assert forward["version"] == "1.1.0"
    assert [f["flow"] for f in admin.get("/bridge/flows").json()] == ["orders"]
    assert admin.client.delete(f"/bridge/flows/{slug}/dev/orders").json()["status"] == "removed"
    assert admin.get("/bridge/flows").json() == []
    assert admin.get(f"/bridge/flows/{slug}/dev/orders").status_code == 404


def test_other_content_under_an_existing_version_is_refused_with_the_difference(
    admin: User, organization: Organization
) -> None:
    deploy(admin, organization, flow_text())
    refused = deploy(admin, organization, flow_text(description="changed"), status=409)
    assert refused["code"] == "conflict"
    assert "changed" in refused["diff"]


def test_a_slug_of_another_flow_is_refused_and_the_flow_is_named(admin: User, organization: Organization) -> None:
    deploy(admin, organization, flow_text("orders"))
    refused = deploy(admin, organization, flow_text("returns"), status=409)
    assert refused["flow"] == "orders"
    assert [f["flow"] for f in admin.get("/bridge/flows").json()] == ["orders"], "nothing of it is left"


def test_a_wrong_flow_is_refused_with_every_problem_and_where_it_stands(
    admin: User, organization: Organization
) -> None:
    text = (
        "flow: bad\nversion: one\ntriggers:\n  - {id: in, type: manual_triger}\n"
        "steps:\n  - {id: a, type: jq, config: {}}\n"
    )
    refused = deploy(admin, organization, text, status=422)
    assert refused["code"] == "configuration-error"
    assert len(refused["problems"]) >= 3
    assert all({"line", "field", "message"} <= problem.keys() for problem in refused["problems"])
    assert any("manual_trigger" in str(problem) for problem in refused["problems"])


@pytest.mark.parametrize(
    "source", ["/etc/passwd", "file:///etc/passwd", "../pyproject.toml", "[]", "{", "\x00", "a: &a [*a]"]
)
def test_a_source_is_text_and_never_a_path(admin: User, organization: Organization, source: str) -> None:
    refused = admin.post(f"/bridge/flows/{organization.slug}/dev", json={"source": source})
    assert refused.status_code == 422
    assert "root:" not in refused.text


def test_an_environment_the_organization_does_not_have_is_404(admin: User, organization: Organization) -> None:
    response = admin.post(f"/bridge/flows/{organization.slug}/moon", json={"source": flow_text()})
    assert response.status_code == 404


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"source": 1}', b'{"source": "x", "more": 1}', b"\xff", b'{"source": ""}'],
)
def test_a_body_that_is_not_the_declared_one_is_422_and_says_where(
    admin: User, organization: Organization, content: bytes
) -> None:
    response = admin.post(
        f"/bridge/flows/{organization.slug}/dev", content=content, headers={"content-type": "application/json"}
    )
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"


def test_a_body_above_the_limit_is_413_declared_or_streamed(admin: User, organization: Organization) -> None:
    path = f"/bridge/flows/{organization.slug}/dev"
    big = b'{"source": "' + b"x" * (9 * 1024 * 1024) + b'"}'
    assert admin.post(path, content=big, headers={"content-type": "application/json"}).status_code == 413
    chunks = (big[start : start + 65536] for start in range(0, len(big), 65536))
    assert admin.post(path, content=chunks, headers={"content-type": "application/json"}).status_code == 413


def test_a_method_that_an_address_does_not_take_is_405(admin: User) -> None:
    response = admin.client.request("PATCH", "/bridge/me")
    assert response.status_code == 405
    assert response.headers["allow"] == "GET"
    assert response.headers["content-type"] == "application/problem+json"


def test_an_unknown_address_is_404_for_a_user(admin: User) -> None:
    response = admin.get("/bridge/nothing")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


def test_messages_come_in_pages_newest_first_with_filters(
    sign_in: SignIn, deployed: Callable[[], Deployed], stranger: httpx.Client
) -> None:
    mine = deployed()
    user = sign_in({mine.organization: "customer_user"})
    ids = [mine.send(stranger, f'{{"n": {n}}}'.encode()) for n in range(7)]
    found: list[str] = []
    cursor: str | None = None
    pages = 0
    while True:
        params = {"limit": 3} | ({"cursor": cursor} if cursor else {})
        page = user.get("/bridge/messages", params=params).json()
        found += [m["id"] for m in page["messages"]]
        pages += 1
        cursor = page["cursor"]
        if cursor is None:
            break
    assert found == ids[::-1]
    assert pages == 3
    [first, *_] = user.get("/bridge/messages", params={"limit": 1}).json()["messages"]
    assert first["state"] == "accepted"
    assert first["flow"] == "orders"
    assert first["endpoint"] == "orders"
    assert first["organization"] == mine.organization.slug

    def count(**params: str) -> int:
        response = user.get("/bridge/messages", params=params)
        assert response.status_code == 200, response.text
        return len(response.json()["messages"])

    assert count(flow="orders", environment="dev", state="accepted", source="webhook") == 7
    assert count(flow="other") == count(environment="prod") == count(state="done") == count(source="api") == 0
    assert count(since=first["accepted_at"]) == 1
    assert count(until=first["accepted_at"]) == 6
    for wrong in (
        {"limit": 0},
        {"limit": 501},
        {"cursor": "!"},
        {"state": "lost"},
        {"since": "soon"},
        {"key": "x"},
    ):
        assert user.get("/bridge/messages", params=wrong).status_code == 422, wrong


def test_settled_messages_are_listed_once_and_found_by_their_keys(
    sign_in: SignIn, deployed: Callable[[], Deployed], stranger: httpx.Client
) -> None:
    mine = deployed()
    user = sign_in({mine.organization: "customer_user"})
    owner = mine.organization.organization_id
    ids = [mine.send(stranger) for _ in range(3)]
    with database.tenant(owner) as tables:
        for message_id, keys in zip(ids, ('{"po": "4711"}', '{"po": 4711}', '{"po": "4712"}'), strict=True):
            tables.execute("UPDATE bridge.messages SET keys = %s::jsonb WHERE message_id = %s", (keys, message_id))
    settle(owner, ids[0], replays=0)
    settle(owner, ids[0], replays=1)
    settle(owner, ids[2], replays=0)
    with database.tenant(owner) as tables:
        tables.execute("DELETE FROM bridge.messages WHERE message_id = %s", (ids[2],))

    def listed(**params: str) -> dict[str, str]:
        found = user.get("/bridge/messages", params=params).json()["messages"]
        assert len({m["id"] for m in found}) == len(found)
        return {m["id"]: m["state"] for m in found}

    assert listed() == {ids[0]: "accepted", ids[1]: "accepted", ids[2]: "done"}
    assert listed(state="done") == {ids[2]: "done"}
    assert listed(key="po:4711").keys() == {ids[0], ids[1]}
    assert listed(key="po=4712").keys() == {ids[2]}
    assert user.get(f"/bridge/messages/{ids[2]}").json()["state"] == "done"


def settle(organization_id: Any, message_id: str, replays: int) -> None:
    """A record of a settlement, as settling leaves it."""
    with database.tenant(organization_id) as tables:
        tables.execute(
            "INSERT INTO bridge.settled_messages (organization_id, message_id, environment, flow, version, source,"
            " endpoint, result, payload, content_type, size_bytes, keys, generation, replays, attempts,"
            " retention_class, placement, accepted_at)"
            " SELECT organization_id, message_id, environment, flow, version, source, endpoint, 'done', payload,"
            " content_type, size_bytes, keys, generation, %s, 1, retention_class, retention_class, accepted_at"
            " FROM bridge.messages WHERE message_id = %s",
            (replays, message_id),
        )


def test_a_message_tells_where_it_is_and_can_be_replayed_once_it_is_settled(
    sign_in: SignIn, deployed: Callable[[], Deployed], stranger: httpx.Client
) -> None:
    mine = deployed()
    user = sign_in({mine.organization: "customer_admin"})
    message_id = mine.send(stranger)
    path = f"/bridge/messages/{message_id}"
    shown = user.get(path).json()
    assert (shown["id"], shown["state"], shown["version"], shown["failures"]) == (
        message_id,
        "accepted",
        "1.0.0",
        [],
    )
    refused = user.post(f"{path}/replay")
    assert refused.status_code == 409, "it is under way"
    settle(mine.organization.organization_id, message_id, replays=0)
    with database.tenant(mine.organization.organization_id) as tables:
        tables.execute("DELETE FROM bridge.messages WHERE message_id = %s", (message_id,))
    assert user.get(path).json()["state"] == "done"
    assert user.post(f"{path}/replay", json={"start": "failure"}).status_code == 409
    assert user.post(f"{path}/replay", json={"version": "9.9.9"}).status_code == 409
    assert user.post(f"{path}/replay", json={"start": "middle"}).status_code == 422
    replayed = user.post(f"{path}/replay", json={"version": "newest"})
    assert replayed.status_code == 202
    assert replayed.json() == {"id": message_id, "version": "1.0.0", "generation": 1}
    again = user.get(path).json()
    assert (again["state"], again["replays"]) == ("accepted", 1)
    assert again["trace"][-1]["replayed_by"] == user.name


@pytest.mark.parametrize("message_id", ["nothing", "%00", "a%20b", "x" * 300, "..%2f..%2fme", "🦀"])
def test_an_id_that_is_none_is_refused_quietly(admin: User, message_id: str) -> None:
    assert admin.get(f"/bridge/messages/{message_id}").status_code in (404, 422)


def test_endpoints_are_shown_without_secrets_rotated_and_switched(
    sign_in: SignIn, deployed: Callable[[], Deployed], stranger: httpx.Client
) -> None:
    mine = deployed()
    slug = mine.organization.slug
    user = sign_in({mine.organization: "consultant"})
    [listed] = user.get("/bridge/endpoints").json()
    assert listed["url"].endswith(f"/bridge/hooks/{slug}/dev/orders")
    assert listed["settings"]["reply"] == "accepted"
    assert mine.secret not in json.dumps(listed)
    assert user.get(f"/bridge/endpoints/{slug}/dev/orders").json() == listed
    path = f"/bridge/endpoints/{slug}/dev/orders"
    weak = user.post(f"{path}/rotate-secret", json={"secret": "short"})
    assert weak.status_code == 422
    assert "short" not in weak.text.replace("shorter", "")
    rotated = user.post(f"{path}/rotate-secret", json={"overlap_s": 0}).json()
    assert rotated["secret"]
    hook = f"/bridge/hooks/{slug}/dev/orders"
    headers = {"content-type": "application/json"}

    def sent(secret: str) -> int:
        return stranger.post(hook, content=b"{}", headers={**headers, "x-api-key": secret}).status_code

    eventually(lambda: sent(rotated["secret"]) == 202)
    assert sent(mine.secret) == 401
    assert user.post(f"{path}/disable").json()["status"] == "disabled"
    eventually(lambda: sent(rotated["secret"]) == 410)
    assert user.post(f"{path}/enable").json()["status"] == "active"
    eventually(lambda: sent(rotated["secret"]) == 202)
    assert user.post(f"/bridge/endpoints/{slug}/dev/other/disable").status_code == 404


def eventually(true: Callable[[], bool], within_s: float = 10.0) -> None:
    import time

    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not become so"
        time.sleep(0.02)


def test_node_types_are_listed_shown_and_give_a_schema_that_their_examples_meet(sign_in: SignIn) -> None:
    user = sign_in()
    listed = user.get("/bridge/node-types").json()
    assert {"webhook_trigger", "jq", "xslt", "http_request"} <= {each["type"] for each in listed}
    for each in listed:
        shown = user.get(f"/bridge/node-types/{each['type']}").json()
        assert shown["documentation"]
        assert shown["examples"], each["type"]
        schema = user.get(f"/bridge/node-types/{each['type']}/schema").json()
        assert schema == shown["config_schema"]
        jsonschema.Draft202012Validator.check_schema(schema)
        for example in shown["examples"]:
            jsonschema.Draft202012Validator(schema).validate(example["config"])
    missing = user.get("/bridge/node-types/jqq")
    assert missing.status_code == 404
    assert "jq" in missing.json()["nearest"]
