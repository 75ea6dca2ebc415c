"""A clock that stands still until a test moves it, in place of a module's `time`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Clock:
    """`now` in seconds since the epoch. The monotonic clock began at another time, as that of a machine does."""

    now: float = 1_790_000_000.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now - 1_789_000_000.0
