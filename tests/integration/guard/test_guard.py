"""What is refused in front of everything, and what is not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from continuitybridge.errors import Unavailable
from continuitybridge.guard import middleware
from continuitybridge.guard.middleware import GuardMiddleware
from continuitybridge.settings import Settings

from .conftest import Client, an_address

Guarded = Callable[..., Client]
BROWSER = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36"


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = response.json()
    assert found["code"] == code
    assert found["status"] == status
    return found


async def test_a_stranger_who_asks_too_often_is_told_when_to_come_back_and_admitted_then(guarded: Guarded) -> None:
    client = guarded(waf_rate_limit_max_requests=3, waf_rate_limit_window_ms=2000)
    async with client() as stranger, client(an_address()) as another:
        while (refused := await stranger.get("/")).status_code == 200:
            assert refused.headers["ratelimit-policy"] == '"stranger";q=3;w=2'
        problem(refused, 429, "too-many-requests")
        assert refused.headers["ratelimit"].startswith('"stranger";r=0;t=')
        assert (await another.get("/")).status_code == 200, "another address is another account"
        await asyncio.sleep(int(refused.headers["retry-after"]))
        assert (await stranger.get("/")).status_code == 200


async def test_who_bears_a_credential_has_more_room_and_files_and_liveness_are_not_counted(
    guarded: Guarded,
) -> None:
    client = guarded(waf_rate_limit_max_requests=1, waf_rate_limit_window_ms=3_600_000, limit_per_address="5/hour")
    async with client() as stranger:
        assert (await stranger.get("/auth/login")).status_code == 200
        assert (await stranger.get("/auth/login")).status_code == 429
        for path in ("/static/app.js", "/bridge/health/live", "/api/v2/monitor/health", "/bridge/hooks/a/dev/b"):
            assert {(await stranger.get(path)).status_code for _ in range(4)} == {200}, path
    async with client(authorization="Bearer x") as known:
        assert [(await known.get("/bridge/me")).status_code for _ in range(6)] == [200] * 5 + [429]


async def test_who_cannot_be_looked_up_now_is_told_to_come_again(settings: Settings) -> None:
    app = FastAPI()

    @app.middleware("http")
    async def users(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        """As Airflow's: who asks is looked up in front of the routes."""
        raise Unavailable("the database does not answer", retry_after_s=3)

    app.add_middleware(GuardMiddleware, settings=settings)
    transport = httpx.ASGITransport(app, client=(an_address(), 4711))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://bridge", headers={"user-agent": BROWSER}
    ) as known:
        for answer in (await known.get("/ui/config"), await known.post("/api/v2/dags", json={"a": 1})):
            assert "detail" not in problem(answer, 503, "unavailable")
            assert answer.headers["retry-after"] == "3"


async def test_one_network_of_ipv6_is_one_account(guarded: Guarded) -> None:
    client = guarded(waf_rate_limit_max_requests=1, waf_rate_limit_window_ms=3_600_000)
    async with (
        client("2001:db8:1:2::1") as first,
        client("2001:db8:1:2::2") as same,
        client("2001:db8:1:3::1") as no,
    ):
        assert (await first.get("/")).status_code == 200
        assert (await same.get("/")).status_code == 429
        assert (await no.get("/")).status_code == 200


async def test_nobody_chooses_his_address_and_a_trusted_proxy_says_it(guarded: Guarded) -> None:
    given = {"waf_rate_limit_max_requests": 1, "waf_rate_limit_window_ms": 3_600_000}
    client = guarded(**given)
    async with client(x_forwarded_for="198.51.100.1") as stranger:
        assert (await stranger.get("/")).status_code == 200
        answer = await stranger.get("/", headers={"x-forwarded-for": "198.51.100.2"})
        assert answer.status_code == 429
    client = guarded(**given, trusted_proxies="10.0.0.0/8")
    async with client("10.0.0.1") as proxy:
        statuses = [
            (await proxy.get("/", headers={"x-forwarded-for": f"{forged}, {sender}"})).status_code
            for forged, sender in (("1.1.1.1", "198.51.100.1"), ("2.2.2.2", "198.51.100.1"), ("", "198.51.100.3"))
        ]
        assert statuses == [200, 429, 200]


