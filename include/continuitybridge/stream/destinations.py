"""What is said of destinations, as one worker knows it: from the table, and from its own lanes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from continuitybridge.destinations import shared
from continuitybridge.engine.circuit import CircuitState
from continuitybridge.engine.destinations import DestinationState
from continuitybridge.errors import BridgeError
from continuitybridge.stream.units import Place

CLOCKS_APART_S = 0.5

log = logging.getLogger(__name__)


class SaidOfDestinations:
    """`on_change(place, state)` is called for each destination of which something else is said than before."""

    def __init__(self, on_change: Callable[[Place, DestinationState], None]) -> None:
        self._on_change = on_change
        self._default = shared.default_state()
        self._said: dict[Place, dict[str, DestinationState]] = {}
        self._telling: set[asyncio.Task[None]] = set()

    def of(self, place: Place) -> list[DestinationState]:
        """What holds for those of which nothing is said, and what is said of the others."""
        return [self._default, *self._said.get(place, {}).values()]

    async def refresh(self) -> None:
        """Read everything that is said. Raises `Unavailable`."""
        self._replace(await asyncio.to_thread(shared.all_states))

    async def refresh_place(self, place: Place) -> None:
        """Read what is said of one environment's destinations. Raises `Unavailable`."""
        _, *states = await asyncio.to_thread(shared.states, *place)
        self._replace({**{at: list(said.values()) for at, said in self._said.items()}, place: states})

    def found(self, place: Place, name: str, circuit: CircuitState) -> DestinationState:
        """A lane found that a circuit opened or closed: what is said of the destination now. Other workers know it
        by way of the table."""
        said = self._said.setdefault(place, {})
        said[name] = replace(said.get(name) or self._default.named(name), circuit=circuit)
        log.warning("the circuit of destination %s %s", name, "opened" if circuit.openings else "closed")
        telling = asyncio.get_running_loop().create_task(self._tell(place, name, circuit))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)
        return said[name]

    async def _tell(self, place: Place, name: str, circuit: CircuitState) -> None:
        try:
            await asyncio.to_thread(shared.record, *place, name, circuit)
        except BridgeError as error:
            log.warning("others do not know of the circuit of %s: %s", name, error.detail)

    def _replace(self, states: dict[Place, list[DestinationState]]) -> None:
        before, self._said = self._said, {at: {state.name: state for state in said} for at, said in states.items()}
        for place in before.keys() | self._said.keys():
            old, new = before.get(place, {}), self._said.get(place, {})
            for name in old.keys() | new.keys():
                state = new.get(name) or self._default.named(name)
                if not _alike(state, old.get(name)):
                    self._on_change(place, state)


def _alike(state: DestinationState, before: DestinationState | None) -> bool:
    """Whether nothing else is said; the table's times come back a little different each time."""
    if before is None:
        return False
    apart_s = abs(state.circuit.opened_until - before.circuit.opened_until)
    circuit = replace(before.circuit, opened_until=state.circuit.opened_until)
    return apart_s < CLOCKS_APART_S and state == replace(before, circuit=circuit)
