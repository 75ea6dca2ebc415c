"""Limits of webhooks: an organization's own, counted by all intake processes together, before acceptance."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from webhooks.conftest import Deploy, Hook, Intake, deploy, end, run_intake

from continuitybridge import database
from continuitybridge.organizations import Organization

from .conftest import Valkey

__all__ = ["deploy"]

AMOUNT, WINDOW_S = 6, 5


@pytest.fixture(scope="module")
def intakes(
    shared_valkey: Valkey, settings: object, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Intake]]:
    given = {
        "BRIDGE_REDIS_URL": shared_valkey.url,
        "BRIDGE_LIMIT_WEBHOOKS_PER_ORGANIZATION": f"{AMOUNT}/{WINDOW_S}second",
        "BRIDGE_TRUSTED_PROXIES": "127.0.0.1",
        "BRIDGE_MAX_NESTING_DEPTH": "10",
    }
    running = [run_intake(tmp_path_factory.mktemp("limited"), **given) for _ in range(2)]
    yield running
    for each in running:
        end(each)


def stored(hook: Hook) -> int:
    with database.tenant(hook.organization.organization_id) as connection:
        row = connection.execute(
            "SELECT count(*) FROM bridge.messages WHERE endpoint = %s", (hook.slug,)
        ).fetchone()
    assert row is not None
    return int(row[0])


def beginning_of_a_window() -> None:
    time.sleep(WINDOW_S - time.time() % WINDOW_S + 0.01)


def head_alone(intake: Intake, hook: Hook) -> bytes:
    """What the server answers to a request whose body does not come."""
    headers = {**hook.signed(b"{}"), "host": "x", "content-length": "1000", "connection": "close"}
    lines = [f"POST {hook.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    with socket.create_connection(("127.0.0.1", intake.port), timeout=3) as connection:
        connection.sendall("\r\n".join(lines).encode())
        return connection.recv(65_536)


def test_processes_together_take_an_organizations_limit_and_refuse_the_rest_before_acceptance(
    intakes: list[Intake], deploy: Deploy, make_organization: Callable[[], Organization]
) -> None:
    ours, theirs = deploy(), deploy(of=make_organization())
    for intake in intakes:
        assert intake.post(ours).status_code == 202
    beginning_of_a_window()
    answers = [intakes[number % 2].post(ours) for number in range(AMOUNT + 4)]
    accepted = [each for each in answers if each.status_code == 202]
    refused = [each for each in answers if each.status_code == 429]
    assert len(accepted) == AMOUNT
    assert len(refused) == 4
    assert stored(ours) == AMOUNT + 2, "what was refused is not there"
    assert accepted[0].headers["ratelimit-policy"] == f'"webhooks";q={AMOUNT};w={WINDOW_S}'
    last = refused[-1]
    assert last.headers["content-type"] == "application/problem+json"
    assert last.json()["code"] == "too-many-requests"
    assert last.headers["ratelimit"].startswith('"webhooks";r=0;t=')
    assert intakes[0].post(theirs).status_code == 202, "another organization has its own"
    refused_by_head = head_alone(intakes[1], ours)
    assert refused_by_head.startswith(b"HTTP/1.1 429 "), "a body that nobody would take is not waited for"
    time.sleep(int(last.headers["retry-after"]))
    assert intakes[1].post(ours).status_code == 202


def test_who_cannot_sign_uses_up_nothing(intakes: list[Intake], deploy: Deploy) -> None:
    hook = deploy()
    forged = {**hook.signed(b"{}"), "webhook-signature": "v1,AAAA"}
    beginning_of_a_window()
    assert {intakes[0].post(hook, b"{}", headers=forged).status_code for _ in range(AMOUNT + 2)} == {401}
    assert intakes[0].post(hook).status_code == 202


def test_the_guard_stands_before_intake(intakes: list[Intake], deploy: Deploy) -> None:
    hook = deploy()
    scanner = {"user-agent": "sqlmap/1.8", "x-forwarded-for": "203.0.113.50"}
    client: httpx.Client = intakes[0].client
    refused = client.post(hook.path, content=b"{}", headers={**hook.signed(b"{}"), **scanner})
    assert (refused.status_code, refused.json()["code"]) == (403, "not-allowed")
    large = client.post(hook.path, content=b"{}", headers={**hook.signed(b"{}"), "x-large": "x" * 40_000})
    assert (large.status_code, large.json()["code"]) == (431, "head-too-large")
    deep = intakes[0].post(hook, b"[" * 11 + b"]" * 11)
    assert (deep.status_code, deep.json()["code"]) == (422, "unprocessable-content")
    assert stored(hook) == 0
    assert intakes[0].post(hook, b"[" * 10 + b"]" * 10).status_code == 202
