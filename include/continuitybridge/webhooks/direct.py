"""What runs messages where they are accepted, as intake knows it (`stream.direct` is one)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from continuitybridge.inbox.accept import Acceptance, Lease
from continuitybridge.inbox.replies import Notice
from continuitybridge.settings import Settings
from continuitybridge.vault.keyring import Keyring


class Reservation(Lease, Protocol):
    """Room for a message that is run where it was accepted."""

    def end(self) -> None:
        """Give the room back, unless the message was claimed."""


class Direct(Protocol):
    """Runs messages whose callers wait for the result."""

    def start(self) -> None: ...

    async def aclose(self) -> None: ...

    def reserve(self, acceptance: Acceptance, organization: str) -> Reservation | None: ...


MakeDirect = Callable[[Keyring, Settings, Callable[[Notice], bool]], Direct]
"""Its last argument takes an answer to the request that waits for it, and says whether no others need
hear it."""
