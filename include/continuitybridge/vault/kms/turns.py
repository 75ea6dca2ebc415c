"""How many threads may wait for a key management service at once. A call that hangs is known as such by nobody
until its time limit: without a bound, every thread of a process would begin one meanwhile. One that takes as long
as others took lately does not hang: a service that is slow is waited for; in a process that has no answer yet, as
long as a call may take. Who wants what another asks for already waits for its answer, as long."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from copy import copy

from continuitybridge.errors import Unavailable

AT_ONCE = 8
"""Calls to one service that are under way in a process."""
PATIENCE_S = 1.0
"""While a call takes longer than this, no other begins: who comes then, or waits for his turn, goes at once."""
SLOWER = 3.0
"""A call may take so many times what the longest took lately, where that is more."""
LONGEST_PATIENCE_S = 8.0
FIRST_PATIENCE_S = LONGEST_PATIENCE_S
"""While nothing is known of how long calls take. Most services end a call before."""
LATELY = 2 * AT_ONCE
"""So many calls are remembered."""


class _Asked:
    """A call that several may wait for. `began` is None while it waits for its turn."""

    def __init__(self) -> None:
        self.began: float | None = None
        self.answer: bytes | None = None
        self.failed: BaseException | None = None


class Turns:
    """Those of one service."""

    def __init__(self, reference: str) -> None:
        self._reference = reference
        self._changed = threading.Condition()
        self._began: list[float] = []
        """When the calls that are under way began, the oldest first."""
        self._took: deque[float] = deque(maxlen=LATELY)
        """How many seconds the last calls took that were answered."""
        self._asked: dict[Hashable, _Asked] = {}

    def answer(self, what: Hashable, call: Callable[[], bytes]) -> bytes:
        """What `call` gives; of those who ask for the same at once one calls. Raises what it raises, and as
        `one`."""
        with self._changed:
            asked = self._asked.get(what)
            if asked is not None:
                return self._waited_for(asked)
            asked = self._asked[what] = _Asked()
        try:
            with self.one(asked):
                asked.answer = call()
            return asked.answer
        except BaseException as error:
            asked.failed = error
            raise
        finally:
            with self._changed:
                del self._asked[what]
                self._changed.notify_all()

    def _waited_for(self, asked: _Asked) -> bytes:
        while asked.answer is None:
            if isinstance(asked.failed, Exception):
                raise copy(asked.failed)
            if asked.failed is not None:
                # The thread that asked was ended.
                raise Unavailable(f"{self._reference} was not asked to the end", retry_after_s=1)
            left_s = None if asked.began is None else asked.began + self._patience_s() - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise self._takes_long()
            self._changed.wait(left_s)
        return asked.answer

    @contextmanager
    def one(self, asked: _Asked | None = None) -> Iterator[None]:
        """A call is under way meanwhile. Raises `Unavailable` (transient) where none may begin now."""
        began = self._begun()
        if asked is not None:
            with self._changed:
                asked.began = began
                self._changed.notify_all()
        answered = False
        try:
            yield
            answered = True
        finally:
            with self._changed:
                self._began.remove(began)
                if answered:
                    self._took.append(time.monotonic() - began)
                # Of those who wait some wait for a turn, others for an answer.
                self._changed.notify_all()

    def _begun(self) -> float:
        with self._changed:
            while True:
                now = time.monotonic()
                patience_s = self._patience_s()
                left_s = patience_s if not self._began else self._began[0] + patience_s - now
                if left_s <= 0:
                    raise self._takes_long()
                if len(self._began) < AT_ONCE:
                    self._began.append(now)
                    return now
                self._changed.wait(left_s)

    def _takes_long(self) -> Unavailable:
        return Unavailable(f"{self._reference} takes long to answer, others wait for it already", retry_after_s=5)

    def _patience_s(self) -> float:
        if not self._took:
            return FIRST_PATIENCE_S
        return min(LONGEST_PATIENCE_S, max(PATIENCE_S, SLOWER * max(self._took)))