async def test_the_machine_itself_and_whoever_is_on_the_list_are_not_counted(guarded: Guarded) -> None:
    client = guarded(
        waf_rate_limit_max_requests=1, waf_rate_limit_window_ms=3_600_000, waf_whitelist="192.0.2.0/24"
    )
    for address in ("127.0.0.1", "::1", "192.0.2.9"):
        async with client(address) as spared:
            assert {(await spared.get("/")).status_code for _ in range(3)} == {200}
            assert (await spared.get("/.env")).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/.env", "/.env.production", "/app/.env", "/.git/config", "/wp-login.php", "/blog/wp-admin/setup.php",
        "/phpmyadmin/index.php", "/index.php", "/cgi-bin/luci", "/.aws/credentials", "/actuator/env",
        "/static/..%2f..%2fetc/passwd", "/backup.sql", "/vendor/phpunit/phpunit/src/Util/PHP/eval-stdin.php",
        "/?x=../../../../etc/passwd", "/?q=1%20UNION%20SELECT%20password", "/?x=${jndi:ldap://x}",
        # However it is encoded, and whatever hides the end of a name.
        "/%252egit/config", "/.env%20", "/.env;v=1", "/.git~", "/shell.php/x", "/shell.php;x", "/x.PHP%20",
        "/?x=%2e%2e%2f%2e%2e%2fetc", "/?x=%252e%252e%252f%252e%252e%252f", "/?x=%24%7Bjndi:ldap://x%7D",
        "/?x=%3Cscript%3E", "/?x=%253Cscript", "/?q=1+UNION+ALL+SELECT+1", "/?q=1%0Aunion%09select%201",
        "/?q=un%69on/**/select", "/?x=${${lower:j}ndi:x}", "/?x=$%7B%24%7B::-j%7Dndi:x}", "/dags/../.env",
    ],
)  # fmt: skip
async def test_what_only_scanners_ask_for_is_not_there(guarded: Guarded, path: str) -> None:
    async with guarded()() as scanner:
        problem(await scanner.get(path), 404, "not-found")


@pytest.mark.parametrize(
    "path",
    [
        "/", "/home", "/dags/acme.prod.orders/runs", "/api/v2/dags", "/bridge/messages?query=select+from+etc",
        "/api/admin/system-health", "/api/ai/smart-mapping", "/auth/login/?next=%2Fdags", "/favicon.ico",
        "/bridge/hooks/acme/prod/orders.php", "/api/webhook/wp-login", "/plugin/acme?filter=a..b", "/.well-known",
        "/dags/acme.prod.php", "/dags/acme.prod.jsp/runs/manual__2026-01-01T00:00:00+00:00/tasks/deliver.cgi",
        "/?q=100%25+of+the+union+jack", "/?x=%7Bpo%7D&y=%24%7Bamount%7D", "/?x=%", "/?next=%2Fdags%2F..%2Fhome",
    ],
)  # fmt: skip
async def test_what_is_ours_passes(guarded: Guarded, path: str) -> None:
    async with guarded()(user_agent=BROWSER) as person:
        assert (await person.get(path)).status_code == 200


@pytest.mark.parametrize(
    "agent", ["sqlmap/1.8", "Mozilla/5.0 (Nikto/2.5.0)", "Nuclei - Open-source project", "zgrab"]
)
async def test_scanners_are_refused_everywhere(guarded: Guarded, agent: str) -> None:
    async with guarded()(user_agent=agent) as scanner:
        for path in ("/", "/bridge/me", "/bridge/hooks/acme/prod/orders"):
            problem(await scanner.post(path), 403, "not-allowed")


@pytest.mark.parametrize(
    "agent", ["Mozilla/5.0 (compatible; Googlebot/2.1)", "GPTBot/1.2", "SemrushBot", "AhrefsBot/7"]
)
async def test_crawlers_find_no_pages(guarded: Guarded, agent: str) -> None:
    async with guarded()(user_agent=agent) as crawler:
        problem(await crawler.get("/"), 403, "not-allowed")
        assert (await crawler.get("/bridge/health/live")).status_code == 200


@pytest.mark.parametrize(
    "agent",
    [
        "Stripe/1.0 (+https://stripe.com/docs/webhooks)", "GitHub-Hookshot/1a2b3c4", "Shopify-Captain-Hook",
        "WooCommerce/9.1 Hookshot (WordPress/6.7)", "SAP NetWeaver Application Server (1.0;753)",
        "SAP-Messaging-com.sap.aii.af.sdk.xi/1.0505", "PayPal IPN (https://paypal.com/ipn)", "Twilio.TmeWs/1.0",
        "Amazon Simple Notification Service Agent", "Slackbot 1.0 (+https://api.slack.com/robots)", "curl/8.10.1",
        "python-requests/2.32.3", "python-httpx/0.28.1", "Go-http-client/2.0", "okhttp/4.12.0", "axios/1.7.7",
        "Apache-HttpClient/5.3 (Java/21.0.1)", "Java/17.0.9", "PostmanRuntime/7.43.0", "Wget/1.25.0", "", BROWSER,
    ],
)  # fmt: skip
async def test_real_senders_and_programs_pass(guarded: Guarded, agent: str) -> None:
    async with guarded()(user_agent=agent) as sender:
        assert (await sender.post("/bridge/hooks/acme/prod/orders", json={})).status_code == 200
        if not agent.startswith(("Stripe", "Shopify", "WooCommerce", "Slackbot")):
            assert (await sender.get("/bridge/me")).status_code == 200


