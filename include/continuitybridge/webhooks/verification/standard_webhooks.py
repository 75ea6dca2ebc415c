"""HMAC-SHA256 signatures as Standard Webhooks 1.0 has them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import ClassVar

from continuitybridge.errors import ConfigurationError, NotAuthenticated
from continuitybridge.webhooks.verification.base import Headers, Verifier

PREFIX = "whsec_"
MIN_SECRET_BYTES = 24
MAX_SECRET_BYTES = 64
TOLERANCE_S = 300
"""How far a timestamp may lie in the past or the future, in seconds."""
MAX_ID_BYTES = 255
MAX_TIMESTAMP_DIGITS = 12
MAX_SIGNATURES = 16
"""Signatures looked at in one header: senders rotating a secret send two."""


class StandardWebhooks(Verifier):
    """`webhook-signature: v1,<base64>` over `<webhook-id>.<webhook-timestamp>.<raw body>`.

    Any valid signature of several suffices; other versions and malformed ones are passed over. The timestamp
    is an integer within 300 s of now on either side. An id with a full stop is refused: with one, another split
    of the same signed bytes could pass for another message.
    """

    name: ClassVar[str] = "standard_webhooks"
    headers: ClassVar[tuple[str, ...]] = ("webhook-id", "webhook-timestamp", "webhook-signature")

    def generate(self) -> str:
        return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()

    def key(self, secret: str) -> bytes:
        try:
            if not secret.startswith(PREFIX):
                raise ValueError
            key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
            if not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
                raise ValueError
        except (ValueError, binascii.Error):
            raise ConfigurationError(
                f"a Standard Webhooks secret is {PREFIX} followed by the base64 of {MIN_SECRET_BYTES} to "
                f"{MAX_SECRET_BYTES} bytes",
                field="secret",
            ) from None
        return key

    def verify(self, headers: Headers, body: bytes, keys: Sequence[bytes], now: float) -> None:
        message_id = headers.get(b"webhook-id", b"")
        timestamp = headers.get(b"webhook-timestamp", b"")
        signatures = headers.get(b"webhook-signature", b"")
        if not (message_id and timestamp and signatures):
            raise _refused("the headers webhook-id, webhook-timestamp and webhook-signature are needed")
        if len(message_id) > MAX_ID_BYTES or b"." in message_id:
            raise _refused(f"webhook-id must be at most {MAX_ID_BYTES} bytes without a full stop")
        if not timestamp.isdigit() or len(timestamp) > MAX_TIMESTAMP_DIGITS:
            raise _refused("webhook-timestamp must be an integer: seconds since 1970-01-01T00:00:00Z")
        if abs(int(now) - int(timestamp)) > TOLERANCE_S:
            raise _refused(f"webhook-timestamp is more than {TOLERANCE_S} s away from now")
        candidates = [
            decoded
            for given in signatures.split(b" ")[:MAX_SIGNATURES]
            if given.startswith(b"v1,") and (decoded := _decoded(given[3:])) is not None
        ]
        signed = b"%b.%b." % (message_id, timestamp)
        matches = 0
        for key in keys:
            digest = hmac.new(key, signed, hashlib.sha256)
            digest.update(body)
            expected = digest.digest()
            for candidate in candidates:
                matches += hmac.compare_digest(expected, candidate)
        if not matches:
            raise _refused("no signature in webhook-signature matches")


def _refused(detail: str) -> NotAuthenticated:
    return NotAuthenticated(detail, scheme="Standard-Webhooks")


def _decoded(signature: bytes) -> bytes | None:
    try:
        return base64.b64decode(signature, validate=True)
    except (ValueError, binascii.Error):
        return None
