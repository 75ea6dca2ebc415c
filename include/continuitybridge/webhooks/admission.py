"""Who is admitted before a message is accepted."""

from __future__ import annotations

import time
from typing import Protocol

from continuitybridge.errors import TooManyRequests
from continuitybridge.webhooks.target import Target


class Admission(Protocol):
    """A hook between verification and acceptance."""

    def admit(self, target: Target) -> None:
        """Return, or raise `TooManyRequests` (facts: `retry_after_s`); a sender that waits so long is admitted
        unless others took its place."""


class TokenBucket:
    """So many messages per second of each endpoint, in this process; a second's worth may come at once."""

    def __init__(self, rate_per_s: float) -> None:
        self._rate = rate_per_s
        self._burst = max(1.0, rate_per_s)
        self._full_at: dict[str, float] = {}

    def admit(self, target: Target) -> None:
        # The bucket as one number: the time at which it will be full again (generic cell rate algorithm).
        now = time.monotonic()
        full_at = max(self._full_at.get(target.place, now), now) + 1.0 / self._rate
        wait_s = full_at - now - self._burst / self._rate
        if wait_s > 1e-9:
            raise TooManyRequests(
                f"the endpoint takes at most {self._rate:g} messages per second", retry_after_s=wait_s
            )
        self._full_at[target.place] = full_at
