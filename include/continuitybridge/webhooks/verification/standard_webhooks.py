"""Signatures as Standard Webhooks 1.0 has them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field

from continuitybridge.errors import ConfigurationError
from continuitybridge.webhooks.verification._signing import MAX_SIGNATURES, Signing, from_base64
from continuitybridge.webhooks.verification.base import Example, Received, VerificationSettings, weakness

SECRET_PREFIX = "whsec_"  # noqa: S105  (what it begins with)
PUBLIC_KEY_PREFIX = "whpk_"
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 8, 64
PUBLIC_KEY_BYTES = 32
MAX_ID_BYTES = 255


class StandardWebhooksSettings(VerificationSettings):
    type: Literal["standard_webhooks"] = Field(default="standard_webhooks", description="The way's name.")


class StandardWebhooks(Signing[StandardWebhooksSettings]):
    """[Standard Webhooks 1.0](https://www.standardwebhooks.com): `webhook-signature` has one or several signatures
    over `<webhook-id>.<webhook-timestamp>.<body>`, separated by spaces. Any valid one suffices; other versions and
    malformed ones are passed over.

    `v1,<base64>` is HMAC-SHA256 under a secret `whsec_…`, which is made here unless the sender has one.
    `v1a,<base64>` is Ed25519: give the sender's public key `whpk_…` as the secret.

    The timestamp is an integer within 300 s of now on either side. An id with a full stop is refused: with one,
    another split of the same signed bytes could pass for another message.
    """

    name = "standard_webhooks"
    label = "Standard Webhooks"
    summary = "HMAC-SHA256 or Ed25519 over id, timestamp and body, as Standard Webhooks 1.0 says."
    Settings = StandardWebhooksSettings
    headers = ("webhook-id", "webhook-timestamp", "webhook-signature")
    scheme = "Standard-Webhooks"
    idempotency = MappingProxyType({"header": "webhook-id"})
    examples = (
        Example(
            "Signed with a shared secret",
            secret="whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",  # noqa: S106
            headers={
                b"webhook-id": b"msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
                b"webhook-timestamp": b"1649367553",
                b"webhook-signature": b"v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
            },
            body=b'{"email":"test@example.com","username":"test_user"}',
            at=1649367553,
        ),
    )

    def generate(self) -> str:
        return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()

    def key(self, secret: str) -> Any:
        """Bytes for HMAC, a public key for Ed25519."""
        if secret.startswith(PUBLIC_KEY_PREFIX):
            raw = _decoded(secret.removeprefix(PUBLIC_KEY_PREFIX))
            if raw is not None and len(raw) == PUBLIC_KEY_BYTES:
                from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

                return Ed25519PublicKey.from_public_bytes(raw)
        elif secret.startswith(SECRET_PREFIX):
            raw = _decoded(secret.removeprefix(SECRET_PREFIX))
            if raw is not None and MIN_SECRET_BYTES <= len(raw) <= MAX_SECRET_BYTES:
                return raw
        raise ConfigurationError(
            f"a Standard Webhooks secret is {SECRET_PREFIX} followed by the base64 of {MIN_SECRET_BYTES} to "
            f"{MAX_SECRET_BYTES} bytes, or {PUBLIC_KEY_PREFIX} followed by that of an Ed25519 public key",
            field="secret",
        )

    def weakness(self, secret: str) -> str | None:
        key = self.key(secret)
        return weakness(len(key)) if isinstance(key, bytes) else None

    def verify(self, received: Received, keys: Sequence[Any], now: float) -> None:
        headers = received.headers
        message_id = headers.get(b"webhook-id", b"")
        timestamp = headers.get(b"webhook-timestamp", b"")
        signatures = headers.get(b"webhook-signature", b"")
        if not (message_id and timestamp and signatures):
            raise self.refused("the headers webhook-id, webhook-timestamp and webhook-signature are needed")
        if len(message_id) > MAX_ID_BYTES or b"." in message_id:
            raise self.refused(f"webhook-id must be at most {MAX_ID_BYTES} bytes without a full stop")
        self.check_time(timestamp, now, "webhook-timestamp")
        given = signatures.split(b" ")[:MAX_SIGNATURES]
        signed = b"%b.%b.%b" % (message_id, timestamp, received.body)
        shared = [key for key in keys if isinstance(key, bytes)]
        if len(shared) < len(keys) and _any_ed25519(given, [k for k in keys if k not in shared], signed):
            return
        self.check(
            [hmac.digest(key, signed, hashlib.sha256) for key in shared],
            [from_base64(each[3:]) for each in given if each.startswith(b"v1,")],
            "webhook-signature",
        )


def _any_ed25519(given: Sequence[bytes], keys: Sequence[Any], signed: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    for each in given:
        signature = from_base64(each[4:]) if each.startswith(b"v1a,") else None
        for key in keys if signature is not None else ():
            try:
                key.verify(signature, signed)
            except InvalidSignature:
                continue
            return True
    return False


def _decoded(text: str) -> bytes | None:
    try:
        return from_base64(text.encode("ascii"))
    except UnicodeEncodeError:
        return None
