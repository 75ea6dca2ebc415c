"""The circuit breaker of a destination: pure state, no clock, no lock, no storage of its own.

closed → (so many failures in a row) → open → (its wait is over) → half-open: one call probes → closed, or open
again with twice the wait. What one process finds out is told to others as a `CircuitState`; each keeps a `Circuit`
and adopts what it is told.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Phase = Literal["closed", "open", "half_open"]

PROBE_TIMEOUT_S = 60.0
"""A probe that reported nothing for so long is given up: the next call probes."""


@dataclass(frozen=True, slots=True)
class CircuitPolicy:
    """`failures_to_open` in a row open the circuit (0: never) for `wait_s`; each opening that follows without a
    success between doubles the wait, up to `max_wait_s`."""

    failures_to_open: int = 10
    wait_s: float = 5.0
    max_wait_s: float = 300.0

    def wait_of(self, openings: int) -> float:
        """Seconds that the circuit stays open at its `openings`th opening in a row."""
        return min(self.max_wait_s, self.wait_s * 2.0 ** min(openings - 1, 60))


@dataclass(frozen=True, slots=True)
class CircuitState:
    """What processes tell each other. `failures` in a row; `openings` in a row, 0 when closed; `opened_until`
    in seconds since the epoch."""

    failures: int = 0
    openings: int = 0
    opened_until: float = 0.0


CLOSED = CircuitState()


class Circuit:
    """One destination's breaker in one process. `now` is in seconds since the epoch.

    Each call that `admit` lets begin must end in exactly one of `succeeded`, `failed` and `abandoned`. Only
    failures that say something about the destination count: transient ones. An answer that refuses the message for
    good (a 4xx) is a success here: the destination works.
    """

    __slots__ = ("_policy", "_probing_since", "_state")

    def __init__(self, policy: CircuitPolicy, state: CircuitState = CLOSED) -> None:
        self._policy = policy
        self._state = state
        self._probing_since: float | None = None

    @property
    def state(self) -> CircuitState:
        return self._state

    def phase(self, now: float) -> Phase:
        if not self._state.openings:
            return "closed"
        return "open" if now < self._state.opened_until else "half_open"

    def admit(self, now: float) -> float | None:
        """None: the call may begin. Else it may not, and coming back makes sense after so many seconds."""
        phase = self.phase(now)
        if phase == "closed":
            return None
        if phase == "open":
            return self._state.opened_until - now
        if self._probing_since is None or now - self._probing_since >= PROBE_TIMEOUT_S:
            self._probing_since = now
            return None
        return self._policy.wait_s

    def succeeded(self, now: float) -> bool:
        """The destination took or refused a call. True when that changed what others should know."""
        if self.phase(now) == "open":
            # A call from before the opening: the probe decides, so that a destination that takes one in a hundred
            # does not flap.
            return False
        self._probing_since = None
        changed = self._state.openings > 0
        self._state = CLOSED
        return changed

    def failed(self, now: float, *, retry_after_s: float = 0.0) -> bool:
        """A call failed transiently; a destination that said when to come back is believed, up to the longest
        wait. True when that changed what others should know."""
        phase = self.phase(now)
        if phase == "open":
            return False
        failures = self._state.failures + 1
        if phase == "closed" and not 0 < self._policy.failures_to_open <= failures:
            self._state = replace(self._state, failures=failures)
            return False
        self._probing_since = None
        openings = self._state.openings + 1
        asked = min(self._policy.max_wait_s, retry_after_s)
        wait_s = max(self._policy.wait_of(openings), asked)
        self._state = CircuitState(failures, openings, now + wait_s)
        return True

    def abandoned(self) -> None:
        """A call ended without telling anything (cancelled, or its process died): the next may probe."""
        self._probing_since = None

    def adopt(self, state: CircuitState, policy: CircuitPolicy | None = None) -> None:
        """Take over what another process, or a person, says. Failures counted here go on counting while both
        say closed."""
        self._policy = policy or self._policy
        if state.openings == 0 and self._state.openings == 0:
            return
        if state != self._state:
            self._probing_since = None
            self._state = state
