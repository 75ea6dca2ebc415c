"""What signatures have in common."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from continuitybridge.webhooks.verification.base import (
    TOLERANCE_S,
    Headers,
    Received,
    SettingsT,
    Verifier,
    text_key,
)

MAX_SIGNATURES = 16
"""Signatures looked at in one request: senders rotating a secret send two."""
MAX_TIMESTAMP_DIGITS = 16


class Signing(Verifier[SettingsT]):
    """A way whose requests bear signatures. The secret's characters are the key."""

    prefix: ClassVar[str] = ""
    """What secrets made here begin with."""

    def generate(self) -> str:
        return self.prefix + secrets.token_urlsafe(32) if self.origin == "made" else super().generate()

    def key(self, secret: str) -> Any:
        return text_key(secret, f"a {self.label} secret")

    def require(self, headers: Headers, name: str) -> bytes:
        """A header's value; refused when it is not there."""
        value = headers.get(name.encode())
        if not value:
            raise self.refused(f"the header {name} is needed")
        return value

    def check_time(self, raw: bytes, now: float, name: str, *, per_s: int = 1) -> None:
        """Refuse a timestamp that is no integer (`per_s` of them make a second), or too far from now on either
        side."""
        if not raw.isdigit() or len(raw) > MAX_TIMESTAMP_DIGITS:
            unit = "seconds" if per_s == 1 else "milliseconds"
            raise self.refused(f"{name} must be an integer: {unit} since 1970-01-01T00:00:00Z")
        if abs(int(now) - int(raw) // per_s) > TOLERANCE_S:
            raise self.refused(f"{name} is more than {TOLERANCE_S} s away from now")

    def check(self, expected: Iterable[bytes], candidates: Sequence[bytes | None], name: str) -> None:
        """Refuse unless one of the candidates is one of the expected digests. Every pair is compared, each in
        constant time."""
        found = False
        for digest in expected:
            for candidate in candidates[:MAX_SIGNATURES]:
                if candidate is not None:
                    found |= hmac.compare_digest(digest, candidate)
        if not found:
            raise self.refused(f"no signature in {name} matches")


class HubSignature(Signing[SettingsT]):
    """`X-Hub-Signature-256: sha256=<hex>`, HMAC-SHA256 of the body: GitHub's scheme, which others took over."""

    headers = ("x-hub-signature-256", "x-hub-signature")

    def verify(self, received: Received, keys: Sequence[Any], now: float) -> None:
        given = self.require(received.headers, self.headers[0])
        self.check(
            [hmac.digest(key, received.body, hashlib.sha256) for key in keys],
            [from_hex(each[7:]) for each in several(given) if each.startswith(b"sha256=")],
            self.headers[0],
        )


def several(value: bytes) -> list[bytes]:
    """The signatures in a header that has one, or several with commas between them (a repeated header)."""
    return [each.strip() for each in value.split(b",", MAX_SIGNATURES)[:MAX_SIGNATURES]]


def from_hex(text: bytes) -> bytes | None:
    """The bytes, or None for what is no hexadecimal text."""
    try:
        return binascii.unhexlify(text)
    except ValueError:
        return None


def from_base64(text: bytes) -> bytes | None:
    """The bytes, or None for what is no base64 (RFC 4648, 4)."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return None


def from_base64url(text: bytes) -> bytes | None:
    """The bytes, or None for what is no base64url (RFC 4648, 5); padding may be left out."""
    try:
        return base64.b64decode(text.rstrip(b"=") + b"=" * (-len(text.rstrip(b"=")) % 4), b"-_", validate=True)
    except ValueError:
        return None
