"""Accounts connected and tokens refreshed and revoked over HTTP, by whom that is allowed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import httpx
import pytest

from continuitybridge import connections
from continuitybridge.organizations import Organization
from token_server import Call, TokenServer

from .conftest import SignIn


@pytest.fixture
def provider() -> Iterator[TokenServer]:
    server = TokenServer()
    yield server
    server.close()


def test_an_account_is_connected_by_the_browser_of_whoever_began_and_then_refreshed_and_revoked(
    organization: Organization, provider: TokenServer, sign_in: SignIn, stranger: httpx.Client
) -> None:
    owner = organization.organization_id
    definition = provider.oauth("authorization_code", authorization_url=f"{provider.url}/authorize")
    connections.put(owner, "dev", "erp", definition, "test")
    anna, bert = (sign_in({organization: "customer_admin"}) for _ in range(2))
    [before] = anna.get("/bridge/tokens").json()
    assert (before["connection"], before["grant"], before["state"]) == ("erp", "authorization_code", "missing")
    begun = anna.post("/bridge/tokens/dev/erp/connect").json()
    back = httpx.URL(httpx.get(begun["address"]).headers["location"])
    assert back.path == "/bridge/oauth/callback"
    callback = f"{back.path}?{back.query.decode()}"
    assert stranger.get(callback).status_code == 401
    assert bert.get(callback).status_code == 404
    assert "code" not in provider.grants()
    poll = f"/bridge/tokens/connects/{begun['connect_id']}/poll"
    assert anna.post(poll).json()["status"] == "pending"
    assert bert.post(poll).status_code == 404
    done = anna.get(callback)
    assert (done.status_code, done.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "is connected" in done.text
    assert anna.post(poll).json()["status"] == "connected"
    assert anna.get(callback).status_code == 404
    refreshed = anna.post("/bridge/tokens/dev/erp/refresh").json()
    assert (refreshed["state"], refreshed["renewable"]) == ("active", True)
    assert provider.grants() == ["authorization_code", "refresh_token"]
    shown = anna.get("/bridge/tokens").text
    assert not [token for token in provider.valid if token in shown]
    revoked = anna.client.delete("/bridge/tokens/dev/erp").json()
    assert (revoked["state"], revoked["problem"]) == ("reconnect", "its token was revoked")
    again = anna.post("/bridge/tokens/dev/erp/refresh")
    assert (again.status_code, again.json()["code"]) == (409, "reconnect-needed")
    reader = sign_in({organization: "customer_user"})
    assert reader.get("/bridge/tokens").status_code == 200
    assert reader.post("/bridge/tokens/dev/erp/connect").status_code == 403


def test_who_refuses_at_the_authorization_server_is_told_and_nothing_is_connected(
    organization: Organization, provider: TokenServer, sign_in: SignIn
) -> None:
    definition = provider.oauth("authorization_code", authorization_url=f"{provider.url}/authorize")
    connections.put(organization.organization_id, "dev", "erp", definition, "test")
    anna = sign_in({organization: "consultant"})
    begun = anna.post("/bridge/tokens/dev/erp/connect").json()
    state = httpx.URL(begun["address"]).params["state"]
    refused = anna.get("/bridge/oauth/callback", params={"state": state, "error": "access_denied"})
    assert (refused.status_code, refused.json()["code"]) == (422, "delivery-failed")
    poll = f"/bridge/tokens/connects/{begun['connect_id']}/poll"
    assert anna.post(poll).json()["status"] == "denied"
    assert provider.calls == []


def test_an_authorization_server_that_never_answers_holds_few_requests_and_keeps_no_other_from_its_answer(
    organization: Organization, provider: TokenServer, sign_in: SignIn
) -> None:
    owner = organization.organization_id
    connections.put(owner, "dev", "erp", provider.oauth(), "test")
    anna = sign_in({organization: "customer_admin"})
    asked, answers = threading.Semaphore(0), threading.Event()

    def silent(_: Call) -> None:
        asked.release()
        answers.wait(30)

    provider.before = silent

    def refresh(_: int) -> httpx.Response:
        return anna.post("/bridge/tokens/dev/erp/refresh")

    with ThreadPoolExecutor(6) as pool:
        try:
            held = [pool.submit(refresh, each) for each in range(6)]
            assert asked.acquire(timeout=20)
            # Those that found no seat are told so while the server is silent, and so is whoever comes next.
            done, _ = wait(held, timeout=20, return_when=FIRST_COMPLETED)
            assert done
            refused = refresh(0)
            assert (refused.status_code, refused.json()["code"]) == (429, "too-many-requests")
            assert refused.headers["retry-after"] == "5"
            assert anna.get("/bridge/tokens").status_code == 200
        finally:
            answers.set()
        statuses = [each.result().status_code for each in held]
    assert sorted(statuses) == [200] * 2 + [429] * 4
    assert refresh(0).status_code == 200
    assert len(provider.grants()) == 3


def test_when_others_have_all_seats_an_organization_is_told_to_come_again_and_nobody_is_asked(
    make_organization: Callable[[], Organization], provider: TokenServer, sign_in: SignIn
) -> None:
    waiting = [make_organization() for _ in range(4)]
    last = make_organization()
    for each in (*waiting, last):
        for name in ("erp", "shop"):
            connections.put(each.organization_id, "dev", name, provider.oauth(), "test")
    people = {each: sign_in({each: "customer_admin"}) for each in (*waiting, last)}
    asked, answers = threading.Semaphore(0), threading.Event()

    def silent(_: Call) -> None:
        asked.release()
        answers.wait(30)

    provider.before = silent

    def refresh(organization: Organization, name: str) -> httpx.Response:
        return people[organization].post(f"/bridge/tokens/dev/{name}/refresh")

    with ThreadPoolExecutor(8) as pool:
        try:
            held = [pool.submit(refresh, each, name) for each in waiting for name in ("erp", "shop")]
            assert all(asked.acquire(timeout=20) for _ in held)
            refused = refresh(last, "erp")
            assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
            assert refused.headers["retry-after"] == "5"
            assert len(provider.grants()) <= 8
            assert people[last].get("/bridge/tokens").status_code == 200
        finally:
            answers.set()
        assert [each.result().status_code for each in held] == [200] * 8
    assert refresh(last, "erp").status_code == 200
    assert len(provider.grants()) == 9
