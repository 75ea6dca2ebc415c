"""Whatever is asked, by whomever: requests made from the OpenAPI document, well-formed and not, fail nothing in
the platform, tell no secret, are answered as the document says, and show nobody what is another organization's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import uuid4

import httpx
import orjson
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import given as for_each
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from webhooks.reply_world import work_off

from continuitybridge import api_keys, connections, deployments
from continuitybridge.engine.runner import Runner
from continuitybridge.flows.load import load_flow
from continuitybridge.guard import verbs as guard
from continuitybridge.inbox import replays
from continuitybridge.organizations import Organization, matrix
from continuitybridge.settings import Settings

from .conftest import Deployed, Server, SignIn, flow_text
from .test_access import PUBLIC, UNKNOWN

IDENTIFYING = {"organization", "id", "job", "approval", "key"}
"""Parameters that name something of one organization's."""
ROLES = ("customer_user", "customer_admin", "consultant")
BOUNDED: dict[str, Any] = {
    "derandomize": True,  # the same requests at each run
    "database": None,
    "deadline": None,
    "phases": (Phase.generate,),
    "suppress_health_check": list(HealthCheck),
}


@dataclass(frozen=True)
class World:
    """An organization with something of every kind. `names`: its things, as addresses name them. `secrets`: what
    no answer may hold, whoever asks; `private`: what its members only may see. `members` and `outsiders`: how
    callers sign in, by role."""

    organization: Organization
    names: Mapping[str, str]
    secrets: tuple[str, ...]
    private: tuple[str, ...]
    document: str
    members: Mapping[str, str]
    outsiders: Mapping[str, str | None]
    url: str


@pytest.fixture
def world(
    deployed: Callable[[], Deployed],
    stranger: httpx.Client,
    sign_in: SignIn,
    server: Server,
    settings: Settings,
) -> Iterator[World]:
    mine, other = deployed(), deployed()
    owner = mine.organization.organization_id
    password, payload, program = (f"canary-{uuid4().hex}" for _ in range(3))
    connections.put(
        owner,
        "dev",
        "wms",
        {
            "base_url": "https://wms.example/",
            "auth": {"type": "basic", "username": "anna", "password": password},
        },
        "tester",
    )
    steps = [
        {"id": "parse", "type": "json_parser"},
        {"id": "fail", "type": "jq", "config": {"program": f'error("{program}")'}},
    ]
    failing = load_flow(flow_text("failing", slug="failing", mode="batch", steps=steps))
    secret = deployments.deploy(owner, "dev", failing, "tester").new_secrets["failing"]
    body = b'{"value": "%s"}' % payload.encode()
    headers = {"content-type": "application/json", "x-api-key": secret}
    dead = stranger.post(f"/bridge/hooks/{mine.organization.slug}/dev/failing", content=body, headers=headers)
    with Runner() as runner:
        work_off(owner, mine.organization.slug, runner)
    waiting = mine.send(stranger, body)
    key = api_keys.create(owner, "program", user_name="tester", by="tester")
    query = replays.Query(states=("dead",), message_ids=(dead.json()["id"],))
    job = str(replays.start(owner, query, by="tester").job_id)
    member = {role: sign_in({mine.organization: role}) for role in ROLES}
    member["superadmin"] = sign_in(superadmin=True)
    outsider = {role: sign_in({other.organization: role}) for role in ROLES}
    shown = member["customer_user"].get(f"/bridge/messages/{dead.json()['id']}").json()
    assert shown["state"] == "dead", shown
    yield World(
        organization=mine.organization,
        names={
            "organization": mine.organization.slug,
            "environment": "dev",
            "flow": "failing",
            "slug": "failing",
            "id": dead.json()["id"],
            "job": job,
            "approval": UNKNOWN,  # one that waits: see test_approvals
            "key": str(key.shown.key_id),
            "version": "1.0.0",
            "name": "warehouse",
            "type": "jq",
            "resource": "flows",
        },
        secrets=(password, secret, mine.secret, key.key, settings.master_key_path.read_text().split()[-1]),
        private=(payload, program, str(owner), waiting),
        document=member["customer_user"].get("/bridge/openapi.json").text,
        members={role: user.client.headers["authorization"] for role, user in member.items()},
        outsiders={
            "nobody": None,
            **{role: user.client.headers["authorization"] for role, user in outsider.items()},
        },
        url=server.url,
    )
    for block in guard.list_blocks(None):
        guard.lift(None, block.address, by="tester")


@cache
def requests_of(document: str) -> list[tuple[Any, st.SearchStrategy[Any]]]:
    """(operation, requests to it), those that read first and those that delete last."""
    order = {"get": 0, "delete": 2}
    found = [result.ok() for result in schemathesis.openapi.from_dict(orjson.loads(document)).get_all_operations()]
    return [
        (each, st.one_of([each.as_strategy(generation_mode=mode) for mode in GenerationMode]))
        for each in sorted(found, key=lambda each: (order.get(each.method, 1), each.path))
    ]


