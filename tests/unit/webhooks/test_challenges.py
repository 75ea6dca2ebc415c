"""Handshakes by which providers verify an address: answered as they ask, and nothing else is."""

from __future__ import annotations

import base64
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from continuitybridge.errors import Unavailable, UnreadableContent
from continuitybridge.nodes.triggers.webhook_trigger import Challenge, Handshake
from continuitybridge.webhooks import challenges
from continuitybridge.webhooks.verification import Answer

KINDS: list[Handshake] = ["hub", "crc", "echo", "okta"]


def ask(
    kind: Handshake,
    query: bytes = b"",
    *,
    method: str = "GET",
    headers: dict[bytes, bytes] | None = None,
    keys: tuple[bytes, ...] = (b"old", b"new"),
    verify_token: str | None = None,
) -> Answer | None:
    challenge = Challenge(type=kind, verify_token=verify_token)
    return challenges.answer(challenge, method, query, headers or {}, keys)


def body(answer: Answer | None) -> bytes:
    assert answer is not None
    return answer.body


def test_each_is_answered_as_its_provider_asks() -> None:
    assert body(ask("hub", b"hub.mode=subscribe&hub.challenge=42&hub.topic=x")) == b"42"
    assert (
        body(ask("hub", b"hub.mode=unsubscribe&hub.challenge=a%20b&hub.verify_token=t", verify_token="t"))
        == b"a b"
    )
    token = json.loads(body(ask("crc", b"crc_token=abc")))["response_token"]
    assert token == "sha256=" + base64.b64encode(hmac.digest(b"new", b"abc", "sha256")).decode()
    assert json.loads(body(ask("okta", headers={b"x-okta-verification-challenge": b"v"}))) == {"verification": "v"}
    assert body(ask("echo", b"challenge=c")) == body(ask("echo", b"validationToken=c", method="POST")) == b"c"


@pytest.mark.parametrize(
    ("kind", "query"),
    [
        ("hub", b"hub.challenge=1"),
        ("hub", b"hub.mode=publish&hub.challenge=1"),
        ("hub", b"hub.mode=subscribe&hub.challenge="),
        ("hub", b"hub.mode=subscribe&hub.challenge=%00"),
        ("hub", b"hub.mode=subscribe&hub.challenge=%C3%BC"),
        ("echo", b"challenge=" + b"x" * 1025),
        ("echo", b"a&" * 200 + b"challenge=1"),
    ],
)
def test_what_cannot_be_answered_is_refused(kind: Handshake, query: bytes) -> None:
    with pytest.raises(UnreadableContent):
        ask(kind, query)


def test_a_wrong_token_is_refused_and_an_hmac_needs_a_secret() -> None:
    for query in (b"hub.mode=subscribe&hub.challenge=1", b"hub.mode=subscribe&hub.challenge=1&hub.verify_token=T"):
        with pytest.raises(UnreadableContent):
            ask("hub", query, verify_token="t")
    with pytest.raises(Unavailable):
        ask("crc", b"crc_token=abc", keys=())


def test_what_is_no_challenge_is_left_alone() -> None:
    for kind in KINDS:
        assert ask(kind, b"order=1") is None
        assert ask(kind, b"hub.mode=subscribe&hub.challenge=1&crc_token=1", method="PUT") is None
    assert ask("hub", b"hub.mode=subscribe&hub.challenge=1", method="POST") is None


@given(st.sampled_from(KINDS), st.binary(max_size=60), st.binary(max_size=20))
def test_whatever_is_asked_there_is_an_answer_a_refusal_or_none(
    kind: Handshake, query: bytes, header: bytes
) -> None:
    for asked in (
        query,
        b"challenge=" + query,
        b"crc_token=" + query,
        b"hub.mode=subscribe&hub.challenge=" + query,
    ):
        try:
            answer = ask(kind, asked, headers={b"x-okta-verification-challenge": header})
        except UnreadableContent:
            continue
        assert answer is None or (answer.body.isascii() and len(answer.body) < 1200)
