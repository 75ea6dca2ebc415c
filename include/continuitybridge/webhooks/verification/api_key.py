"""A key that the sender shows with each request."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import ClassVar

from continuitybridge.errors import ConfigurationError, NotAuthenticated
from continuitybridge.webhooks.verification.base import Headers, Verifier

PREFIX = "cbh_"
MIN_KEY_CHARACTERS = 24
MAX_KEY_CHARACTERS = 512


class ApiKey(Verifier):
    """`X-API-Key: <key>` or `Authorization: Bearer <key>` (RFC 6750), not both with different keys.

    Compared by SHA-256 digest, so that neither length nor content shows in the time taken. Nothing binds the key
    to the body: whoever reads one request can make others.
    """

    name: ClassVar[str] = "api_key"
    headers: ClassVar[tuple[str, ...]] = ("x-api-key", "authorization")

    def generate(self) -> str:
        return PREFIX + secrets.token_urlsafe(32)

    def key(self, secret: str) -> bytes:
        fit = MIN_KEY_CHARACTERS <= len(secret) <= MAX_KEY_CHARACTERS
        if not (fit and secret.isascii() and secret.isprintable() and " " not in secret):
            raise ConfigurationError(
                f"an API key has {MIN_KEY_CHARACTERS} to {MAX_KEY_CHARACTERS} printable ASCII characters and no "
                "spaces",
                field="secret",
            )
        return hashlib.sha256(secret.encode()).digest()

    def verify(self, headers: Headers, body: bytes, keys: Sequence[bytes], now: float) -> None:
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        shown = {headers.get(b"x-api-key"), token.strip() if scheme.lower() == b"bearer" else None} - {None, b""}
        if len(shown) != 1:
            raise NotAuthenticated("one key is needed, in X-API-Key or as Authorization: Bearer")
        presented = hashlib.sha256(shown.pop() or b"").digest()
        matches = 0
        for key in keys:
            matches += hmac.compare_digest(presented, key)
        if not matches:
            raise NotAuthenticated("the key is not valid for this endpoint")
