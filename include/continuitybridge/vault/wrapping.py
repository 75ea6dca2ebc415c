"""What wraps data keys: the master key itself, one that a passphrase seals, or a key that a key management service
keeps and never shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from continuitybridge.vault.cipher import associated_data


@dataclass(frozen=True, slots=True)
class Place:
    """Which data key it is: a wrapped one opens as this one only."""

    organization_id: UUID
    version: int

    def __str__(self) -> str:
        return f"data key {self.version} of organization {self.organization_id}"

    @property
    def associated(self) -> bytes:
        """Associated data (AES-256-GCM)."""
        return associated_data(self.organization_id, "data-key", str(self.version))

    @property
    def context(self) -> dict[str, str]:
        """The same for a service that takes names and values, which it may write into its trail in clear."""
        return {
            "purpose": "continuitybridge-data-key",
            "organization": str(self.organization_id),
            "version": str(self.version),
        }


class WrappingKey(Protocol):
    """One key of the master key's file."""

    @property
    def key_id(self) -> str:
        """Tells keys apart without saying anything about them; it stands beside all that they wrapped."""

    def line(self) -> str:
        """What stands for it in the file."""

    def wrap(self, place: Place, key: bytes) -> bytes:
        """A data key (32 bytes), wrapped. Raises `Unavailable`."""

    def unwrap(self, place: Place, wrapped: bytes) -> bytes:
        """The data key. Raises `DecryptionFailed` when it was altered or wrapped for another place or by another
        key, and `Unavailable`."""

    def require_ready(self) -> None:
        """Raise `Unavailable` where it is known that this key opens nothing now. Asks nobody."""

    def require_answering(self) -> None:
        """Raise `Unavailable` where whoever keeps this key did not answer a moment ago, and nobody is to wait for
        who asks again. Asks nobody."""
