"""Opaque tokens that a real authorization server is asked about: what it is asked, what is made of its answer, and
how long that holds."""

from __future__ import annotations

import asyncio
import base64
import logging
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ways import way

from certificates import self_signed
from clock import Clock
from continuitybridge.errors import ConfigurationError, NotAuthenticated, Unavailable
from continuitybridge.webhooks.verification import Verifier, introspection
from continuitybridge.webhooks.verification.base import Example
from continuitybridge.webhooks.verification.web_token import MAX_TOKEN_BYTES
from token_server import Answer, Call, TokenServer

NOW = Clock.now


@pytest.fixture
def login() -> Iterator[TokenServer]:
    server = TokenServer()
    server.introspected = {name: {"active": True} for name in ("a", "b", "c", "d")}
    yield server
    server.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(introspection, "time", clock)
    return clock


def asks(login: TokenServer, **settings: Any) -> Verifier[Any]:
    return way("introspection", **{"url": f"{login.url}/introspect", "client_id": login.client_id, **settings})


def bears(token: str | bytes) -> Example:
    shown = token if isinstance(token, bytes) else b"Bearer " + token.encode()
    return Example("", {b"authorization": shown})


async def send(found: Verifier[Any], token: str | bytes, *secrets: str, now: float = NOW) -> None:
    keys = [found.key(secret) for secret in secrets]
    await found.prepare(bears(token), keys)
    found.verify(bears(token), keys, now)


def tokens(login: TokenServer) -> list[str]:
    """Those that were asked about."""
    return [call.form["token"] for call in login.calls]


@pytest.mark.parametrize(
    ("claims", "settings", "is_taken"),
    [
        ({}, {}, True),
        ({"active": False}, {}, False),
        ({"active": "true"}, {}, False),
        ({"active": 1}, {}, False),
        ({"exp": NOW + 1}, {}, True),
        ({"exp": NOW + 0.5}, {}, True),
        ({"exp": NOW}, {}, False),
        ({"exp": "later"}, {}, False),
        ({"nbf": NOW}, {}, True),
        ({"nbf": NOW + 1}, {}, False),
        ({"nbf": "before"}, {}, False),
        ({"iss": "https://other"}, {}, True),
        ({"iss": "https://login"}, {"issuer": "https://login"}, True),
        ({"iss": "https://other"}, {"issuer": "https://login"}, False),
        ({}, {"issuer": "https://login"}, False),
        ({"aud": "stock"}, {}, True),
        ({"aud": "orders"}, {"audience": "orders"}, True),
        ({"aud": ["stock", "orders"]}, {"audience": "orders"}, True),
        ({"aud": "orders and more"}, {"audience": "orders"}, False),
        ({"aud": ["stock"]}, {"audience": "orders"}, False),
        ({}, {"audience": "orders"}, False),
        ({"scope": "read write"}, {}, True),
        ({"scope": "read write"}, {"scopes": ["write"]}, True),
        ({"scope": "read write"}, {"scopes": ["write", "read"]}, True),
        ({"scope": "read"}, {"scopes": ["write", "read"]}, False),
        ({"scope": ["write"]}, {"scopes": ["write"]}, False),
        ({}, {"scopes": ["write"]}, False),
    ],
)
async def test_a_token_is_taken_by_what_its_server_says_of_it(
    login: TokenServer, clock: Clock, claims: dict[str, Any], settings: dict[str, Any], is_taken: bool
) -> None:
    login.introspected["a"] = {"active": True, **claims}
    found = asks(login, **settings)
    if is_taken:
        await send(found, "a", login.client_secret)
    else:
        with pytest.raises(NotAuthenticated):
            await send(found, "a", login.client_secret)
    assert tokens(login) == ["a"]


@pytest.mark.parametrize("client_auth", ["basic", "post"])
async def test_the_server_is_asked_as_its_standard_says_by_a_client_of_any_name(
    login: TokenServer, client_auth: str
) -> None:
    login.client_id, login.client_secret = "a client/ü", "s:/ +ä"
    await send(asks(login, client_auth=client_auth), "a", login.client_secret)
    [call] = login.calls
    assert call.headers["accept"] == "application/json"
    assert call.headers["content-type"] == "application/x-www-form-urlencoded"
    asked = {"token": "a", "token_type_hint": "access_token"}
    if client_auth == "post":
        assert call.form == {**asked, "client_id": login.client_id, "client_secret": login.client_secret}
        assert "authorization" not in call.headers
    else:
        assert call.form == asked
        pair = base64.b64decode(call.headers["authorization"].removeprefix("Basic "))
        assert pair == b"a%20client%2F%C3%BC:s%3A%2F%20%2B%C3%A4"


