"""What a process knows that follows no tables, and its clock."""

from __future__ import annotations

import pytest

from clock import Clock
from continuitybridge.guard import admission, known, limiter, middleware, offences
from continuitybridge.guard.known import Known, Policy


class Told(Known):
    """`policies` by the slugs of their organizations; `until`: ends of blocks by organization and address."""

    def __init__(self) -> None:
        super().__init__()
        self.policies: dict[str, Policy] = {}
        self.until: dict[tuple[str, str], float] = {}

    def start(self) -> None:
        pass

    def policy(self, organization: str) -> Policy:
        return self.policies.get(organization, Policy())

    def blocked_until(self, address: str, organization: str = known.PLATFORM) -> float | None:
        return self.until.get((organization, address)) or super().blocked_until(address, organization)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What the guard knows in this test."""
    found = Told()
    for module in (admission, middleware, offences):
        monkeypatch.setattr(module, "known", found)
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The guard's clock."""
    clock = Clock()
    for module in (known, limiter, middleware, offences):
        monkeypatch.setattr(module, "time", clock)
    return clock
