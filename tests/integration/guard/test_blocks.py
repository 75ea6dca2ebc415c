"""Who offends too often is blocked: for longer each time, until it is over or somebody lifts it."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import psycopg
import pytest
from api.conftest import SignIn, server, sign_in
from click.testing import CliRunner

from continuitybridge import database
from continuitybridge.audit import reading
from continuitybridge.cli import bridge
from continuitybridge.database.connections import role_url
from continuitybridge.guard import known, verbs
from continuitybridge.organizations import Organization
from continuitybridge.settings import get_settings
from continuitybridge.vault.keyring import Keyring

from .conftest import Client, an_address

__all__ = ["server", "sign_in"]

Guarded = Callable[..., Client]


def run(*arguments: str) -> str:
    done = CliRunner().invoke(bridge, ["guard", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def listed(address: str) -> list[dict[str, Any]]:
    return [each for each in json.loads(run("block", "list", "--json")) if each["address"] == address]


async def eventually(true: Callable[[], Any], within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110  (what is waited for is the database's)
            await asyncio.sleep(0.05)


async def status_becomes(client: httpx.AsyncClient, status: int, path: str = "/") -> None:
    async with asyncio.timeout(20):
        while (await client.get(path)).status_code != status:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


@pytest.fixture
async def scanner(guarded: Guarded) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient, str]]:
    """A client at an address of its own, one there at another process's guard, and the address."""
    address = an_address()
    async with guarded()(address) as here, guarded()(address) as elsewhere:
        yield here, elsewhere, address


async def test_three_offences_block_everywhere_and_a_lift_forgets_them_all(
    scanner: tuple[httpx.AsyncClient, httpx.AsyncClient, str], organization: Organization
) -> None:
    here, elsewhere, address = scanner
    for _ in range(2):
        assert (await here.get("/.env")).status_code == 404
        assert (await here.get("/")).status_code == 200
    assert (await here.get("/wp-login.php")).status_code == 404
    refused = await here.get("/")
    assert refused.status_code == 403
    assert refused.json()["code"] == "blocked"
    assert 0 < int(refused.headers["retry-after"]) <= 300
    assert (await here.get("/bridge/health/live")).status_code == 200
    await eventually(lambda: listed(address))
    [found] = listed(address)
    assert (found["reason"], found["times"], found["blocked_by"]) == ("path", 1, "guard")
    await status_becomes(elsewhere, 403)
    run("block", "lift", address)
    assert listed(address) == []
    for client in (here, elsewhere):
        await status_becomes(client, 200)
        for _ in range(2):
            assert (await client.get("/.env")).status_code == 404
        assert (await client.get("/")).status_code == 200, "what led to the block is forgotten"
    trail = reading.search(organization.organization_id, reading.Filter(action="guard_block"), keys=Keyring.open())
    assert [each.target for each in trail if each.target == address] == [address]


async def test_each_block_is_longer_and_ends_by_itself(guarded: Guarded) -> None:
    address = an_address()
    async with guarded(waf_rate_limit_block_duration_ms=1_000)(address) as client:
        lasted = []
        for times in (1, 2):
            for _ in range(3):
                await client.get("/.git/config")
            await eventually(lambda times=times: [each["times"] for each in listed(address)] == [times])
            [found] = verbs_of(address)
            lasted.append((found.until - found.blocked_at).total_seconds())
            if times == 1:
                await status_becomes(client, 200)
        assert lasted == [pytest.approx(1, abs=0.01), pytest.approx(6, abs=0.01)]
    verbs.lift(None, address, by="test")


def verbs_of(address: str) -> list[Any]:
    return [each for each in verbs.list_blocks(None) if each.address == address]


async def test_who_goes_on_far_beyond_the_limit_is_blocked(guarded: Guarded) -> None:
    address = an_address()
    async with guarded(waf_rate_limit_max_requests=2, waf_rate_limit_window_ms=3_600_000)(address) as client:
        statuses = [(await client.get("/")).status_code for _ in range(40)]
    assert statuses[:2] == [200, 200]
    assert statuses.count(429) == 20
    assert set(statuses[22:]) == {403}
    await eventually(lambda: listed(address))
    assert [each["reason"] for each in listed(address)] == ["rate"]
    verbs.lift(None, address, by="test")


async def test_detection_blocks_nobody(guarded: Guarded) -> None:
    address = an_address()
    async with guarded(waf_detect_only=True)(address) as client:
        assert {(await client.get("/.env")).status_code for _ in range(9)} == {200}
    assert listed(address) == []


async def test_an_organization_says_how_the_guard_stands_before_its_webhooks(
    guarded: Guarded, make_organization: Callable[[], Organization]
) -> None:
    ours, theirs = make_organization(), make_organization()
    paths = {each: f"/bridge/hooks/{each.slug}/prod/orders" for each in (ours, theirs)}
    sender, here = an_address(), known.known

    async with guarded()(sender, user_agent="OpenVAS") as scanner:

        async def statuses() -> list[int]:
            return [(await scanner.post(paths[each])).status_code for each in (ours, theirs)]

        run("policy", "set", "-o", ours.slug, "--bots", "admit")
        await eventually(lambda: here.policy(ours.slug).block_bots is False)
        assert await statuses() == [200, 403]
        run("policy", "set", "-o", ours.slug, "--bots", "default", "--mode", "detect")
        await eventually(lambda: here.policy(ours.slug).mode == "detect")
        assert await statuses() == [200, 403]
        run("policy", "set", "-o", ours.slug, "--mode", "default", "--allow", f"{sender}/32")
        await eventually(lambda: here.policy(ours.slug).allowed)
        run("block", "add", sender, "--minutes", "10", "--reason", "test")
        await eventually(lambda: here.blocked_until(sender))
        assert await statuses() == [200, 403]
        run("block", "lift", sender)
        run("block", "add", sender, "-o", theirs.slug)
        await eventually(lambda: here.blocked_until(sender) is None)
        await eventually(lambda: here.blocked_until(sender, theirs.slug) == math.inf)
        refused = await scanner.post(paths[theirs])
        assert (refused.json()["code"], "retry-after" in refused.headers) == ("blocked", False)
    assert json.loads(run("block", "list", "-o", theirs.slug, "--json"))[0]["until"] is None
    assert json.loads(run("block", "list", "-o", ours.slug, "--json")) == []