async def test_an_answer_holds_so_long_as_configured_and_no_longer_than_the_token(
    login: TokenServer, clock: Clock
) -> None:
    login.introspected |= {
        "short": {"active": True, "exp": NOW + 5},
        "long": {"active": True, "exp": NOW + 100},
        "at once": {"active": True, "exp": NOW + 0.25},
        "no": {"active": False, "exp": NOW + 5},
    }
    found = asks(login, cache_s=60)
    for token, holds_s in (("a", 60.0), ("short", 5.0), ("long", 60.0), ("at once", 1.0), ("no", 10.0)):
        login.calls.clear()
        clock.now = NOW
        for after_s, asked in ((0.0, 1), (holds_s - 0.25, 1), (holds_s, 2)):
            clock.now = NOW + after_s
            await found.prepare(bears(token), [found.key(login.client_secret)])
            assert len(login.calls) == asked, (token, after_s)


async def test_what_was_answered_is_not_believed_when_it_is_over_nor_without_a_secret(
    login: TokenServer, clock: Clock
) -> None:
    found = asks(login, cache_s=60)
    keys = [found.key(login.client_secret)]
    with pytest.raises(NotAuthenticated):
        found.verify(bears("a"), keys, NOW)
    await found.prepare(bears("a"), keys)
    found.verify(bears("a"), keys, NOW)
    with pytest.raises(NotAuthenticated):
        found.verify(bears("a"), [], NOW)
    with pytest.raises(NotAuthenticated):
        found.verify(bears("b"), keys, NOW)
    clock.now += 60
    with pytest.raises(NotAuthenticated):
        found.verify(bears("a"), keys, NOW)


