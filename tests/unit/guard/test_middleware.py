"""What the guard makes of a request before anybody else sees it: who is counted, spared or refused, and how."""

from __future__ import annotations

import json
import logging
import math
from typing import Any, cast

import pytest
from guard_world import ADDRESS, CRAWLER, HOOK, SCANNER, Guarded, Headers, asked, behind, count, guarded

from clock import Clock
from continuitybridge.guard import middleware, network
from continuitybridge.guard.known import Policy
from continuitybridge.guard.middleware import GuardMiddleware
from continuitybridge.settings import get_settings

__all__ = ["guarded"]


async def test_what_is_no_request_is_handed_on_as_it_is(guarded: Guarded) -> None:
    handed: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        handed.extend((scope, receive, send))

    given: Any = ({"type": "lifespan"}, object(), object())
    await guarded(app)(*given)
    assert [left is right for left, right in zip(handed, given, strict=True)] == [True] * 3


async def test_a_refusal_is_a_problem_that_nothing_on_its_way_keeps(guarded: Guarded) -> None:
    refused = await asked(guarded(), "/.env")
    assert refused.status == 404
    assert refused.headers == {
        "content-type": "application/problem+json",
        "content-length": str(len(refused.body)),
        "cache-control": "no-store",
    }
    assert json.loads(refused.body)["code"] == "not-found"
    assert [each["type"] for each in refused.messages] == ["http.response.start", "http.response.body"]


async def test_what_is_left_stands_beside_the_applications_own_headers(guarded: Guarded) -> None:
    async def bare(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body", "body": b""})

    limits = {"waf_rate_limit_max_requests": 5, "waf_rate_limit_window_ms": 3_600_000}
    told = {"ratelimit-policy": '"stranger";q=5;w=3600', "ratelimit": '"stranger";r=4;t=2800'}
    assert (await asked(guarded(**limits))).headers == {"x-own": "1", **told}
    answer = await asked(guarded(bare, **limits), address="198.51.100.8")
    assert answer.headers == told
    assert answer.messages[1] == {"type": "http.response.body", "body": b""}
    assert (await asked(guarded(waf_rate_limit_enabled=False))).headers == {"x-own": "1"}


LIMITS = {
    "waf_rate_limit_max_requests": 1,
    "waf_rate_limit_window_ms": 3_600_000,
    "limit_per_address": "2/hour",
    "limit_webhooks_per_address": "3/hour",
}


@pytest.mark.parametrize(
    ("path", "headers", "counted"),
    [
        ("/", (), (1, '"stranger"')),
        ("/auth/login", (), (1, '"stranger"')),
        ("/bridge/me", ((b"authorization", b"Bearer x"),), (2, '"address"')),
        ("/bridge/me", ((b"x-api-key", b"cb_x"),), (2, '"address"')),
        ("/ui/dags", ((b"cookie", b"a=b; _token=x"),), (2, '"address"')),
        ("/", ((b"cookie", b"session=x"),), (2, '"address"')),
        ("/", ((b"cookie", b"theme=dark"),), (1, '"stranger"')),
        ("/", ((b"x-theme", b"session=x"),), (1, '"stranger"')),
        (HOOK, ((b"authorization", b"Bearer x"),), (3, '"webhooks-address"')),
        ("/bridge/health/live", (), (12, "")),
        ("/static/app.js", (), (12, "")),
        ("/execution/xcoms", (), (12, "")),
    ],
)
async def test_each_is_counted_by_what_he_shows_and_where(
    guarded: Guarded, path: str, headers: Headers, counted: tuple[int, str]
) -> None:
    assert await count(guarded(**LIMITS), path, headers) == counted


async def test_accounts_are_apart_and_no_limit_is_none(guarded: Guarded) -> None:
    app = guarded(**LIMITS)
    key = ((b"x-api-key", b"cb_x"),)
    assert (await count(app))[0] == 1
    assert (await count(app, address="198.51.100.8"))[0] == 1
    assert (await count(app, headers=key))[0] == 2
    assert (await count(app, HOOK))[0] == 3
    open_to_all = guarded(**{**LIMITS, "limit_per_address": "", "limit_webhooks_per_address": ""})
    assert (await count(open_to_all, headers=key))[0] == 12
    assert (await count(open_to_all, HOOK))[0] == 12
    taken = await asked(guarded(), HOOK)
    assert "ratelimit" not in taken.headers, "senders of webhooks are told by their organization's limit"


@pytest.mark.parametrize("off", ["waf_enabled", "waf_rate_limit_enabled"])
async def test_counting_can_be_switched_off(guarded: Guarded, off: str) -> None:
    assert (await count(guarded(**LIMITS, **{off: False})))[0] == 12


async def test_below_a_servers_root_addresses_are_what_they_are_without_it(guarded: Guarded) -> None:
    app = guarded(**LIMITS)
    assert (await count(app, "/base/bridge/health/live", root_path="/base"))[0] == 12
    assert (await count(app, "/base/bridge/hooks/acme/prod/x", root_path="/base"))[0] == 3
    assert (await asked(app, "/bridge/health/live/base", root_path="/base")).status == 200
    assert (await asked(app, "/bridge/health/live/base", root_path="/base")).status == 429


async def test_a_trusted_proxy_says_who_asks_in_one_header_or_several(guarded: Guarded) -> None:
    app = guarded(**LIMITS, trusted_proxies="10.0.0.0/8")

    async def status(*forwarded: bytes, address: str = "10.0.0.1") -> int:
        headers = [(b"x-forwarded-for", each) for each in forwarded]
        return (await asked(app, headers=headers, address=address)).status

    assert await status(b"1.1.1.1", b"203.0.113.1") == 200
    assert await status(b"2.2.2.2", b"203.0.113.1") == 429
    assert await status(b"203.0.113.1", b"203.0.113.2, 10.0.0.9") == 200
    assert [await status(b"203.0.113.5", b"10.0.0.9") for _ in range(2)] == [200, 429]
    assert [await status(b"203.0.113.3", address="203.0.113.9") for _ in range(2)] == [200, 429]
    assert [await status() for _ in range(3)] == [200] * 3, "the proxy itself"
    assert [await status(b"203.0.113.6:4711"), await status(b"203.0.113.6:4712")] == [200, 429]
    assert [await status(b"nonsense"), await status(b"unknown"), await status()] == [200, 429, 200]
    plain = guarded(**LIMITS)
    forwarded = ((b"x-forwarded-for", b"127.0.0.1"),)
    assert (await count(plain, headers=forwarded, address="203.0.113.4"))[0] == 1


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "192.0.2.9", "10.0.0.9", None])
async def test_the_machine_its_proxies_and_whoever_is_listed_are_spared(
    guarded: Guarded, address: str | None
) -> None:
    app = guarded(**LIMITS, trusted_proxies="10.0.0.0/8", waf_whitelist="192.0.2.0/24")
    assert (await count(app, "/.env", SCANNER, address=address))[0] == 12
    assert (await asked(app, "/.env", address="192.0.3.9")).status == 404


