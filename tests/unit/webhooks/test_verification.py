"""Verification of raw requests: what is believed, and that nothing else ever comes out than a refusal."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook

from continuitybridge.errors import ConfigurationError, NotAuthenticated
from continuitybridge.webhooks.verification import VERIFIERS

NOW = 1_790_000_000.4
BODY = b'{"po": "4711"}'
standard = VERIFIERS["standard_webhooks"]
api_key = VERIFIERS["api_key"]


def signed(secret: str, body: bytes = BODY, message_id: str = "msg_1", at: float = NOW) -> dict[bytes, bytes]:
    """Headers as the reference library of the standard makes them."""
    signature = Webhook(secret).sign(message_id, datetime.fromtimestamp(int(at), UTC), body.decode())
    return {
        b"webhook-id": message_id.encode(),
        b"webhook-timestamp": str(int(at)).encode(),
        b"webhook-signature": signature.encode(),
    }


def test_a_signature_of_the_reference_library_is_believed() -> None:
    secret = standard.generate()
    standard.verify(signed(secret), BODY, [standard.key(secret)], NOW)


def test_a_body_that_is_not_text_can_be_signed() -> None:
    secret = standard.generate()
    body = bytes(range(256))
    digest = hmac.new(standard.key(secret), b"m.1790000000." + body, hashlib.sha256).digest()
    headers = {
        b"webhook-id": b"m",
        b"webhook-timestamp": b"1790000000",
        b"webhook-signature": b"v1," + base64.b64encode(digest),
    }
    standard.verify(headers, body, [standard.key(secret)], NOW)


def test_another_body_id_timestamp_or_secret_is_refused() -> None:
    secret = standard.generate()
    key = standard.key(secret)
    headers = signed(secret)
    with pytest.raises(NotAuthenticated):
        standard.verify(headers, BODY + b" ", [key], NOW)
    with pytest.raises(NotAuthenticated):
        standard.verify({**headers, b"webhook-id": b"msg_2"}, BODY, [key], NOW)
    with pytest.raises(NotAuthenticated):
        standard.verify({**headers, b"webhook-timestamp": b"1790000001"}, BODY, [key], NOW)
    with pytest.raises(NotAuthenticated):
        standard.verify(headers, BODY, [standard.key(standard.generate())], NOW)
    with pytest.raises(NotAuthenticated):
        standard.verify(headers, BODY, [], NOW)


def test_any_valid_signature_of_several_suffices_and_any_active_secret() -> None:
    old, new = standard.generate(), standard.generate()
    headers = signed(new)
    mixed = b" ".join(
        [
            b"v1a,abcd",
            b"nonsense",
            b"v1,",
            b"v1,!!!",
            signed(old)[b"webhook-signature"],
            headers[b"webhook-signature"],
        ]
    )
    standard.verify({**headers, b"webhook-signature": mixed}, BODY, [standard.key(new)], NOW)
    standard.verify(headers, BODY, [standard.key(old), standard.key(new)], NOW)


@pytest.mark.parametrize("offset", [-300, 300])
def test_a_timestamp_at_the_edge_of_the_window_is_taken(offset: int) -> None:
    secret = standard.generate()
    standard.verify(signed(secret, at=NOW + offset), BODY, [standard.key(secret)], NOW)


@pytest.mark.parametrize("offset", [-301, 301, -86_400, 10**9])
def test_a_timestamp_outside_the_window_is_refused_on_either_side(offset: int) -> None:
    secret = standard.generate()
    with pytest.raises(NotAuthenticated, match="300 s"):
        standard.verify(signed(secret, at=NOW + offset), BODY, [standard.key(secret)], NOW)


@pytest.mark.parametrize(
    "timestamp", ["1790000000.0", "+1790000000", " 1790000000", "-1", "", "nan", "1e9", "٣", "9" * 400]
)
def test_only_integers_are_timestamps(timestamp: str) -> None:
    secret = standard.generate()
    raw = timestamp.encode()
    digest = hmac.new(standard.key(secret), b"m." + raw + b"." + BODY, hashlib.sha256).digest()
    headers = {
        b"webhook-id": b"m",
        b"webhook-timestamp": raw,
        b"webhook-signature": b"v1," + base64.b64encode(digest),
    }
    with pytest.raises(NotAuthenticated):
        standard.verify(headers, BODY, [standard.key(secret)], NOW)


def test_the_same_signed_bytes_cannot_be_split_into_another_message() -> None:
    secret = standard.generate()
    body = b"1790000000.evil"
    headers = signed(secret, body, "m")
    shifted = {**headers, b"webhook-id": b"m.1790000000", b"webhook-timestamp": b"1790000000"}
    with pytest.raises(NotAuthenticated):
        standard.verify(shifted, b"evil", [standard.key(secret)], NOW)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            b"webhook-id": st.binary(max_size=300),
            b"webhook-timestamp": st.binary(max_size=20) | st.just(b"1790000000"),
            b"webhook-signature": st.binary(max_size=100) | st.binary(max_size=60).map(lambda b: b"v1," + b),
            b"authorization": st.binary(max_size=60) | st.binary(max_size=60).map(lambda b: b"Bearer " + b),
            b"x-api-key": st.binary(max_size=60),
        },
    ),
    st.binary(max_size=100),
)
def test_whatever_the_headers_are_the_answer_is_a_refusal(headers: dict[bytes, bytes], body: bytes) -> None:
    for verifier in VERIFIERS.values():
        with pytest.raises(NotAuthenticated):
            verifier.verify(headers, body, [verifier.key(verifier.generate())], NOW)


@pytest.mark.parametrize("size", [0, 16, 23, 65])
def test_secrets_of_the_wrong_size_are_refused_and_not_quoted(size: int) -> None:
    encoded = base64.b64encode(b"k" * size).decode()
    with pytest.raises(ConfigurationError) as refused:
        standard.key("whsec_" + encoded)
    assert not encoded or encoded not in str(refused.value)


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_###", "notwhsec_" + "A" * 44, "A" * 44, "whsec_" + "é" * 40]
)
def test_only_the_standards_form_is_a_signing_secret(secret: str) -> None:
    with pytest.raises(ConfigurationError):
        standard.key(secret)


def test_generated_secrets_have_at_least_24_random_bytes_and_differ() -> None:
    for verifier in VERIFIERS.values():
        first, second = verifier.generate(), verifier.generate()
        assert first != second
        assert verifier.key(first) != verifier.key(second)
    assert len(standard.key(standard.generate())) >= 24


@pytest.mark.parametrize(
    "headers",
    [
        lambda key: {b"x-api-key": key},
        lambda key: {b"authorization": b"Bearer " + key},
        lambda key: {b"authorization": b"bearer  " + key},
        lambda key: {b"authorization": b"Bearer " + key, b"x-api-key": key},
    ],
)
def test_an_api_key_is_taken_from_either_header(headers) -> None:  # type: ignore[no-untyped-def]
    secret = api_key.generate()
    api_key.verify(headers(secret.encode()), BODY, [api_key.key(secret)], NOW)
    api_key.verify(headers(secret.encode()), BODY, [api_key.key(api_key.generate()), api_key.key(secret)], NOW)
    with pytest.raises(NotAuthenticated):
        api_key.verify(headers(secret.encode()[:-1]), BODY, [api_key.key(secret)], NOW)


def test_two_different_keys_in_one_request_are_refused() -> None:
    secret = api_key.generate()
    headers = {b"x-api-key": secret.encode(), b"authorization": b"Bearer other"}
    with pytest.raises(NotAuthenticated):
        api_key.verify(headers, BODY, [api_key.key(secret)], NOW)
    with pytest.raises(NotAuthenticated):
        api_key.verify({b"authorization": b"Basic " + secret.encode()}, BODY, [api_key.key(secret)], NOW)


@pytest.mark.parametrize("secret", ["short", "with space " * 4, "ö" * 30, "x" * 513])
def test_an_unfit_api_key_is_refused(secret: str) -> None:
    with pytest.raises(ConfigurationError):
        api_key.key(secret)