async def test_the_answers_that_were_got_first_are_forgotten_first(
    login: TokenServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(introspection, "MAX_KEPT", 3)
    found = asks(login, cache_s=60)

    async def asked(*of: str) -> list[str]:
        login.calls.clear()
        for token in of:
            await send(found, token, login.client_secret)
        return tokens(login)

    login.introspected["a"] = {"active": True, "exp": NOW + 5}
    assert await asked("a", "b") == ["a", "b"]
    clock.now += 5
    login.introspected["a"] = {"active": True}
    assert await asked("a", "c", "d") == ["a", "c", "d"]
    assert await asked("a", "c", "d") == [], "each is younger than b"
    assert await asked("b") == ["b"]


async def test_many_who_show_one_token_wait_for_one_answer_and_who_goes_away_takes_it_from_nobody(
    login: TokenServer,
) -> None:
    found = asks(login)
    waiting = [asyncio.create_task(send(found, "a", login.client_secret)) for _ in range(20)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in ended] == [asyncio.CancelledError] + [type(None)] * 19
    assert tokens(login) == ["a"]


async def test_so_many_tokens_are_asked_about_at_once_and_no_more(login: TokenServer) -> None:
    names = [f"token-{number}" for number in range(33)]
    login.introspected = {name: {"active": True} for name in names}
    found = asks(login)

    async def at_once(of: list[str]) -> list[BaseException | None]:
        return await asyncio.gather(
            *(send(found, name, login.client_secret) for name in of), return_exceptions=True
        )

    assert [str(each) for each in await at_once(names) if each is not None] == [
        f"the authorization server at {login.url}/introspect is asked about too many tokens at once"
    ]
    assert sorted(tokens(login)) == sorted(names[:32])
    assert await at_once(names[32:]) == [None], "there is room again"


async def test_while_a_secret_is_changed_the_one_that_the_server_knows_is_found(login: TokenServer) -> None:
    for refusal in (401, 403):
        statuses = [refusal]
        login.before = lambda call, statuses=statuses: (statuses.pop(), {}) if statuses else None  # type: ignore[misc]
        login.calls.clear()
        await send(asks(login), "a", "the-former-secret", login.client_secret)
        assert len(login.calls) == 2
    login.before = lambda call: (500, {})
    login.calls.clear()
    with pytest.raises(Unavailable, match="answered 500"):
        await send(asks(login), "a", "one", "two")
    assert len(login.calls) == 1, "a server that is broken is asked no more"


ODD: list[tuple[Answer, str]] = [
    ((500, {"active": True}), "answered 500"),
    ((201, {"active": True}), "answered 201"),
    ((302, {"headers": [("location", "/introspect")], "active": True}), "answered 302"),
    ((200, b"[true]"), "answered 200"),
    ((200, b"{"), "cannot be asked"),
    ((200, b'{"active":true}' + b" " * 65_522), "answered 200"),
    ((401, {"active": True}), "does not take the endpoint's secret"),
    ((403, {"active": True}), "does not take the endpoint's secret"),
]


@pytest.mark.parametrize(("answer", "why"), ODD)
async def test_when_nobody_can_say_nothing_is_taken_and_the_next_one_asks_again(
    login: TokenServer, caplog: pytest.LogCaptureFixture, answer: Answer, why: str
) -> None:
    login.before = lambda call: answer
    found = asks(login)
    told = f"the authorization server at {login.url}/introspect {why}"
    with caplog.at_level(logging.WARNING, logger=introspection.log.name):
        with pytest.raises(Unavailable) as refused:
            await send(found, "a", login.client_secret)
        await asyncio.sleep(0)
    assert refused.value.detail.startswith(told)
    assert refused.value.facts["retry_after_s"] == 1
    assert [each.message.startswith(f"introspection: {told}") for each in caplog.records] == [True]
    assert login.client_secret not in caplog.text
    caplog.clear()
    login.before = lambda call: None
    await send(found, "a", login.client_secret)
    await asyncio.sleep(0)
    assert caplog.records == []


async def test_the_largest_answer_is_taken(login: TokenServer) -> None:
    login.before = lambda call: (200, b'{"active":true}' + b" " * 65_521)
    await send(asks(login), "a", login.client_secret)


async def test_a_server_that_hangs_or_is_not_there_or_is_another_is_waited_for_no_longer(
    login: TokenServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(introspection, "TIMEOUT_S", 0.1)
    go_on = threading.Event()

    def hang(call: Call) -> None:
        go_on.wait(5)

    login.before = hang
    with pytest.raises(Unavailable, match=r"cannot be asked \(TimeoutError\)"):
        await send(asks(login), "a", login.client_secret)
    go_on.set()
    monkeypatch.undo()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))
    another = TokenServer(context)
    try:
        with pytest.raises(Unavailable, match=r"cannot be asked \(SSLCertVerificationError\)"):
            await send(asks(another), "a", login.client_secret)
        assert another.calls == []
    finally:
        another.close()
    with pytest.raises(Unavailable, match="cannot be asked"):
        await send(asks(login, url="http://127.0.0.1:9/"), "a", login.client_secret)
    with pytest.raises(Unavailable, match="does not take"):
        await send(asks(login), "a")


@pytest.mark.parametrize(
    "shown", [b"", b"Basic YTph", b"Bearer ", b"Bearer a\x01b", b"Bearer t\xc3\xb6", b"Bearer " + b"x" * 16_385]
)
async def test_what_is_no_token_is_refused_and_nobody_is_asked(login: TokenServer, shown: bytes) -> None:
    found = asks(login)
    with pytest.raises(NotAuthenticated) as refused:
        await send(found, shown, login.client_secret)
    assert refused.value.facts["scheme"] == 'Bearer error="invalid_token"'
    with pytest.raises(NotAuthenticated):
        found.verify(Example("", {}), [b"secret"], NOW)
    assert login.calls == []


async def test_the_longest_token_is_asked_about(login: TokenServer) -> None:
    longest = "x" * MAX_TOKEN_BYTES
    login.introspected[longest] = {"active": True}
    await send(asks(login), longest, login.client_secret)


def test_its_address_and_its_secret_are_what_its_settings_say(login: TokenServer) -> None:
    found = asks(login)
    assert found.takes_get()
    assert list(found.settings.addresses()) == [("url", f"{login.url}/introspect")]
    assert found.key(" secret\n") == b"secret"
    with pytest.raises(ConfigurationError):
        found.key(" ")
