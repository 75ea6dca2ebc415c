"""How many threads may wait for a key management service at once. A first call that hangs is known as such by
nobody until its time limit: without a bound, every thread of a process would begin one meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from continuitybridge.errors import Unavailable

AT_ONCE = 8
"""Calls to one service that are under way in a process."""
PATIENCE_S = 1.0
"""While a call takes longer than this, no other begins: who comes then, or waits for his turn, goes at once."""


class Turns:
    """Those of one service."""

    def __init__(self, reference: str) -> None:
        self._reference = reference
        self._changed = threading.Condition()
        self._began: list[float] = []
        """When the calls that are under way began, the oldest first."""

    @contextmanager
    def one(self) -> Iterator[None]:
        """A call is under way meanwhile. Raises `Unavailable` (transient) where none may begin now."""
        began = self._begun()
        try:
            yield
        finally:
            with self._changed:
                self._began.remove(began)
                self._changed.notify()

    def _begun(self) -> float:
        with self._changed:
            while True:
                now = time.monotonic()
                left_s = PATIENCE_S if not self._began else self._began[0] + PATIENCE_S - now
                if left_s <= 0:
                    raise Unavailable(
                        f"{self._reference} takes long to answer, others wait for it already", retry_after_s=5
                    )
                if len(self._began) < AT_ONCE:
                    self._began.append(now)
                    return now
                self._changed.wait(left_s)
