"""Nobody sees what is not his: every route, by walking the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI

from continuitybridge import api, api_keys, invitations, organizations, secrets
from continuitybridge.inbox import holds, replays
from continuitybridge.organizations import Organization
from continuitybridge.organizations.matrix import EXTENSION, MATRIX, Action
from continuitybridge.settings import Settings

from .conftest import Deployed, Server, SignIn

PUBLIC = {
    ("post", "/bridge/hooks/{organization}/{environment}/{slug}"),
    ("post", "/api/webhook/{slug}"),
    ("get", "/api/health"),
    ("get", "/bridge/health/live"),
}


BODIES = {
    "members_set_second_factor_rule": {"required": False},
    "flows_deploy": {"source": "flow: x"},
    "approvals_decide": {"decision": "approved"},
    "api_keys_create_api_key": {"name": "shop"},
    "me_begin_second_factor": {"password": "x"},
    "me_confirm_second_factor": {"code": "000000"},
    "me_remove_second_factor": {"password": "x", "code": "000000"},
    "guard_block": {"address": "192.0.2.1"},
    "guard_lift": {"address": "192.0.2.1"},
    "guard_block_on_platform": {"address": "192.0.2.2"},
    "guard_lift_on_platform": {"address": "192.0.2.2"},
    "guard_set_policy": {},
    "guard_set_limits": {},
    "invitations_invite": {"email": "bert@acme.example"},
    "members_set_role": {"role": "customer_user"},
    "organizations_onboard": {"slug": "1", "name": "No slug", "admin_email": "anna@acme.example"},
    "organizations_suspend": {},
    "systems_put_ecosystem": {"kind": "wms", "name": "Warehouse"},
    "systems_put_system": {"ecosystem": "warehouse", "name": "Warehouse"},
    "systems_connect": {"system": None},
    "organizations_delete": {"confirm": "nobody", "export": False},
    "organizations_set_tier": {"tier": "enterprise"},
    "organizations_agree_quota": {"allowed": 1000},
    "secrets_set_secret": {"type": "custom", "value": {"pin": "x"}},
    "secrets_roll_back_secret": {"version": 1},
    "replays_preview_replay": {"query": {}},
    "replays_start_replay": {"query": {}},
}
"""What operations need that cannot do without."""

UNKNOWN = "01980000-0000-7000-8000-000000000000"


def replay_job(deployed: Deployed, message_id: str) -> str:
    """A replay of the message, which is settled for it."""
    owner = deployed.organization.organization_id
    holds.cancel(owner, "dev", "orders", by="test")
    query = replays.Query(states=("skipped",), message_ids=(message_id,))
    return str(replays.start(owner, query, by="test").job_id)


def api_key(deployed: Deployed) -> str:
    """The id of one of its API keys."""
    owner = deployed.organization.organization_id
    return str(api_keys.create(owner, "program", user_name="test", by="test").shown.key_id)


def member(deployed: Deployed) -> str:
    """A customer user of it."""
    name = f"member-{uuid4().hex[:8]}"
    organizations.add_member(deployed.organization.organization_id, name, "customer_user")
    return name


def invitation(deployed: Deployed) -> str:
    """The id of an open invitation into it."""
    made = invitations.invite(
        deployed.organization.organization_id, "anna@acme.example", "customer_user", by="test"
    )
    return str(made.shown.invitation_id)


@pytest.fixture
def document(sign_in: SignIn) -> dict[str, Any]:
    response = sign_in().get("/bridge/openapi.json")
    assert response.status_code == 200
    found: dict[str, Any] = response.json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method, path, operation


def filled(path: str, values: dict[str, str]) -> str:
    return re.sub(r"{(\w+)}", lambda found: values[found.group(1)], path)


def test_every_route_but_intake_and_liveness_refuses_a_stranger(
    document: dict[str, Any], stranger: httpx.Client
) -> None:
    values = dict.fromkeys(
        [
            "organization",
            "environment",
            "flow",
            "slug",
            "id",
            "type",
            "version",
            "name",
            "job",
            "approval",
            "key",
            "resource",
            "user",
            "invitation",
            "connect",
        ],
        "x",
    )
    seen = set()
    for method, path, operation in operations(document):
        if (method, path) in PUBLIC:
            assert operation["security"] == [] or "hooks" in operation["operationId"]
            continue
        seen.add(path)
        for headers in (
            {},
            {"authorization": "Bearer forged"},
            {"authorization": "Basic eDp5"},
            {"cookie": "_token=x"},
        ):
            response = stranger.request(method, filled(path, values), headers=headers, content=b"{not json")
            assert response.status_code == 401, (method, path)
            assert response.headers["content-type"] == "application/problem+json"
            assert response.json()["code"] == "not-authenticated"
            assert response.headers["www-authenticate"]
        assert operation["security"], (method, path)
        assert "401" in operation["responses"]
    assert len(seen) > 15


def test_an_address_that_does_not_exist_is_refused_to_a_stranger_like_any_other(stranger: httpx.Client) -> None:
    for method in ("GET", "POST", "PATCH", "OPTIONS", "HEAD", "TRACE"):
        for path in (
            "/bridge/",
            "/bridge/nothing",
            "/bridge/health",
            "/bridge/health/live/",
            "/bridge//me",
        ):
            assert stranger.request(method, path).status_code == 401, (method, path)


def test_the_pages_for_signing_in_are_found_without_a_slash_at_the_end(stranger: httpx.Client) -> None:
    answer = stranger.get("/bridge/sign-in", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "/bridge/sign-in/")
    assert stranger.get("/bridge/sign-in/static/sign_in.css").status_code == 200


def test_the_document_describes_every_route_that_is_served(document: dict[str, Any], settings: Settings) -> None:
    async def nobody(_: object) -> None:
        return None

    described = {(method, path) for method, path, _ in operations(document)}
    served = set()
    for _, prefix, app in api.mounts(nobody, settings):
        if isinstance(app, FastAPI):
            for route in app.routes:
                for method in getattr(route, "methods", ()):
                    if method != "HEAD":
                        served.add((method.lower(), prefix + getattr(route, "path", "")))
    assert served == described - {(method, path) for method, path in PUBLIC if path != "/bridge/health/live"}


def test_a_body_takes_the_properties_that_it_declares_and_no_others(
    document: dict[str, Any], sign_in: SignIn
) -> None:
    """No mass assignment: what is not declared is refused, not passed over."""
    user = sign_in(superadmin=True)
    ids = dict.fromkeys(("id", "job", "approval", "key"), UNKNOWN)
    tried = 0
    for method, path, operation in operations(document):
        if (method, path) in PUBLIC or "requestBody" not in operation:
            continue
        body = {**BODIES.get(operation["operationId"], {}), "organization_id": UNKNOWN}
        values = {**dict.fromkeys(re.findall(r"{(\w+)}", path), "x"), **ids}
        answer = user.client.request(method, filled(path, values), json=body)
        assert answer.status_code == 422, (path, answer.text)
        assert "body.organization_id" in {each["field"] for each in answer.json()["problems"]}, (path, answer.text)
        tried += 1
    assert tried > 10


def test_the_document_names_each_answer_of_intake_and_the_ways_to_prove_who_one_is(
    document: dict[str, Any],
) -> None:
    hook = document["paths"]["/bridge/hooks/{organization}/{environment}/{slug}"]["post"]
    assert {"202", "401", "404", "405", "409", "410", "413", "415", "422", "429", "503"} <= hook[
        "responses"
    ].keys()
    schemes = document["components"]["securitySchemes"]
    for _, _, operation in operations(document):
        for alternative in operation["security"]:
            assert alternative.keys() <= schemes.keys()
    assert "application/problem+json" in hook["responses"]["401"]["content"]
    references = set(re.findall(r'"\$ref": ?"#/components/schemas/(\w+)"', str(document).replace("'", '"')))
    assert references <= document["components"]["schemas"].keys()


def test_the_answers_in_the_page_for_senders_are_those_of_the_document(document: dict[str, Any]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "webhooks.md").read_text()
    documented = set(re.findall(r"^\| (\d{3}) \|", page, re.MULTILINE))
    hook = document["paths"]["/bridge/hooks/{organization}/{environment}/{slug}"]["post"]
    assert documented == hook["responses"].keys() - {"500"}


def test_another_organizations_things_are_answered_like_what_does_not_exist(
    document: dict[str, Any],
    sign_in: SignIn,
    deployed: Callable[[], Deployed],
    stranger: httpx.Client,
) -> None:
    mine, theirs = deployed(), deployed()
    their_message = theirs.send(stranger)
    their_job = replay_job(theirs, their_message)
    user = sign_in({mine.organization: "customer_admin"})
    real = {
        "organization": theirs.organization.slug,
        "environment": "dev",
        "flow": "orders",
        "slug": "orders",
        "id": their_message,
        "job": their_job,
        "approval": UNKNOWN,  # one that waits: see test_approvals
        "key": api_key(theirs),
        "connect": UNKNOWN,
        "version": "1.0.0",
        "type": "jq",
        "name": "warehouse",
        "user": member(theirs),
        "invitation": invitation(theirs),
        "resource": "flows",
    }
    unknown = dict.fromkeys(("id", "job", "key", "invitation"), UNKNOWN)
    invented = {**real, **unknown, "organization": "nobody-at-all", "user": "nobody"}
    tried = 0
    for method, path, operation in operations(document):
        parameters = {parameter["name"] for parameter in operation.get("parameters", [])}
        if (method, path) in PUBLIC or not parameters & {"organization", "id", "approval"}:
            continue
        answers = []
        for values in (real, invented):
            query = {"organization": values["organization"]} if "{organization}" not in path else {}
            query |= {"old": "1.0.0", "new": "1.0.0"} if path.endswith("/diff") else {}
            call = {"json": BODIES.get(operation["operationId"], {})} if "requestBody" in operation else {}
            response = user.client.request(method, filled(path, values), params=query, **call)
            answers.append((response.status_code, {**response.json(), "instance": "", "detail": "", "value": ""}))
        assert answers[0][0] == 404, (method, path, answers[0])
        assert answers[0] == answers[1], (method, path)
        tried += 1
    assert tried > 12
    for values in (real, invented):
        assert user.get(f"/bridge/messages/{values['id']}").status_code == 404
        assert user.post(f"/bridge/messages/{values['id']}/replay").status_code == 404


def test_lists_show_ones_own_organizations_only(
    sign_in: SignIn, deployed: Callable[[], Deployed], stranger: httpx.Client
) -> None:
    mine, theirs = deployed(), deployed()
    my_message, their_message = mine.send(stranger), theirs.send(stranger)
    user = sign_in({mine.organization: "customer_user"})
    for path in ("/bridge/messages", "/bridge/flows", "/bridge/endpoints", "/bridge/me"):
        text = user.get(path).text
        assert theirs.organization.slug not in text
        assert their_message not in text
    assert [m["id"] for m in user.get("/bridge/messages").json()["messages"]] == [my_message]


def test_a_customer_user_reads_and_changes_nothing(
    document: dict[str, Any], sign_in: SignIn, deployed: Callable[[], Deployed], stranger: httpx.Client
) -> None:
    mine = deployed()
    message_id = mine.send(stranger)
    secrets.put(mine.organization.organization_id, "dev", "warehouse", "custom", {"pin": "x"}, "test")
    values = {
        "organization": mine.organization.slug,
        "environment": "dev",
        "flow": "orders",
        "slug": "orders",
        "id": message_id,
        "job": replay_job(mine, message_id),
        "approval": UNKNOWN,
        "key": api_key(mine),
        "connect": UNKNOWN,
        "version": "1.0.0",
        "type": "jq",
        "name": "warehouse",
        "user": member(mine),
        "invitation": invitation(mine),
        "resource": "flows",
    }
    reader = sign_in({mine.organization: "customer_user"})
    for method, path, operation in operations(document):
        if (method, path) in PUBLIC or "{" not in path:
            continue
        call = {"json": BODIES.get(operation["operationId"], {})} if "requestBody" in operation else {}
        query = {"old": "1.0.0", "new": "1.0.0"} if path.endswith("/diff") else {}
        response = reader.client.request(method, filled(path, values), params=query, **call)
        # Whether an approval is there comes before what one may do with it.
        changes = method != "get" and operation["operationId"] != "organizations_choose"
        reads = not changes and "customer_user" in MATRIX[Action(operation[EXTENSION])].roles
        expected = 404 if "{approval}" in path else 200 if reads else 403
        assert response.status_code == expected, (method, path, response.text)


@pytest.mark.parametrize("role", ["customer_admin", "consultant"])
def test_admins_and_consultants_change_what_is_theirs(
    sign_in: SignIn, deployed: Callable[[], Deployed], role: str
) -> None:
    mine = deployed()
    user = sign_in({mine.organization: role})
    done = user.post(f"/bridge/flows/{mine.organization.slug}/dev/orders/disable")
    assert done.status_code == 200
    assert done.json()["status"] == "disabled"
    assert done.json()["deployed_by"] == user.name


def test_a_superadmin_sees_every_organization_and_says_which(
    sign_in: SignIn, deployed: Callable[[], Deployed], stranger: httpx.Client
) -> None:
    first, second = deployed(), deployed()
    message = first.send(stranger)
    admin = sign_in(superadmin=True)
    slugs = {each["slug"] for each in admin.get("/bridge/me").json()["organizations"]}
    assert {first.organization.slug, second.organization.slug} <= slugs
    assert admin.get("/bridge/messages").status_code == 422
    listed = admin.get("/bridge/messages", params={"organization": first.organization.slug}).json()
    assert [m["id"] for m in listed["messages"]] == [message]
    assert admin.get(f"/bridge/messages/{message}").json()["organization"] == first.organization.slug


def test_a_member_of_two_organizations_says_which_where_it_matters(
    sign_in: SignIn, deployed: Callable[[], Deployed], stranger: httpx.Client
) -> None:
    first, second = deployed(), deployed()
    message = second.send(stranger)
    user = sign_in({first.organization: "consultant", second.organization: "customer_user"})
    refused = user.get("/bridge/flows")
    assert refused.status_code == 422
    assert sorted(refused.json()["valid"]) == sorted([first.organization.slug, second.organization.slug])
    assert user.get(f"/bridge/messages/{message}").json()["organization"] == second.organization.slug
    assert user.post(f"/bridge/messages/{message}/replay").status_code == 403


def test_who_loses_a_membership_sees_nothing_at_the_next_request(
    sign_in: SignIn, deployed: Callable[[], Deployed]
) -> None:
    from continuitybridge import organizations

    mine = deployed()
    user = sign_in({mine.organization: "customer_admin"})
    path = f"/bridge/flows/{mine.organization.slug}/dev/orders"
    assert user.get(path).status_code == 200
    organizations.remove_member(mine.organization.organization_id, user.name)
    assert user.get(path).status_code == 404


def test_a_request_by_cookie_changes_something_only_from_our_own_pages(
    server: Server, stranger: httpx.Client, deployed: Callable[[], Deployed]
) -> None:
    from continuitybridge import organizations

    mine = deployed()
    name = f"user-{mine.organization.slug}"
    organizations.add_member(mine.organization.organization_id, name, "customer_admin")
    server.users[f"cookie {name}"] = api.SignedIn(name, by_cookie=True)
    cookie = {"cookie": f"_token={name}"}
    path = f"/bridge/flows/{mine.organization.slug}/dev/orders"
    host = server.url.removeprefix("http://")
    assert stranger.get(path, headers=cookie).status_code == 200
    for foreign in (
        {},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": f"https://{host}.evil.example"},
        {"sec-fetch-site": "cross-site", "origin": server.url},
        {"sec-fetch-site": "same-site"},
    ):
        assert stranger.post(f"{path}/disable", headers={**cookie, **foreign}).status_code == 403
    for own in ({"origin": server.url}, {"sec-fetch-site": "same-origin"}):
        assert stranger.post(f"{path}/disable", headers={**cookie, **own}).status_code == 200


def test_liveness_is_public_at_its_new_and_its_old_address(stranger: httpx.Client) -> None:
    for path in ("/bridge/health/live", "/api/health"):
        assert stranger.get(path).json() == {"status": "ok"}
    assert stranger.post("/api/health").status_code == 405
    assert stranger.get("/api/health/more").status_code == 404
    assert stranger.head("/api/health").content == b""


def test_readiness_says_what_works(sign_in: SignIn) -> None:
    assert sign_in().get("/bridge/health/ready").json() == {
        "status": "ok",
        "checks": {"database": "ok", "intake": "ok"},
    }


def test_intake_mounted_beside_the_api_takes_messages_and_answers_problems(
    stranger: httpx.Client, deployed: Callable[[], Deployed]
) -> None:
    mine = deployed()
    path = f"/bridge/hooks/{mine.organization.slug}/dev/orders"
    headers = {"content-type": "application/json", "x-api-key": mine.secret}
    assert stranger.post(path, content=b"{}", headers=headers).status_code == 202
    assert stranger.post(path, content=b"{}").status_code == 415
    assert stranger.post(path, content=b"{}", headers={"content-type": "application/json"}).status_code == 401
    assert stranger.get(path).status_code == 405
    assert stranger.post(f"{path}/x", content=b"{}", headers=headers).status_code == 404
    assert stranger.post("/api/webhook/orders", content=b"{}", headers=headers).status_code == 404
    assert stranger.post("/bridge/hooks", content=b"{}", headers=headers).status_code in (401, 404)


def test_a_user_without_an_organization_sees_no_organization(sign_in: SignIn, organization: Organization) -> None:
    user = sign_in()
    assert user.get("/bridge/me").json()["organizations"] == []
    assert user.get("/bridge/flows").status_code == 422
    assert user.get("/bridge/flows", params={"organization": organization.slug}).status_code == 404
