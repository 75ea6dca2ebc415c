"""What browsers are told with every answer, and whose pages may change something with a cookie."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping

import httpx
import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from continuitybridge.airflow.same_origin import SameOriginMiddleware
from continuitybridge.airflow.security_headers import SecurityHeadersMiddleware
from continuitybridge.settings import get_settings

from .conftest import Deployed, SignIn

COOKIE = {"cookie": "session=x; _token=y"}
FOREIGN: tuple[Mapping[str, str], ...] = (
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://bridge.example.evil.example"},
    {"origin": "http://bridge.example:8080"},
    {"origin": "http://["},
    {"sec-fetch-site": "cross-site", "origin": "http://bridge.example"},
    {"sec-fetch-site": "same-site"},
)


async def _answer(request: Request) -> Response:
    return Response("<p>", headers=dict(request.query_params))


@pytest_asyncio.fixture
async def browser() -> AsyncIterator[httpx.AsyncClient]:
    """Asks a server with the two middlewares, at whose every address something stands that takes all methods."""
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    app = Starlette(
        routes=[Route("/{rest:path}", _answer, methods=methods)],
        middleware=[Middleware(SecurityHeadersMiddleware), Middleware(SameOriginMiddleware)],
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://bridge.example") as client:
        yield client


# ---------------------------------------------------------------- headers
def test_every_answer_of_ours_forbids_what_a_page_could_do(
    stranger: httpx.Client, sign_in: SignIn, deployed: Callable[[], Deployed]
) -> None:
    hook = deployed()
    answers = [
        stranger.get("/bridge/health/live"),
        stranger.get("/bridge/me"),
        stranger.get("/bridge/nothing"),
        stranger.get("/api/health"),
        stranger.post(f"/bridge/hooks/{hook.organization.slug}/dev/orders", content=b"{}"),
        sign_in(superadmin=True).get("/bridge/me"),
    ]
    assert {answer.status_code for answer in answers} == {200, 401, 415}
    for answer in answers:
        headers = answer.headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["x-frame-options"] == "SAMEORIGIN"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "strict-transport-security" not in headers


async def test_a_page_of_ours_runs_its_own_scripts_and_airflow_may_frame_it(browser: httpx.AsyncClient) -> None:
    answer = await browser.get("/bridge/triage", params={"content-type": "text/html; charset=utf-8"})
    policy = answer.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'self'"} <= set(policy)
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


async def test_airflows_pages_are_framed_by_the_platform_only(browser: httpx.AsyncClient) -> None:
    for path in ("/", "/auth/login/", "/api/v2/dags", "/bridges"):
        answer = await browser.get(path)
        assert answer.headers["content-security-policy"] == "frame-ancestors 'self'; object-src 'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_what_an_answer_says_itself_is_kept(browser: httpx.AsyncClient) -> None:
    answer = await browser.get(
        "/bridge/x", params={"content-security-policy": "sandbox", "X-Frame-Options": "DENY"}
    )
    assert answer.headers.get_list("content-security-policy") == ["sandbox"]
    assert answer.headers.get_list("x-frame-options") == ["DENY"]


async def test_who_came_by_https_is_to_come_so_again(
    browser: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = "max-age=31536000"
    assert (await browser.get("https://bridge.example/")).headers["strict-transport-security"] == wanted
    assert "strict-transport-security" not in (await browser.get("/")).headers
    monkeypatch.setenv("BRIDGE_PUBLIC_URL", "https://bridge.example")
    get_settings.cache_clear()
    try:
        app = Starlette(
            routes=[Route("/", _answer)], middleware=[Middleware(SecurityHeadersMiddleware)]
        )  # behind a proxy that ends TLS
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://inner") as client:
            assert (await client.get("/")).headers["strict-transport-security"] == wanted
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()


# ---------------------------------------------------------------- origin
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", ["/api/v2/dags/x", "/ui/x", "/auth/login/", "/auth/users/edit/1", "/x"])
async def test_no_foreign_page_changes_anything_with_a_cookie(
    browser: httpx.AsyncClient, method: str, path: str
) -> None:
    for foreign in ({}, *FOREIGN):
        answer = await browser.request(method, path, headers={**COOKIE, **foreign})
        assert answer.status_code == 403, foreign
        assert answer.json()["code"] == "not-allowed"
    for own in (
        {"origin": "http://bridge.example"},
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
    ):
        assert (await browser.request(method, path, headers={**COOKIE, **own})).status_code == 200, own


async def test_no_foreign_page_signs_a_person_in_under_another_name(browser: httpx.AsyncClient) -> None:
    for foreign in FOREIGN:
        assert (await browser.post("/auth/login/", headers=foreign)).status_code == 403
    assert (await browser.post("/auth/token")).status_code == 200, "a program says nothing of where it comes from"


async def test_what_no_browser_sends_on_its_own_may_come_from_anywhere(browser: httpx.AsyncClient) -> None:
    for credential in ({"authorization": "Bearer x"}, {"authorization": "bearer x"}, {"x-api-key": "cb_x"}):
        headers = {**COOKIE, **FOREIGN[0], **credential}
        assert (await browser.post("/api/v2/dags", headers=headers)).status_code == 200
    # Browsers do send a name and password that they keep.
    basic = {**FOREIGN[0], "authorization": "Basic x"}
    assert (await browser.post("/api/v2/dags", headers=basic)).status_code == 403
    assert (await browser.post("/bridge/hooks/a/dev/b", headers={**COOKIE, **FOREIGN[0]})).status_code == 200
    assert (await browser.get("/api/v2/dags", headers={**COOKIE, **FOREIGN[0]})).status_code == 200


async def test_behind_a_proxy_that_changes_the_host_the_outer_address_counts(
    browser: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDGE_PUBLIC_URL", "https://hub.example/")
    get_settings.cache_clear()
    try:
        for origin, status in (("https://hub.example", 200), ("http://hub.example", 403)):
            answer = await browser.post("/api/v2/dags", headers={**COOKIE, "origin": origin})
            assert answer.status_code == status
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()
