"""May a destination be called now? One `Destinations` per process that makes outside calls.

A destination is a named connection, else the host of a URL (`destination_name`). What was said of it (paused, most
calls at once, circuit) comes from the platform's tables as `DestinationState`s; a destination that nobody said
anything about has the defaults.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from continuitybridge.engine.circuit import CLOSED, Circuit, CircuitPolicy, CircuitState
from continuitybridge.errors import CircuitOpen, DeliveryFailed, DestinationPaused, Verdict

PAUSED_RETRY_S = 300.0
"""When a message that met a paused destination comes back by itself; resuming wakes it at once."""

OF_OTHERS = ""
"""The name of the state that holds for destinations of which nothing else is said."""


def destination_name(connection: str | None, url: str) -> str:
    """A connection's name, else the host of the URL in lower case, without port and brackets."""
    return connection if connection is not None else (urlsplit(url).hostname or "")


@dataclass(frozen=True, slots=True)
class DestinationState:
    """What is said of a destination. `max_concurrency` bounds the calls under way in each process."""

    name: str
    paused: bool = False
    max_concurrency: int = 64
    policy: CircuitPolicy = field(default_factory=CircuitPolicy)
    circuit: CircuitState = CLOSED

    def named(self, name: str) -> DestinationState:
        """What this state, said of all others (`OF_OTHERS`), means for one of them: limits and policy only."""
        return DestinationState(name, False, self.max_concurrency, self.policy)

    def to_data(self) -> dict[str, Any]:
        """As JSON data, for handing it to another process."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> DestinationState:
        """What `to_data` gave."""
        return cls(
            **{**data, "policy": CircuitPolicy(**data["policy"]), "circuit": CircuitState(**data["circuit"])}
        )


class _Destination:
    __slots__ = ("circuit", "declared", "state", "under_way")

    def __init__(self, state: DestinationState) -> None:
        self.state = state
        self.circuit = Circuit(state.policy, state.circuit)
        self.under_way = 0
        self.declared = False
        """Whether something is said of it in particular."""

    def follow(self, state: DestinationState) -> None:
        self.state = state
        self.circuit.adopt(state.circuit, state.policy)


class Destinations:
    """Not for several threads at once. `on_change(name, circuit)` is called when a circuit opened or closed here:
    the platform's tables, and by them the other processes, should know."""

    def __init__(
        self,
        states: Iterable[DestinationState] = (),
        *,
        default: DestinationState | None = None,
        on_change: Callable[[str, CircuitState], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._default = default or DestinationState(OF_OTHERS)
        self._on_change = on_change
        self._clock = clock
        self._known: dict[str, _Destination] = {}
        for state in states:
            self.put(state)

    def put(self, state: DestinationState) -> None:
        """What is now said of a destination; or of all of which nothing else is said, by the name `OF_OTHERS`."""
        if state.name == OF_OTHERS:
            self._default = state
            for name, other in self._known.items():
                if not other.declared:
                    other.follow(replace(state.named(name), circuit=other.circuit.state))
            return
        known = self._known.get(state.name)
        if known is None:
            known = self._known[state.name] = _Destination(state)
        else:
            known.follow(state)
        known.declared = True

    def forget(self, name: str) -> None:
        """Nothing special is said of it any more."""
        known = self._known.get(name)
        if known is not None:
            known.follow(self._default.named(name))
            known.declared = False

    def has_room(self, name: str) -> bool:
        """Whether fewer calls are under way than may be."""
        return self.room(name) > 0

    def room(self, name: str) -> int:
        """How many more calls may begin now; below zero when there are more under way than may be by now."""
        destination = self._get(name)
        return destination.state.max_concurrency - destination.under_way

    def is_closed(self, name: str) -> bool:
        """Whether no call may begin, however few are under way. (Half open is not closed: one may probe.)"""
        destination = self._get(name)
        return destination.state.paused or destination.circuit.phase(self._clock()) == "open"

    def enter(self, name: str) -> None:
        """A call begins; `leave` must follow. Raises `DestinationPaused` or `CircuitOpen` when it must not."""
        destination = self._get(name)
        if destination.state.paused:
            raise DestinationPaused(
                f"destination {name!r} is paused; the message waits until it is resumed",
                destination=name,
                retry_after_s=PAUSED_RETRY_S,
            )
        wait_s = destination.circuit.admit(self._clock())
        if wait_s is not None:
            raise CircuitOpen(
                f"destination {name!r} failed too often in a row; it is called again in {wait_s:.1f} s",
                destination=name,
                retry_after_s=wait_s,
            )
        destination.under_way += 1

    def leave(self, name: str, error: BaseException | None = None) -> None:
        """A call ended: well, or with this error. A terminal `DeliveryFailed` says that the destination works; any
        other error (a template that lacks a value, a connection that cannot be looked up, a call that was
        cancelled) says nothing of it."""
        destination = self._get(name)
        destination.under_way -= 1
        now = self._clock()
        if error is None:
            changed = destination.circuit.succeeded(now)
        elif isinstance(error, DeliveryFailed):
            if error.verdict is Verdict.TRANSIENT:
                asked = error.facts.get("retry_after_s")
                after_s = float(asked) if isinstance(asked, int | float) else 0.0
                changed = destination.circuit.failed(now, retry_after_s=after_s)
            else:
                changed = destination.circuit.succeeded(now)
        else:
            destination.circuit.abandoned()
            changed = False
        if changed and self._on_change is not None:
            self._on_change(name, destination.circuit.state)

    def _get(self, name: str) -> _Destination:
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = _Destination(self._default.named(name))
        return known