@pytest.mark.parametrize(
    ("path", "query", "headers", "status"),
    [
        ("/.env", b"", (), 404),
        ("/static/.env", b"", (), 404),
        ("/bridge/.env", b"", (), 200),
        ("/", b"x=${jndi:x}", (), 404),
        ("/bridge/me", b"x=${jndi:x}", (), 200),
        ("/", b"", SCANNER, 403),
        (HOOK, b"", SCANNER, 403),
        ("/static/app.js", b"", SCANNER, 403),
        ("/", b"", CRAWLER, 403),
        ("/auth/login", b"", CRAWLER, 403),
        ("/bridge/me", b"", CRAWLER, 403),
        ("/static/app.js", b"", CRAWLER, 200),
        (HOOK, b"", CRAWLER, 200),
    ],
)
async def test_scanners_and_crawlers_are_refused_where_they_have_no_business(
    guarded: Guarded, path: str, query: bytes, headers: Headers, status: int
) -> None:
    assert (await asked(guarded(), path, query=query, headers=headers)).status == status
    tolerant = guarded(waf_block_suspicious=False, waf_block_bots=False)
    assert (await asked(tolerant, path, query=query, headers=headers)).status == 200
    half = guarded(**{"waf_block_suspicious" if status == 403 else "waf_block_bots": False})
    assert (await asked(half, path, query=query, headers=headers)).status == status