async def test_detection_lets_everything_pass_and_tells_of_it_once(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    client = guarded(waf_detect_only=True, waf_rate_limit_max_requests=2, waf_rate_limit_window_ms=3_600_000)
    with caplog.at_level(logging.WARNING, logger=middleware.log.name):
        one, two = an_address(), an_address()
        async with client(one) as stranger, client(two, user_agent="sqlmap/1.8") as scanner:
            for _ in range(4):
                answer = await stranger.get("/.env")
                assert answer.status_code == 200
                assert "ratelimit" not in answer.headers
                assert (await stranger.get("/")).status_code == 200
                assert (await scanner.get("/")).status_code == 200
    assert sorted(each.message for each in caplog.records) == sorted(
        [
            f"guard: {one} would be refused by the rule 'path'",
            f"guard: {one} would be refused by the rule 'rate'",
            f"guard: {two} would be refused by the rule 'scanner'",
        ]
    )


async def test_switched_off_nothing_is_judged_and_bounds_stay(guarded: Guarded) -> None:
    client = guarded(waf_enabled=False, waf_rate_limit_max_requests=1, waf_max_body_bytes=1024)
    async with client(user_agent="sqlmap/1.8") as scanner:
        assert {(await scanner.get("/.env")).status_code for _ in range(3)} == {200}
        problem(await scanner.post("/x", content=b"x" * 1025), 413, "payload-too-large")


async def test_heads_have_bounds(guarded: Guarded) -> None:
    async with guarded(waf_max_headers=20, waf_max_head_bytes=4096)() as client:
        for headers, path in (
            ({f"x-{number}": "1" for number in range(30)}, "/"),
            ({"x-long": "x" * 5000}, "/"),
            ({}, "/?q=" + "x" * 5000),
        ):
            for place in ("", "/bridge/hooks/acme/prod/orders"):
                answer = await client.get(place + path, headers=headers)
                problem(answer, 431, "head-too-large")
        assert (await client.get("/", headers={"x-long": "x" * 3000})).status_code == 200


async def test_bodies_have_bounds_declared_or_not(guarded: Guarded) -> None:
    async def pieces(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"x" * 1000

    async with guarded(waf_max_body_bytes=3000)() as client:
        assert (await client.post("/x", content=b"x" * 3000)).json()["bytes"] == 3000
        assert (await client.post("/x", content=pieces(3))).json()["bytes"] == 3000
        assert problem(await client.post("/x", content=b"x" * 3001), 413, "payload-too-large")["allowed"] == 3000
        problem(await client.post("/x", content=pieces(4)), 413, "payload-too-large")
        assert (await client.post("/execution/xcoms", content=b"x" * 9000)).status_code == 200, (
            "tasks have more room"
        )


async def test_json_that_is_nested_too_deep_is_refused_before_it_is_parsed(guarded: Guarded) -> None:
    headers = {"content-type": "application/json"}
    async with guarded(max_nesting_depth=20)() as client:
        for body, status in (
            (b"[" * 20 + b"]" * 20, 200),
            (b"[" * 21 + b"]" * 21, 422),
            (b'{"a":' * 21 + b"1" + b"}" * 21, 422),
            (b'["' + b"[" * 500 + b'"]', 200),
            (b'["\\"' + b"[" * 500 + b'", "\\\\", [1]]', 200),
            (b'["\\\\", ' + b"[" * 21 + b"]" * 22, 422),
            (b"[" + b"[],{}," * 500 + b"1]", 200),
            (b"[" * 100_000, 422),
        ):
            answer = await client.post("/bridge/flows", content=body, headers=headers)
            assert answer.status_code == status, body[:40]
            if status == 422:
                problem(answer, 422, "unprocessable-content")
        deep = b"[" * 500 + b"]" * 500
        for kind in ("text/plain", "application/xml"):
            answer = await client.post("/bridge/flows", content=deep, headers={"content-type": kind})
            assert answer.status_code == 200, "only JSON is looked at"
