"""Standard Webhooks 1.0: signatures of the reference library, times, ids, rotation, Ed25519."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from standardwebhooks.webhooks import Webhook

from continuitybridge.errors import ConfigurationError, NotAuthenticated
from continuitybridge.webhooks.verification.base import Example
from continuitybridge.webhooks.verification.standard_webhooks import StandardWebhooks, StandardWebhooksSettings

NOW = 1_790_000_000.4
BODY = b'{"po": "4711"}'
standard = StandardWebhooks(StandardWebhooksSettings())


def verify(headers: dict[bytes, bytes], body: bytes, keys: list[Any]) -> None:
    standard.verify(Example("", headers, body), keys, NOW)


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
    verify(signed(secret), BODY, [standard.key(secret)])


def test_a_body_that_is_not_text_can_be_signed() -> None:
    secret = standard.generate()
    body = bytes(range(256))
    digest = hmac.new(standard.key(secret), b"m.1790000000." + body, hashlib.sha256).digest()
    headers = {
        b"webhook-id": b"m",
        b"webhook-timestamp": b"1790000000",
        b"webhook-signature": b"v1," + base64.b64encode(digest),
    }
    verify(headers, body, [standard.key(secret)])


def test_another_body_id_timestamp_or_secret_is_refused() -> None:
    secret = standard.generate()
    key = standard.key(secret)
    headers = signed(secret)
    with pytest.raises(NotAuthenticated):
        verify(headers, BODY + b" ", [key])
    with pytest.raises(NotAuthenticated):
        verify({**headers, b"webhook-id": b"msg_2"}, BODY, [key])
    with pytest.raises(NotAuthenticated):
        verify({**headers, b"webhook-timestamp": b"1790000001"}, BODY, [key])
    with pytest.raises(NotAuthenticated):
        verify(headers, BODY, [standard.key(standard.generate())])
    with pytest.raises(NotAuthenticated):
        verify(headers, BODY, [])


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
    verify({**headers, b"webhook-signature": mixed}, BODY, [standard.key(new)])
    verify(headers, BODY, [standard.key(old), standard.key(new)])


@pytest.mark.parametrize("offset", [-300, 300])
def test_a_timestamp_at_the_edge_of_the_window_is_taken(offset: int) -> None:
    secret = standard.generate()
    verify(signed(secret, at=NOW + offset), BODY, [standard.key(secret)])


@pytest.mark.parametrize("offset", [-301, 301, -86_400, 10**9])
def test_a_timestamp_outside_the_window_is_refused_on_either_side(offset: int) -> None:
    secret = standard.generate()
    with pytest.raises(NotAuthenticated, match="300 s"):
        verify(signed(secret, at=NOW + offset), BODY, [standard.key(secret)])


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
        verify(headers, BODY, [standard.key(secret)])


def test_the_same_signed_bytes_cannot_be_split_into_another_message() -> None:
    secret = standard.generate()
    body = b"1790000000.evil"
    headers = signed(secret, body, "m")
    shifted = {**headers, b"webhook-id": b"m.1790000000", b"webhook-timestamp": b"1790000000"}
    with pytest.raises(NotAuthenticated):
        verify(shifted, b"evil", [standard.key(secret)])


@pytest.mark.parametrize("size", [0, 7, 65])
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


def test_a_short_secret_of_the_senders_is_taken_with_a_warning_and_one_of_24_bytes_without() -> None:
    short = "whsec_" + base64.b64encode(b"k" * 16).decode()
    verify(signed(short), BODY, [standard.key(short)])
    assert "16 bytes" in (standard.weakness(short) or "")
    assert standard.weakness("whsec_" + base64.b64encode(b"k" * 24).decode()) is None
    assert standard.weakness(standard.generate()) is None


def test_an_asymmetric_signature_is_believed_beside_shared_secrets() -> None:
    private = Ed25519PrivateKey.generate()
    public = "whpk_" + base64.b64encode(private.public_key().public_bytes_raw()).decode()
    headers = {b"webhook-id": b"m", b"webhook-timestamp": b"1790000000"}
    signature = base64.b64encode(private.sign(b"m.1790000000." + BODY))
    keys = [standard.key(standard.generate()), standard.key(public)]
    verify({**headers, b"webhook-signature": b"v1,AAAA v1a," + signature}, BODY, keys)
    assert standard.weakness(public) is None
    with pytest.raises(NotAuthenticated):
        verify({**headers, b"webhook-signature": b"v1a," + signature}, BODY + b" ", keys)
    with pytest.raises(NotAuthenticated):
        verify({**headers, b"webhook-signature": b"v1," + signature}, BODY, keys)
    shared = standard.generate()
    verify(signed(shared), BODY, [standard.key(public), standard.key(shared)])