@pytest.mark.parametrize(
    ("policy", "settings", "status"),
    [
        (Policy(), {}, 403),
        (Policy(mode="off"), {}, 200),
        (Policy(mode="detect"), {}, 200),
        (Policy(mode="enforce"), {"waf_detect_only": True}, 403),
        (Policy(), {"waf_detect_only": True}, 200),
        (Policy(block_bots=False), {}, 200),
        (Policy(block_bots=True), {"waf_block_bots": False}, 403),
        (Policy(), {"waf_block_bots": False}, 200),
        (Policy(allowed=network.networks(("198.51.100.0/24",))), {}, 200),
        (Policy(allowed=network.networks(("203.0.113.0/24",))), {}, 403),
    ],
)
async def test_before_its_webhooks_an_organization_says_how_the_guard_stands(
    guarded: Guarded, told: Any, policy: Policy, settings: dict[str, Any], status: int
) -> None:
    told.policies["acme"] = policy
    app = guarded(**settings, legacy_organization="acme")
    assert (await asked(app, HOOK, headers=SCANNER)).status == status
    assert (await asked(app, "/api/webhook/x", headers=SCANNER)).status == status
    others = 200 if settings else 403
    for path in (HOOK.replace("acme", "other"), "/bridge/me", "/"):
        assert (await asked(app, path, headers=SCANNER, address="198.51.100.8")).status == others, path


@pytest.mark.parametrize(("left_s", "told_s"), [(300.0, "300"), (1.5, "2"), (0.25, "1"), (math.inf, None)])
async def test_a_blocked_address_is_told_when_its_block_is_over(
    guarded: Guarded, told: Any, clock: Clock, left_s: float, told_s: str | None
) -> None:
    told.until["acme", ADDRESS] = clock.now + left_s
    refused = await asked(guarded(), HOOK)
    assert (refused.status, json.loads(refused.body)["code"]) == (403, "blocked")
    assert refused.headers.get("retry-after") == told_s
    assert (await asked(guarded(), HOOK, address="198.51.100.8")).status == 200
    assert (await asked(guarded(), HOOK.replace("acme", "other"))).status == 200
    assert (await asked(guarded())).status == 200


async def test_a_block_lasts_as_long_as_the_settings_say(guarded: Guarded, told: Any, clock: Clock) -> None:
    app = guarded(waf_rate_limit_block_duration_ms=300_000)
    statuses = [(await asked(app, "/.env")).status for _ in range(4)]
    assert statuses == [404, 404, 404, 403]
    assert told.blocked_until(ADDRESS) == clock.now + 300
    clock.now += 300
    assert (await asked(app)).status == 200
    detecting = guarded(waf_detect_only=True)
    assert {(await asked(detecting, "/.env", address="198.51.100.8")).status for _ in range(9)} == {200}
    assert told.blocked_until("198.51.100.8") is None


async def test_the_log_tells_once_a_minute_of_an_address_and_a_rule(
    guarded: Guarded, told: Any, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    told.until["", "198.51.100.66"] = math.inf
    app, detecting = guarded(**LIMITS), guarded(waf_detect_only=True)

    async def said(app: Any, path: str = "/", **more: Any) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger=middleware.log.name):
            await asked(app, path, **more)
        return [each.message.removeprefix("guard: ") for each in caplog.records]

    other: dict[str, Any] = {"address": "198.51.100.8"}
    assert await said(app, "/.env") == [f"{ADDRESS} is refused by the rule 'path'"]
    assert await said(app, query=b"x=${jndi:x}") == [f"{ADDRESS} is refused by the rule 'query'"]
    assert await said(app, headers=SCANNER, **other) == ["198.51.100.8 is refused by the rule 'scanner'"]
    assert await said(app, headers=CRAWLER, **other) == ["198.51.100.8 is refused by the rule 'crawler'"]
    assert await said(app, address="198.51.100.66") == ["198.51.100.66 is refused by the rule 'block'"]
    assert await said(app, **other) == []
    assert await said(app, **other) == ["198.51.100.8 is refused by the rule 'rate'"]
    assert await said(detecting, "/.env", **other) == ["198.51.100.8 would be refused by the rule 'path'"]
    clock.now += 59.75
    assert await said(app, address="198.51.100.66") == []
    clock.now += 0.25
    assert await said(app, address="198.51.100.66") == ["198.51.100.66 is refused by the rule 'block'"]


async def test_without_settings_of_its_own_it_reads_the_processs_at_the_first_request(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = GuardMiddleware(cast(Any, behind))
    monkeypatch.setenv("BRIDGE_WAF_MAX_BODY_BYTES", "1024")
    get_settings.cache_clear()
    try:
        for size, status in (("1024", 200), ("1025", 413)):
            assert (await asked(app, headers=[(b"content-length", size.encode())])).status == status
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()
