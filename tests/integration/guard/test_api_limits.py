"""Limits of who is signed in: users, API keys, organizations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from uuid import uuid4

import httpx
import pytest
from api.conftest import Server, SignIn, server, sign_in, stranger

from continuitybridge import api, api_keys
from continuitybridge.errors import ConfigurationError
from continuitybridge.guard.known import known
from continuitybridge.organizations import Organization, quotas
from continuitybridge.settings import get_settings

__all__ = ["server", "sign_in", "stranger"]

Configure = Callable[..., None]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Configure]:
    """Changes settings of the running server."""

    def configure(**changed: str) -> None:
        for name, value in changed.items():
            monkeypatch.setenv(f"BRIDGE_{name.upper()}", value)
        get_settings.cache_clear()

    yield configure
    monkeypatch.undo()
    get_settings.cache_clear()


def until_refused(ask: Callable[[], httpx.Response], most: int = 50) -> tuple[int, httpx.Response]:
    """How often it was answered otherwise before, and the refusal."""
    for number in range(most):
        answer = ask()
        if answer.status_code == 429:
            return number, answer
        assert answer.status_code == 200, answer.text
    raise AssertionError("it was not refused")


def test_a_user_is_counted_wherever_he_comes_from_and_admitted_again_when_told(
    sign_in: SignIn, configure: Configure
) -> None:
    configure(limit_per_user="3/2second")
    user, another = sign_in(), sign_in()
    time.sleep(2 - time.time() % 2)
    count, refused = until_refused(lambda: user.get("/bridge/me"))
    assert count == 3
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["code"] == "too-many-requests"
    assert refused.headers["ratelimit-policy"] == '"user";q=3;w=2'
    assert another.get("/bridge/me").status_code == 200
    time.sleep(int(refused.headers["retry-after"]))
    admitted = user.get("/bridge/me")
    assert admitted.status_code == 200
    assert admitted.headers["ratelimit"].startswith('"user";r=2;t=')


def test_a_route_has_a_limit_of_its_own_for_each_caller(sign_in: SignIn, configure: Configure) -> None:
    configure(
        limit_routes="GET /bridge/me 2/hour, GET /bridge/node-types 1000/hour, GET /bridge/node-types/jq 1/hour"
    )
    user, another = sign_in(), sign_in()
    count, refused = until_refused(lambda: user.get("/bridge/me"))
    assert count == 2
    assert '"route";q=2;w=3600' in refused.headers["ratelimit-policy"]
    assert '"route";r=0' in refused.headers["ratelimit"]
    assert another.get("/bridge/me").status_code == 200
    # Below a path, and the longest that fits.
    assert until_refused(lambda: user.get("/bridge/node-types/jq"))[0] == 1
    for path in (
        "/bridge/node-types",
        "/bridge/node-types/filter",
        "/bridge/organizations",
        "/bridge/node-types/filter",
    ):
        assert user.get(path).status_code == 200, path
    assert "route" not in user.get("/bridge/organizations").headers["ratelimit"]


@pytest.mark.parametrize("text", ["GET /bridge/me", "/bridge/me 3/hour", "get /bridge/me 3/hour", "GET /x often"])
def test_a_limit_of_no_route_is_refused_by_the_settings_name(configure: Configure, text: str) -> None:
    configure(limit_routes=text)
    with pytest.raises(ConfigurationError, match="BRIDGE_LIMIT_ROUTES"):
        get_settings()


def test_an_organizations_members_share_its_limit_and_nobody_elses(
    sign_in: SignIn, configure: Configure, make_organization: Callable[[], Organization]
) -> None:
    configure(limit_per_organization="4/hour", limit_per_user="1000/hour")
    ours, theirs = make_organization(), make_organization()
    one, two = sign_in({ours: "customer_admin"}), sign_in({ours: "customer_user", theirs: "customer_user"})
    stranger, superadmin = sign_in({theirs: "customer_user"}), sign_in(superadmin=True)
    path = f"/bridge/flows?organization={ours.slug}"
    for _ in range(6):
        assert stranger.get(path).status_code in (404, 429)
        assert superadmin.get(path).status_code == 200
    assert one.get("/bridge/flows").status_code == 200
    assert two.get(path).status_code == 200
    count, refused = until_refused(lambda: one.get(path))
    assert count == 2
    assert '"organization";r=0' in refused.headers["ratelimit"]
    assert two.get(path).status_code == 429
    assert two.get(f"/bridge/flows?organization={theirs.slug}").status_code in (200, 429)


def test_an_api_key_has_a_limit_of_its_own_and_goes_on_its_organizations_account(
    server: Server, configure: Configure, make_organization: Callable[[], Organization], sign_in: SignIn
) -> None:
    configure(limit_per_api_key="5/hour", limit_per_organization="7/hour", limit_per_user="1/hour")
    ours = make_organization()
    user = sign_in({ours: "customer_admin"})
    clients = []
    for number in range(2):
        made = api_keys.create(ours.organization_id, f"key-{number}", user_name=user.name, by=user.name)
        token = uuid4().hex
        server.users[token] = api.SignedIn(user.name, api_key=api_keys.verify(made.key))
        clients.append(httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {token}"}))
    count, refused = until_refused(lambda: clients[0].get("/bridge/flows"))
    assert count == 5
    assert '"api-key";r=0' in refused.headers["ratelimit"]
    count, refused = until_refused(lambda: clients[1].get("/bridge/flows"))
    assert count == 2
    assert '"organization";r=0' in refused.headers["ratelimit"]
    for client in clients:
        client.close()


def test_a_tier_limits_programs_and_no_people(
    server: Server, make_organization: Callable[[], Organization], sign_in: SignIn
) -> None:
    ours = make_organization()
    quotas.agree(ours.organization_id, "api_calls_per_hour", 3)
    user = sign_in({ours: "customer_admin"})
    made = api_keys.create(ours.organization_id, "program", user_name=user.name, by=user.name)
    token = uuid4().hex
    server.users[token] = api.SignedIn(user.name, api_key=api_keys.verify(made.key))
    # Every process hears of a limit within a second or so.
    deadline = time.monotonic() + 10
    while known.policy(ours.slug).programs_limit is None or "3/hour" not in str(known.policy(ours.slug)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {token}"}) as client:
        count, refused = until_refused(lambda: client.get("/bridge/flows"))
    assert count == 3
    assert '"tier";r=0' in refused.headers["ratelimit"]
    assert all(user.get("/bridge/flows").status_code == 200 for _ in range(5))


def test_a_stranger_uses_up_nobodys_limit(stranger: httpx.Client, sign_in: SignIn, configure: Configure) -> None:
    configure(limit_per_user="2/hour")
    user = sign_in()
    for _ in range(5):
        forged = stranger.get("/bridge/me", headers={"authorization": "Bearer forged"})
        assert forged.status_code == 401
    assert user.get("/bridge/me").status_code == 200
