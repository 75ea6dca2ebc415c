"""Accounts connected and tokens refreshed and revoked over HTTP, by whom that is allowed."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from continuitybridge import connections
from continuitybridge.organizations import Organization
from token_server import TokenServer

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
