"""What a way of verification is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

Headers = Mapping[bytes, bytes]
"""A request's headers: lower-case names; values of a repeated header joined by `, ` (RFC 9110, 5.3)."""


class Verifier(ABC):
    """One way of verification. Stateless; comparisons take the same time whatever differs."""

    name: ClassVar[str]
    headers: ClassVar[tuple[str, ...]]
    """The headers it reads (lower case): credentials, never stored with a message."""

    @abstractmethod
    def generate(self) -> str:
        """A new random secret, as its owner is shown it."""

    @abstractmethod
    def key(self, secret: str) -> bytes:
        """What `verify` needs of a secret. Raises `ConfigurationError` (never quoting it) for an unfit one."""

    @abstractmethod
    def verify(self, headers: Headers, body: bytes, keys: Sequence[bytes], now: float) -> None:
        """Return when the raw request was made with one of the keys (several are valid while a secret is
        rotated); raise `NotAuthenticated` otherwise, whatever the headers' bytes are. `now` in seconds since
        the epoch."""
