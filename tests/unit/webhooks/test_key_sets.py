"""Key sets of authorization servers, from a real HTTP server: fetched once, again for new keys, used on without
it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from ways import way

from authorization_server import AuthorizationServer
from continuitybridge.errors import NotAuthenticated, Unavailable
from continuitybridge.webhooks.verification import Verifier, _jwks
from continuitybridge.webhooks.verification.base import Example


@pytest.fixture
def login() -> Iterator[AuthorizationServer]:
    server = AuthorizationServer()
    server.make_key("one")
    yield server
    server.close()


def believes(login: AuthorizationServer, **settings: Any) -> Verifier[Any]:
    return way("jwt", **{"jwks_url": login.url, "audience": "orders", **settings})


async def send(found: Verifier[Any], token: str) -> None:
    request = Example("", {b"authorization": b"Bearer " + token.encode()})
    await found.prepare(request, [])
    found.verify(request, [], time.time())


async def test_a_set_is_fetched_once_for_many_tokens_at_once(login: AuthorizationServer) -> None:
    found = believes(login)
    await asyncio.gather(*(send(found, login.token("one")) for _ in range(20)))
    await send(believes(login, issuer="https://login.example"), login.token("one"))
    assert login.asked == 1


async def test_a_new_key_is_fetched_when_a_token_names_it_and_an_unknown_one_does_not_ask_without_end(
    login: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = believes(login)
    await send(found, login.token("one"))
    login.make_key("two")
    for _ in range(5):
        with pytest.raises(NotAuthenticated):
            await send(found, login.token("two"))
    assert login.asked == 1, "a stranger's key ids cost the authorization server nothing"
    monkeypatch.setattr(_jwks, "RENEW_S", 0.0)
    await send(found, login.token("two"))
    del login.keys["one"]
    monkeypatch.setattr(_jwks, "FRESH_S", 0.0)
    await send(found, login.token("two"))
    signed = jwt.encode(
        {"aud": "orders", "exp": time.time() + 60}, login.keys["two"], "ES256", headers={"kid": "one"}
    )
    with pytest.raises(NotAuthenticated):
        await send(found, signed)


async def test_without_its_server_a_set_is_used_on_and_then_nobody_can_say(
    login: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_jwks, "RETRY_S", 0.0)
    for status in (500, 302, 204):
        login.status = status
        with pytest.raises(Unavailable):
            await send(believes(login), login.token("one"))
    login.status = 200
    await send(believes(login), login.token("one"))
    login.status = 500
    monkeypatch.setattr(_jwks, "FRESH_S", 0.0)
    monkeypatch.setattr(_jwks, "RENEW_S", 0.0)
    await send(believes(login), login.token("one"))
    monkeypatch.setattr(_jwks, "STALE_S", 0.0)
    with pytest.raises(Unavailable):
        await send(believes(login), login.token("one"))


async def test_what_in_a_set_is_no_public_signing_key_verifies_nothing(login: AuthorizationServer) -> None:
    secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"
    good = login.public("one")
    login.more = [
        {"kty": "oct", "kid": "oct", "k": secret},
        {**good, "kid": "enc", "use": "enc"},
        {**good, "kid": "other", "alg": "ES384"},
        {**good, "kid": "broken", "x": "AAAA"},
        {**good, "kid": ["list"]},
        None,
        7,
    ]
    found = believes(login, algorithms=["ES256", "ES384"])
    await send(found, login.token("one"))
    for kid in ("oct", "enc", "other", "broken", "none"):
        token = jwt.encode(
            {"aud": "orders", "exp": time.time() + 60}, login.keys["one"], "ES256", headers={"kid": kid}
        )
        with pytest.raises(NotAuthenticated):
            await send(found, token)
    forged = jwt.encode({"aud": "orders", "exp": time.time() + 60}, secret, "HS256", headers={"kid": "oct"})
    with pytest.raises(NotAuthenticated):
        await send(found, forged)


async def test_a_token_that_names_no_key_is_tried_with_those_that_fit(login: AuthorizationServer) -> None:
    login.make_key("two")
    token = jwt.encode({"aud": "orders", "exp": time.time() + 60}, login.keys["two"], "ES256")
    await send(believes(login), token)


async def test_a_set_that_is_too_large_or_none_is_not_used(login: AuthorizationServer) -> None:
    login.more = [{"kty": "RSA", "n": "A" * 300_000}]
    with pytest.raises(Unavailable):
        await send(believes(login), login.token("one"))
