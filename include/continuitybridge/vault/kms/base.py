"""What a key management service gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

from continuitybridge.errors import Unavailable, Verdict

CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 5.0


class KeyServiceRefused(Unavailable):
    """The service answers and does not do it: no right to the key, or the key is disabled, deleted or another.
    Nothing is lost, and asking again does not help: somebody has to put it right there; facts: `key`, `reason`."""

    code = "key-service-refused"
    title = "The key management service refuses"
    verdict = Verdict.TERMINAL


class KeyService(Protocol):
    """One key of a service. `name` is what stands behind the scheme; the constructor asks nobody and raises
    `ConfigurationError` when it is none. Credentials are the surrounding's (an instance's role, a file of an
    agent), never part of the name.

    Both verbs answer within some ten seconds. They raise `Unavailable` when the service does not answer or has too
    much to do, and `KeyServiceRefused`. Threads call them at once.
    """

    scheme: ClassVar[str]

    def __init__(self, name: str) -> None: ...

    def wrap(self, key: bytes, context: Mapping[str, str]) -> bytes:
        """Encrypt 32 bytes; they are bound to `context`, as associated data of the encryption."""

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """What `wrap` got. Raises `DecryptionFailed` when it was altered, or wrapped with another context."""
