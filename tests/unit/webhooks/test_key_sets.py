"""Key sets of authorization servers, from a real HTTP server: fetched once, again for new keys, used on without
it."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from ways import way

from authorization_server import AuthorizationServer
from certificates import self_signed
from clock import Clock
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


@pytest.mark.parametrize(
    ("algorithm", "make"),
    [
        ("RS256", lambda: rsa.generate_private_key(65537, 2048)),
        ("EdDSA", ed25519.Ed25519PrivateKey.generate),
    ],
)
async def test_keys_of_each_kind_are_taken_and_need_not_say_what_they_are_for(
    login: AuthorizationServer, algorithm: str, make: Any
) -> None:
    key = make()
    kind = jwt.algorithms.RSAAlgorithm if algorithm == "RS256" else jwt.algorithms.OKPAlgorithm
    login.more = [{**kind.to_jwk(key.public_key(), as_dict=True), "kid": "two"}]
    token = jwt.encode({"aud": "orders", "exp": time.time() + 60}, key, algorithm, headers={"kid": "two"})
    taken = {} if algorithm == "RS256" else {"algorithms": [algorithm]}
    await send(believes(login, **taken), token)


@pytest.mark.parametrize(("others", "is_taken"), [(7, True), (8, False)])
async def test_for_a_token_that_names_none_the_first_eight_keys_are_tried_whatever_they_are(
    login: AuthorizationServer, others: int, is_taken: bool
) -> None:
    public, key = login.public("one"), login.keys.pop("one")
    odd = [{**public, "alg": "ES384"}, {**public, "x": "AAAA"}, {"kty": "OKP", "crv": "none"}]
    login.more = [*odd, *[{**public, "x": "BBBB"}] * (others - len(odd)), public]
    token = jwt.encode({"aud": "orders", "exp": time.time() + 60}, key, "ES256")
    if is_taken:
        await send(believes(login), token)
    else:
        with pytest.raises(NotAuthenticated):
            await send(believes(login), token)


async def test_a_token_that_names_no_key_is_tried_with_those_that_fit(login: AuthorizationServer) -> None:
    login.make_key("two")
    token = jwt.encode({"aud": "orders", "exp": time.time() + 60}, login.keys["two"], "ES256")
    await send(believes(login), token)


async def test_a_set_that_is_too_large_or_none_is_not_used(login: AuthorizationServer) -> None:
    login.more = [{"kty": "RSA", "n": "A" * 300_000}]
    with pytest.raises(Unavailable):
        await send(believes(login), login.token("one"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_jwks, "time", clock)
    return clock


async def test_a_set_is_fetched_again_after_ten_minutes_and_for_an_unknown_key_after_ten_seconds(
    login: AuthorizationServer, clock: Clock
) -> None:
    found, fetched_at = believes(login), clock.now
    await send(found, login.token("one"))
    for after_s, asked in ((599.75, 1), (600.0, 2)):
        clock.now = fetched_at + after_s
        await send(found, login.token("one"))
        assert login.asked == asked, after_s
    fetched_at = clock.now
    login.make_key("two")
    for after_s, asked in ((9.75, 2), (10.0, 3)):
        clock.now = fetched_at + after_s
        try:
            await send(found, login.token("two"))
        except NotAuthenticated:
            assert after_s < 10
        assert login.asked == asked, after_s
    clock.now += 9.75
    with pytest.raises(NotAuthenticated):
        await send(found, jwt.encode({}, login.keys["one"], "ES256", headers={"kid": "three"}))
    assert login.asked == 3


async def test_a_server_that_failed_is_asked_again_after_a_second_and_its_set_used_on_for_a_day(
    login: AuthorizationServer, clock: Clock
) -> None:
    login.status = 500
    found, tried_at = believes(login), clock.now
    for after_s, asked in ((0.0, 1), (0.75, 1), (1.0, 2)):
        clock.now = tried_at + after_s
        with pytest.raises(Unavailable) as refused:
            await send(found, login.token("one"))
        assert refused.value.facts["retry_after_s"] == 1
        assert login.asked == asked, after_s
    login.status = 200
    clock.now += 1
    await send(found, login.token("one"))
    login.status, fetched_at = 500, clock.now
    clock.now += 600
    await send(found, login.token("one"))
    asked = login.asked
    for after_s, more in ((600.75, 0), (601.0, 1), (24 * 3600.0, 2)):
        clock.now = fetched_at + after_s
        await send(found, login.token("one"))
        assert login.asked == asked + more, after_s
    clock.now += 0.25
    with pytest.raises(Unavailable):
        await send(found, login.token("one"))


async def test_a_set_has_so_many_bytes_and_keys_and_no_more(login: AuthorizationServer) -> None:
    room = 256 * 1024 - len(json.dumps({"keys": [login.public("one"), {"x": ""}]}))
    login.more = [{"x": "x" * room}]
    await send(believes(login), login.token("one"))
    login.more = [{"x": "x" * (room + 1)}]
    _jwks._sets.clear()
    with pytest.raises(Unavailable):
        await send(believes(login), login.token("one"))
    public, key = login.public("one"), login.keys.pop("one")
    for others, is_taken in ((63, True), (64, False)):
        login.more = [{"kty": "RSA", "kid": "another"}] * others + [public]
        _jwks._sets.clear()
        if is_taken:
            await send(believes(login), login.token("one", key=key))
        else:
            with pytest.raises(NotAuthenticated):
                await send(believes(login), login.token("one", key=key))


async def test_the_set_that_was_first_used_is_forgotten_first(
    login: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_jwks, "MAX_SETS", 2)
    _jwks._sets.clear()
    for query, asked in (("", 1), ("?2", 2), ("", 2), ("?3", 3), ("?2", 3), ("", 4)):
        await send(believes(login, jwks_url=login.url + query), login.token("one"))
        assert login.asked == asked, query


async def test_a_server_that_hangs_or_is_another_is_no_source_of_keys(
    login: AuthorizationServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_jwks, "FETCH_TIMEOUT_S", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        with pytest.raises(Unavailable):
            await send(
                believes(login, jwks_url=f"http://127.0.0.1:{silent.getsockname()[1]}/"), login.token("one")
            )
    monkeypatch.undo()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))
    another = AuthorizationServer(context)
    another.keys = login.keys
    try:
        with pytest.raises(Unavailable):
            await send(believes(another), login.token("one"))
        assert another.asked == 0
    finally:
        another.close()