def names_one_organizations(operation: Any) -> bool:
    """Whether the request is about something of one organization's, which it names."""
    action = operation.definition.raw.get(matrix.EXTENSION)
    named = {each.name for each in operation.iter_parameters()} & IDENTIFYING
    return bool(named and action) and matrix.MATRIX[matrix.Action(action)].scope is matrix.Scope.ORGANIZATION


def ask(world: World, session: requests.Session, case: Any, token: str | None) -> Any:
    headers = {} if token is None else {"authorization": token}
    return case.call(base_url=world.url, session=session, headers=headers, timeout=30)


def leaks(world: World, text: str, *, inside: bool) -> list[str]:
    forbidden = world.secrets if inside else world.secrets + world.private
    return [each for each in forbidden if each in text]


def pointed(case: Any, names: Mapping[str, str]) -> None:
    """Let the request be about these things."""
    for place in (case.path_parameters, case.query):
        for name in (place or {}).keys() & names.keys():
            place[name] = names[name]
    if "organization" not in (case.path_parameters or {}):
        case.query = {**(case.query or {}), "organization": names["organization"]}


def same(answer: Any, names: Mapping[str, str]) -> tuple[int, str]:
    """An answer without what names the request."""
    text = re.sub(r'"instance": ?"[^"]*"', "", answer.text)
    for name in IDENTIFYING:
        text = text.replace(names[name], name)
    return answer.status_code, text


def each_operation(
    world: World, examples: int, trial: Callable[..., None], **more: st.SearchStrategy[Any]
) -> None:
    """Let `trial` make requests to every operation; all operations are tried, whatever an earlier one did."""
    wrong = []
    for operation, cases in requests_of(world.document):

        def attempt(operation: Any, **drawn: Any) -> None:
            trial(operation, **drawn)

        given_cases = for_each(operation=st.just(operation), case=cases, **more)
        try:
            settings(max_examples=examples, **BOUNDED)(given_cases(attempt))()
        except (AssertionError, BaseExceptionGroup) as error:
            wrong.append(f"{operation.label}: {error}")
    assert not wrong, "\n\n".join(wrong)


def test_whoever_does_not_belong_there_cannot_tell_anothers_things_from_none(world: World) -> None:
    invented = {**world.names, "organization": "nobody-at-all", "flow": "nothing", "slug": "nothing"}
    invented |= {"id": UNKNOWN[:-1] + "1", "job": UNKNOWN[:-1] + "2", "key": UNKNOWN[:-1] + "3"}
    seen: Counter[int] = Counter()

    def trial(operation: Any, case: Any, who: str) -> None:
        pointed(case, world.names)
        answer = ask(world, session, case, world.outsiders[who])
        seen[answer.status_code] += 1
        told = (who, answer.status_code, answer.text[:500])
        assert answer.status_code < 500, told
        assert not leaks(world, answer.text, inside=False), told
        if (operation.method, operation.path) in PUBLIC:
            assert answer.status_code != 202, told
        elif who == "nobody":
            tracked = operation.path == "/bridge/messages/{id}" and "token" in (case.query or {})
            assert answer.status_code == (404 if tracked else 401), told
        elif names_one_organizations(operation):
            assert answer.status_code in (404, 405, 415, 422), told
            pointed(case, invented)
            other = ask(world, session, case, world.outsiders[who])
            assert same(answer, world.names) == same(other, invented), told

    with requests.Session() as session:
        each_operation(world, 6, trial, who=st.sampled_from(sorted(world.outsiders)))
    assert seen[404] > 100
    assert seen[401] > 50


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("/bridge/replays", {"json": {"query": {"messages": ["a\0b"]}}}),
        ("/bridge/flows/a%00b/dev/orders", {}),
        ("/bridge/messages", {"params": {"flow": "a\0b"}}),
    ],
)
def test_a_character_that_the_database_cannot_hold_is_the_callers_mistake(
    sign_in: SignIn, organization: Organization, path: str, given: dict[str, Any]
) -> None:
    user = sign_in({organization: "consultant"})
    answer = user.client.request("POST" if "json" in given else "GET", path, **given)
    assert answer.status_code in (404, 422), answer.text
    assert answer.json()["code"] in ("not-found", "configuration-error")


def test_no_request_of_a_member_fails_the_platform_or_is_told_a_secret(world: World) -> None:
    seen: Counter[int] = Counter()
    checks = [not_a_server_error, status_code_conformance, response_schema_conformance]

    def trial(operation: Any, case: Any, who: str, real: bool) -> None:
        if real:
            pointed(case, world.names)
        answer = ask(world, session, case, world.members[who])
        seen[answer.status_code] += 1
        assert not leaks(world, answer.text, inside=True), (who, operation.label, answer.text[:500])
        case.validate_response(answer, checks=checks)

    with requests.Session() as session:
        each_operation(world, 7, trial, who=st.sampled_from(sorted(world.members)), real=st.booleans())
    assert seen[200] > 100
    assert seen[403] > 20
