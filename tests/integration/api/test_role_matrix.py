"""Role x route x organization, cell by cell: the requests are made from the OpenAPI document, so that a route
without a row here fails."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from fastapi import FastAPI

from continuitybridge import api, api_keys, secrets
from continuitybridge.api.app import _every_route_has_its_action
from continuitybridge.cli import bridge
from continuitybridge.errors import ConfigurationError
from continuitybridge.organizations import matrix

from .conftest import Deployed, Server, SignIn, User, serving
from .test_access import BODIES, PUBLIC, UNKNOWN, api_key, filled, invitation, member, operations, replay_job

ALL, WRITERS, ADMIN = "SA CON CA CU", "SA CON CA", "SA"
ROLES = {"SA": "superadmin", "CON": "consultant", "CA": "customer_admin", "CU": "customer_user"}

EXPECTED = {
    "reference.read": ALL,
    "self.read": ALL,
    "self.manage": ALL,
    "health.read": ALL,
    "flow.read": ALL,
    "flow.deploy": WRITERS,
    "flow.hold": WRITERS,
    "dag.read": ALL,
    "dag.run": WRITERS,
    "message.read": ALL,
    "message.replay": WRITERS,
    "approval.read": ALL,
    "approval.decide": WRITERS,
    "endpoint.read": ALL,
    "endpoint.change": WRITERS,
    "destination.read": ALL,
    "destination.change": WRITERS,
    "secret.read": ALL,
    "secret.change": WRITERS,
    "token.read": ALL,
    "token.change": WRITERS,
    "api_key.manage": WRITERS,
    "system.read": ALL,
    "system.change": WRITERS,
    "member.read": WRITERS,
    "member.manage": WRITERS,
    "member.protect": "SA CA",
    "audit.read": WRITERS,
    "guard.read": WRITERS,
    "guard.change": WRITERS,
    "guard.limit": ADMIN,
    "guard.platform": ADMIN,
    "quota.read": ALL,
    "quota.change": ADMIN,
    "organization.read": ALL,
    "organization.change": ADMIN,
    "organization.manage": ADMIN,
    "airflow.manage": ADMIN,
}
"""The matrix once more, in other words: who changes a right has to say it twice."""

OPERATIONS = {
    "self.manage": {
        "me_end_sessions",
        *(f"me_{verb}_second_factor" for verb in ("begin", "confirm", "remove")),
    },
    "flow.deploy": {"flows_deploy", "flows_rollback", "flows_disable", "flows_enable", "flows_remove"},
    "flow.hold": {f"flows_{verb}_flow" for verb in ("pause", "drain", "resume", "cancel")},
    "message.replay": {
        *("messages_replay_message", "replays_preview_replay", "replays_start_replay", "replays_cancel_replay"),
    },
    "approval.decide": {"approvals_decide"},
    "endpoint.change": {"endpoints_rotate_secret", "endpoints_disable", "endpoints_enable"},
    "destination.change": {
        f"destinations_{verb}_destination" for verb in ("configure", "pause", "drain", "resume", "cancel")
    },
    "secret.change": {
        *("secrets_set_secret", "secrets_roll_back_secret", "secrets_disable_secret", "secrets_enable_secret"),
        *("secrets_try_secret", "secrets_remove_secret"),
    },
    "token.change": {
        *(f"tokens_{verb}" for verb in ("refresh_token", "revoke_token", "connect_account", "poll_connect")),
        "tokens_callback",
    },
    "api_key.manage": {f"api_keys_{verb}" for verb in ("list_api_keys", "create_api_key", "revoke_api_key")},
    "guard.read": {"guard_list_blocks", "guard_policy"},
    "guard.change": {"guard_block", "guard_lift", "guard_set_policy"},
    "guard.limit": {"guard_set_limits"},
    "guard.platform": {"guard_list_platform_blocks", "guard_block_on_platform", "guard_lift_on_platform"},
    "system.change": {
        *("systems_put_ecosystem", "systems_remove_ecosystem", "systems_put_system", "systems_remove_system"),
        "systems_connect",
    },
    "member.read": {"members_list_members", "members_get_second_factor_rule", "invitations_list_invitations"},
    "member.protect": {"members_set_second_factor_rule"},
    "member.manage": {
        *("members_set_role", "members_remove_member", "invitations_invite", "invitations_revoke"),
    },
    "organization.change": {
        f"organizations_{verb}" for verb in ("suspend", "resume", "add_environment", "delete")
    },
    "organization.read": {"organizations_read", "organizations_choose"},
    "organization.manage": {"organizations_onboard", "organizations_list_deletions"},
    "quota.change": {"organizations_set_tier", "organizations_agree_quota"},
    "audit.read": {f"audit_{verb}_audit" for verb in ("search", "export", "verify")},
}
"""Which operations change something or show what is not for all; all others are what everybody may read."""


UNKNOWN_NAMES = defaultdict(lambda: UNKNOWN)


@pytest.fixture
def document(sign_in: SignIn) -> dict[str, Any]:
    found: dict[str, Any] = sign_in().get("/bridge/openapi.json").json()
    return found


@pytest.fixture
def below_a_path(server: Server) -> Iterator[Server]:
    """A server whose public address has a path, one that its own addresses begin with; it knows the same users."""
    with serving(server.users, root_path="/br") as running:
        yield running


def cells(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], str]]:
    """Those that read come first, and those that delete last: what is asked for is there as long as can be."""
    order = {"get": 0, "delete": 2}

    def when(operation: tuple[str, str, dict[str, Any]]) -> tuple[int, str]:
        method, path, _ = operation
        if path.endswith("/{organization}/suspend"):
            return (3, path)
        return (4 if path.endswith("/deletion") else order.get(method, 1), path)

    for method, path, operation in sorted(operations(document), key=when):
        if (method, path) not in PUBLIC:
            yield method, path, operation, operation[matrix.EXTENSION]


def things(owned: Deployed, stranger: httpx.Client) -> dict[str, str]:
    """What there is in an organization, by the names that addresses use."""
    message_id = owned.send(stranger)
    secrets.put(owned.organization.organization_id, "dev", "warehouse", "custom", {"pin": "x"}, "test")
    return {
        "organization": owned.organization.slug,
        "environment": "dev",
        "flow": "orders",
        "slug": "orders",
        "id": message_id,
        "job": replay_job(owned, message_id),
        "approval": UNKNOWN,
        "key": api_key(owned),
        "connect": UNKNOWN,
        "state": f"{owned.organization.organization_id.hex}.state",
        "version": "1.0.0",
        "type": "jq",
        "name": "warehouse",
        "user": member(owned),
        "invitation": invitation(owned),
        "resource": "flows",
    }


def ask(user: User, method: str, path: str, operation: dict[str, Any], values: dict[str, str]) -> httpx.Response:
    names = {parameter["name"] for parameter in operation.get("parameters", ())}
    query = {}
    if "organization" in names and "{organization}" not in path:
        query["organization"] = values["organization"]
    if path.endswith("/oauth/callback"):
        query["state"] = values["state"]
    if path.endswith("/diff"):
        query |= {"old": "1.0.0", "new": "1.0.0"}
    call = {"json": BODIES.get(operation["operationId"], {})} if "requestBody" in operation else {}
    return user.client.request(method, filled(path, values), params=query, **call)


def test_the_matrix_is_what_it_is_meant_to_be() -> None:
    assert {action.value for action in matrix.MATRIX} == EXPECTED.keys()
    assert set(matrix.Action) == matrix.MATRIX.keys()
    for action, rule in matrix.MATRIX.items():
        assert rule.roles == {ROLES[each] for each in EXPECTED[action.value].split()}, action


def test_every_operation_is_the_action_that_it_is_meant_to_be(document: dict[str, Any]) -> None:
    found: dict[str, set[str]] = {}
    for method, _, operation, action in cells(document):
        if method != "get":
            # What changes something is nobody's by default.
            assert action in OPERATIONS, operation["operationId"]
        found.setdefault(action, set()).add(operation["operationId"])
    for action, wanted in OPERATIONS.items():
        assert found[action] == wanted, action
    assert all(EXPECTED[action] == ALL for action in found.keys() - OPERATIONS.keys())


@pytest.mark.parametrize("role", ["CU", "CA", "CON", "SA", "CON below a path"])
def test_each_role_may_what_the_matrix_says_in_its_organization_and_finds_no_other(
    document: dict[str, Any],
    server: Server,
    sign_in: SignIn,
    deployed: Callable[[], Deployed],
    stranger: httpx.Client,
    request: pytest.FixtureRequest,
    role: str,
) -> None:
    mine, theirs = deployed(), deployed()
    role, _, is_below = role.partition(" ")
    user = sign_in(superadmin=True) if role == "SA" else sign_in({mine.organization: ROLES[role]})
    if is_below:
        user.client.base_url = stranger.base_url = httpx.URL(request.getfixturevalue("below_a_path").url)
    own, foreign = things(mine, stranger), things(theirs, stranger)
    tried = {"allowed": 0, "refused": 0, "foreign": 0}
    for method, path, operation, action in cells(document):
        cell = (role, method, path)
        if role in EXPECTED[action].split():
            answer = ask(user, method, path, operation, own)
            assert answer.status_code not in (401, 403), (cell, answer.text)
            assert answer.status_code < 500, (cell, answer.text)
            if method == "get" and "{approval}" not in path and action != "token.change":
                assert answer.status_code == 200, (cell, answer.text)
            tried["allowed"] += 1
        else:
            answer = ask(user, method, path, operation, own)
            if "{approval}" in path and answer.status_code == 404:
                continue  # one that waits: see test_approvals
            assert (answer.status_code, answer.json()["code"]) == (403, "not-allowed"), (cell, answer.text)
            tried["refused"] += 1
        names = {parameter["name"] for parameter in operation.get("parameters", ())}
        if role == "SA" or matrix.MATRIX[matrix.Action(action)].scope is not matrix.Scope.ORGANIZATION:
            continue
        if names & {"organization", "id", "job", "approval", "key"}:
            answer = ask(user, method, path, operation, foreign)
            assert answer.status_code == 404, (cell, answer.text)
            tried["foreign"] += 1
    assert tried["allowed"] > 15
    assert tried["refused"] > 10 or role != "CU"
    assert tried["foreign"] > 25 or role == "SA"


def test_a_stranger_finds_nothing_below_a_path_nor_beside_it(
    document: dict[str, Any], below_a_path: Server, stranger: httpx.Client
) -> None:
    host = below_a_path.url.removesuffix("/br")
    for base in (below_a_path.url, host):
        for method, path, _, _ in cells(document):
            answer = stranger.request(method, base + filled(path, UNKNOWN_NAMES))
            assert answer.status_code == 401, (method, base, path, answer.text)
    assert stranger.get(f"{below_a_path.url}/bridge/health/live").status_code == 200
    for path in ("/br/br/bridge/me", "/brbridge/health/live", "/brbridge/me"):
        assert stranger.get(host + path).status_code == 404, path


def test_a_member_elsewhere_finds_things_by_their_id_nowhere(
    sign_in: SignIn, deployed: Callable[[], Deployed], stranger: httpx.Client
) -> None:
    mine, theirs = deployed(), deployed()
    there = things(theirs, stranger)
    user = sign_in({mine.organization: "consultant"})
    for method, path in (
        ("GET", f"/bridge/messages/{there['id']}"),
        ("POST", f"/bridge/messages/{there['id']}/replay"),
        ("GET", f"/bridge/replays/{there['job']}"),
        ("POST", f"/bridge/replays/{there['job']}/cancel"),
        ("DELETE", f"/bridge/api-keys/{there['key']}"),
    ):
        assert user.client.request(method, path).status_code == 404, path


def test_a_key_that_reads_may_what_a_customer_user_may(
    document: dict[str, Any],
    server: Any,
    sign_in: SignIn,
    deployed: Callable[[], Deployed],
    stranger: httpx.Client,
) -> None:
    mine = deployed()
    user = sign_in({mine.organization: "customer_admin"})
    made = api_keys.create(
        mine.organization.organization_id, "reader", user_name=user.name, scope="read", by=user.name
    )
    token = user.client.headers["authorization"].partition(" ")[2]
    server.users[token] = api.SignedIn(user.name, api_key=api_keys.verify(made.key))
    own = things(mine, stranger)
    for method, path, operation, action in cells(document):
        answer = ask(user, method, path, operation, own)
        if "{approval}" in path or path.startswith("/bridge/api-keys") or action == "self.manage":
            assert answer.status_code in (403, 404)
        elif "CU" in EXPECTED[action].split():
            assert answer.status_code == 200, (method, path, answer.text)
        else:
            assert answer.status_code == 403, (method, path, answer.text)


def test_no_key_has_people_sign_in_without_their_second_factor(
    server: Any, sign_in: SignIn, deployed: Callable[[], Deployed]
) -> None:
    owner = deployed().organization
    user = sign_in({owner: "customer_admin"})
    address = f"/bridge/organizations/{owner.slug}/second-factor"
    assert user.client.put(address, json={"required": True}).status_code == 200
    made = api_keys.create(owner.organization_id, "writer", user_name=user.name, scope="write", by=user.name)
    token = user.client.headers["authorization"].partition(" ")[2]
    server.users[token] = api.SignedIn(user.name, api_key=api_keys.verify(made.key))
    assert user.client.get(address).json() == {"required": True}
    assert user.client.put(address, json={"required": False}).status_code == 403
    assert user.client.get(address).json() == {"required": True}


def test_a_route_without_an_action_stops_the_start() -> None:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.get("/forgotten")
    def forgotten() -> None: ...

    with pytest.raises(ConfigurationError, match="/forgotten"):
        _every_route_has_its_action(app)


def test_the_reference_page_is_what_the_matrix_says() -> None:
    page = Path(__file__).parents[3] / "docs" / "roles.md"
    done = CliRunner().invoke(bridge, ["role", "list", "--markdown"])
    assert done.output == page.read_text(), "run: make docs"
    assert len(re.findall(r"^\| `", done.output, re.MULTILINE)) == len(matrix.Action)
