"""How many threads may wait for a key management service at once. A call that hangs is known as such by nobody
until its time limit: without a bound, every thread of a process would begin one meanwhile. One that takes as long
as others took lately does not hang: a service that is slow is waited for."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from continuitybridge.errors import Unavailable

AT_ONCE = 8
"""Calls to one service that are under way in a process."""
PATIENCE_S = 1.0
"""While a call takes longer than this, no other begins: who comes then, or waits for his turn, goes at once."""
FIRST_PATIENCE_S = 2.5
"""The same while nothing is known of how long calls take."""
SLOWER = 3.0
"""A call may take so many times what the longest took lately, where that is more."""
LONGEST_PATIENCE_S = 8.0
LATELY = 2 * AT_ONCE
"""So many calls are remembered."""


class Turns:
    """Those of one service."""

    def __init__(self, reference: str) -> None:
        self._reference = reference
        self._changed = threading.Condition()
        self._began: list[float] = []
        """When the calls that are under way began, the oldest first."""
        self._took: deque[float] = deque(maxlen=LATELY)
        """How many seconds the last calls took that were answered."""

    @contextmanager
    def one(self) -> Iterator[None]:
        """A call is under way meanwhile. Raises `Unavailable` (transient) where none may begin now."""
        began = self._begun()
        answered = False
        try:
            yield
            answered = True
        finally:
            with self._changed:
                self._began.remove(began)
                if answered:
                    self._took.append(time.monotonic() - began)
                self._changed.notify()

    def _begun(self) -> float:
        with self._changed:
            while True:
                now = time.monotonic()
                patience_s = self._patience_s()
                left_s = patience_s if not self._began else self._began[0] + patience_s - now
                if left_s <= 0:
                    raise Unavailable(
                        f"{self._reference} takes long to answer, others wait for it already", retry_after_s=5
                    )
                if len(self._began) < AT_ONCE:
                    self._began.append(now)
                    return now
                self._changed.wait(left_s)

    def _patience_s(self) -> float:
        if not self._took:
            return FIRST_PATIENCE_S
        return min(LONGEST_PATIENCE_S, max(PATIENCE_S, SLOWER * max(self._took)))
