"""What credentials have in common that are shown with each request as they are."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import ClassVar

from continuitybridge.errors import ConfigurationError
from continuitybridge.webhooks.verification.base import SettingsT, Verifier

MIN_CHARACTERS = 8
MAX_CHARACTERS = 512
PREFIX = "cbh_"


class Credential(Verifier[SettingsT]):
    """A way whose requests show the secret. Kept and compared by SHA-256 digest, so that neither length nor
    content shows in the time taken."""

    characters: ClassVar[str] = "printable ASCII characters and no spaces"
    """Of what a secret is made, as a refusal says it."""

    def takes_get(self) -> bool:
        return True

    def generate(self) -> str:
        return PREFIX + secrets.token_urlsafe(32)

    def key(self, secret: str) -> bytes:
        if not (MIN_CHARACTERS <= len(secret) <= MAX_CHARACTERS and self.is_fit(secret)):
            raise ConfigurationError(
                f"{self.label}: a secret has {MIN_CHARACTERS} to {MAX_CHARACTERS} {self.characters}",
                field="secret",
            )
        return hashlib.sha256(self.shown(secret)).digest()

    def is_fit(self, secret: str) -> bool:
        """Whether a secret is made of such characters."""
        return secret.isascii() and secret.isprintable() and " " not in secret

    def shown(self, secret: str) -> bytes:
        """What a request shows of a secret."""
        return secret.encode()

    def check(self, shown: bytes, keys: Sequence[bytes]) -> None:
        """Refuse unless one of the keys is shown."""
        presented = hashlib.sha256(shown).digest()
        found = False
        for key in keys:
            found |= hmac.compare_digest(presented, key)
        if not found:
            raise self.refused(f"the {self.label} credential is not valid for this endpoint")


def bearer(authorization: bytes) -> bytes:
    """The token of `Authorization: Bearer <token>` (RFC 6750); empty for anything else."""
    scheme, _, token = authorization.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""