def test_members_govern_their_own_and_superadmins_everything(
    sign_in: SignIn, make_organization: Callable[[], Organization]
) -> None:
    ours, theirs = make_organization(), make_organization()
    admin, reader = sign_in({ours: "customer_admin"}), sign_in({ours: "customer_user"})
    superadmin, address = sign_in(superadmin=True), an_address()
    made = admin.post("/bridge/guard/blocks", json={"address": address, "seconds": 60, "reason": "noise"})
    assert made.status_code == 201, made.text
    assert made.json()["blocked_by"] == admin.name
    assert [each["address"] for each in admin.get("/bridge/guard/blocks").json()] == [address]
    everywhere = "/bridge/guard/platform/blocks"
    assert address not in superadmin.get(everywhere).text, "it holds at one organization only"
    assert admin.get(everywhere).status_code == 403
    assert superadmin.post(everywhere, json={"address": address, "seconds": 60}).status_code == 201
    assert address in superadmin.get(everywhere).text
    assert superadmin.post(f"{everywhere}/lift", json={"address": address}).status_code == 204
    named = {"address": address}
    for method, path, body in (
        ("GET", "blocks", None), ("POST", "blocks", named), ("POST", "blocks/lift", named),
        ("GET", "policy", None), ("PUT", "policy", {"mode": "off"}), ("PUT", "limits", {}),
    ):  # fmt: skip
        assert reader.client.request(method, f"/bridge/guard/{path}", json=body).status_code == 403, path
        other = admin.client.request(method, f"/bridge/guard/{path}?organization={theirs.slug}", json=body)
        assert other.status_code == 404, path
    assert admin.post("/bridge/guard/blocks/lift", json={"address": address}).status_code == 204
    assert admin.post("/bridge/guard/blocks/lift", json={"address": address}).status_code == 404
    wanted = {"mode": "detect", "block_bots": False, "allowed": ["192.0.2.0/24"]}
    assert admin.client.put("/bridge/guard/policy", json=wanted).json().items() >= wanted.items()
    assert admin.client.put("/bridge/guard/limits", json={"webhooks": "9/hour"}).status_code == 403
    limits = superadmin.client.put(
        f"/bridge/guard/limits?organization={ours.slug}", json={"webhooks": "9/hour", "api": "3/hour"}
    )
    assert limits.json() == {**wanted, "webhooks_limit": "9/hour", "api_limit": "3/hour"}
    for bad in ({"mode": "loud"}, {"allowed": ["nowhere"]}):
        assert admin.client.put("/bridge/guard/policy", json=bad).status_code == 422
    assert admin.post("/bridge/guard/blocks", json={"address": "nowhere"}).status_code == 422
    bad_limit = superadmin.client.put(f"/bridge/guard/limits?organization={ours.slug}", json={"api": "many"})
    assert bad_limit.status_code == 422
    actions = {each["action"] for each in admin.get("/bridge/audit").json()["events"]}
    assert {"guard_block.added", "guard_block.lifted", "guard_policy.changed"} <= actions


def test_an_organizations_own_limit_holds_in_place_of_the_settings(
    sign_in: SignIn, make_organization: Callable[[], Organization]
) -> None:
    import time

    ours = make_organization()
    known.known.start()
    run("policy", "set", "-o", ours.slug, "--api-limit", "3/hour")
    deadline = time.monotonic() + 20
    while known.known.policy(ours.slug).api_limit != "3/hour":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    user = sign_in({ours: "customer_admin"})
    assert [user.get("/bridge/flows").status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    run("policy", "set", "-o", ours.slug, "--api-limit", "default")
    assert json.loads(run("policy", "show", "-o", ours.slug, "--json"))["api_limit"] is None


def test_an_organizations_own_role_cannot_set_its_limits(organization: Organization) -> None:
    organization_id = organization.organization_id
    insert = "INSERT INTO bridge.guard_policies (organization_id, api_limit) VALUES (%s, '1000000/second')"
    with psycopg.connect(role_url("app", get_settings())) as connection:
        connection.execute("SELECT set_config('bridge.organization_id', %s, false)", (str(organization_id),))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(insert, (organization_id,))


def test_blocks_go_with_their_organization(organization: Organization) -> None:
    verbs.block(organization.organization_id, an_address(), by="test")
    with psycopg.connect(database.owner_url()) as connection:
        connection.execute("ALTER TABLE bridge.guard_blocks NO FORCE ROW LEVEL SECURITY")
        count = "SELECT count(*) FROM bridge.guard_blocks WHERE organization_id = %s"
        assert connection.execute(count, (organization.organization_id,)).fetchone() == (1,)
        definition = connection.execute(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'bridge.guard_blocks'::regclass"
            " AND contype = 'f'"
        ).fetchone()
        assert definition is not None
        assert "ON DELETE CASCADE" in definition[0]
        connection.rollback()
