"""Lanes: a node process for each plan that has messages under way, so many at most."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from continuitybridge.engine.circuit import CircuitState
from continuitybridge.engine.destinations import DestinationState
from continuitybridge.engine.lane import Lane
from continuitybridge.engine.limits import Limits
from continuitybridge.engine.message import Failure, Outcome
from continuitybridge.engine.runner import Runner
from continuitybridge.errors import BridgeError, Unavailable
from continuitybridge.nodes.base import ConnectionInfo
from continuitybridge.stream.access import Access
from continuitybridge.stream.destinations import SaidOfDestinations
from continuitybridge.stream.plans import Plans
from continuitybridge.stream.units import Held, LaneKey, Place

CALLS_AT_ONCE = 64
"""Messages of one lane for which the outside world is called at once."""
IDLE_S = 600.0
"""A lane that had nothing to do for so long gives its process back."""
LINES_PER_S = 50
"""So many lines a second go into the log of each flow; the others are counted."""

log = logging.getLogger(__name__)
_flow_log = logging.getLogger("continuitybridge.flow")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class LaneServices:
    """What nodes of one lane get from outside."""

    def __init__(self, access: Access, key: LaneKey) -> None:
        self._access = access
        self._key = key
        self._second = 0
        self._lines = 0

    async def connection(self, name: str, *, refused: int | None = None) -> ConnectionInfo:
        organization_id, environment, _, _ = self._key
        return await self._access.connection(organization_id, environment, name, refused=refused)

    def log(self, level: str, text: str, fields: Mapping[str, Any]) -> None:
        second = int(asyncio.get_running_loop().time())
        if second != self._second:
            if self._lines > LINES_PER_S:
                _flow_log.warning("%s: %d lines more were not written", self._key[2], self._lines - LINES_PER_S)
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines <= LINES_PER_S:
            more = "".join(f" {key}={value!r}" for key, value in fields.items())
            _flow_log.log(_LEVELS.get(level, logging.INFO), "%s: %s%s", self._key[2], text, more)


class _Track:
    """One plan's messages: `waiting` until a lane is open, `under_way` in it."""

    __slots__ = ("closing", "key", "lane", "opening", "organization", "under_way", "used", "waiting")

    def __init__(self, key: LaneKey, organization: str) -> None:
        self.key = key
        self.organization = organization
        self.waiting: deque[Held] = deque()
        self.under_way = 0
        self.lane: Lane | None = None
        self.opening = False
        self.closing = False
        self.used = 0.0

    @property
    def place(self) -> Place:
        return self.key[:2]


class Lanes:
    """Runs units; each ends in one call of `on_outcome(held, outcome)`, unless it is `take_back`en.

    Not more than `most` lanes are open: the one idle for longest makes room for a new one. Where none is idle, the
    one opened first is fed no more and makes room as soon as it has finished what it has; then it waits for its
    next turn. So plans take turns too, when more of them have messages than there may be lanes.
    """

    def __init__(
        self,
        runner: Runner,
        plans: Plans,
        access: Access,
        limits: Limits,
        most: int,
        on_outcome: Callable[[Held, Outcome], None],
    ) -> None:
        self._runner = runner
        self._plans = plans
        self._access = access
        self._limits = limits
        self._most = most
        self._on_outcome = on_outcome
        self._destinations = SaidOfDestinations(self._destination_changed)
        self._tracks: dict[LaneKey, _Track] = {}
        self._queue: deque[_Track] = deque()
        """Those that wait for a lane, in turns."""
        self._open = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def destinations(self) -> SaidOfDestinations:
        return self._destinations

    @property
    def open(self) -> int:
        """How many lanes are open, or opening."""
        return self._open

    @property
    def under_way(self) -> int:
        return sum(track.under_way + len(track.waiting) for track in self._tracks.values())

    def submit(self, held: Held) -> None:
        """Run a unit. Never blocks."""
        key = held.lane
        track = self._tracks.get(key)
        if track is None:
            track = self._tracks[key] = _Track(key, held.organization)
        if track.lane is not None and not track.closing:
            self._feed(track, track.lane, held)
            return
        track.waiting.append(held)
        if not track.opening and track.lane is None and track not in self._queue:
            self._queue.append(track)
            self._admit()

    def take_back(self) -> list[Held]:
        """The units that have not begun."""
        found = [held for track in self._tracks.values() for held in track.waiting]
        for track in self._tracks.values():
            track.waiting.clear()
        self._queue.clear()
        return found

    def forget_connections(self, place: Place | None = None) -> None:
        """Connections changed (of one environment): calls that begin from now on ask for them again."""
        for track in self._tracks.values():
            if track.lane is not None and place in (None, track.place):
                track.lane.forget_connections()

    def tidy(self) -> None:
        """Close lanes that are idle for long."""
        before = asyncio.get_running_loop().time() - IDLE_S
        for track in list(self._tracks.values()):
            if track.lane is not None and not track.under_way and track.used < before:
                self._close(track)

    async def aclose(self) -> None:
        """Close all lanes; those that have something under way are ended, and nothing is told of that any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        tracks, self._tracks = self._tracks, {}
        for track in tracks.values():
            if track.lane is not None:
                await track.lane.aclose()

    # -- opening and closing ------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Open lanes for those that wait for one, as far as there is room, and make some."""
        while self._queue and self._open < self._most:
            track = self._queue.popleft()
            if track.waiting:
                track.opening = True
                self._open += 1
                self._in_background(self._open_lane(track))
        wanted = len(self._queue)
        if not wanted:
            return
        held = sorted((t for t in self._tracks.values() if t.lane is not None), key=lambda t: t.used)
        wanted -= sum(track.closing for track in held)
        idle = [track for track in held if not track.under_way and not track.closing]
        for track in idle[: max(0, wanted)]:
            self._close(track)
        if wanted > len(idle):
            busy = [track for track in self._tracks.values() if track.under_way and not track.closing]
            for track in busy[: wanted - len(idle)]:
                track.closing = True

    async def _open_lane(self, track: _Track) -> None:
        organization_id, environment, flow, version = track.key
        try:
            plan = await self._plans.get(organization_id, flow, version)
            lane = Lane(
                self._runner,
                plan,
                services=LaneServices(self._access, track.key),
                limits=self._limits,
                on_outcome=self._ended,
                organization=track.organization,
                environment=environment,
                concurrency=CALLS_AT_ONCE,
                destinations=self._destinations.of(track.place),
                on_circuit=lambda name, circuit: self._circuit_found(track, name, circuit),
                results=False,
            )
            await lane.start()
        except Exception as error:
            self._open -= 1
            track.opening = False
            if not isinstance(error, BridgeError):
                log.exception("no lane for %s %s", flow, version)
                error = BridgeError("the plan cannot be run")
            self._refuse(track, error)
            self._admit()
            return
        track.opening = False
        track.lane = lane
        # The order of the tracks is that of their opening.
        self._tracks[track.key] = self._tracks.pop(track.key)
        while track.waiting:
            self._feed(track, lane, track.waiting.popleft())
        self._admit()

    def _feed(self, track: _Track, lane: Lane, held: Held) -> None:
        track.under_way += 1
        held.plan = lane.plan
        lane.submit(held.claimed.message, held.claimed.entry, token=held)

    def _ended(self, held: Held, outcome: Outcome) -> None:
        track = self._tracks[held.lane]
        track.under_way -= 1
        if not track.under_way:
            track.used = asyncio.get_running_loop().time()
            self._close_if_idle(track)
        self._on_outcome(held, outcome)

    def _close_if_idle(self, track: _Track) -> None:
        if track.under_way:
            return
        if track.closing:
            self._close(track)
        elif self._queue:
            self._admit()

    def _close(self, track: _Track) -> None:
        lane, track.lane, track.closing = track.lane, None, False
        if lane is not None:
            self._in_background(self._close_lane(track, lane))

    async def _close_lane(self, track: _Track, lane: Lane) -> None:
        await lane.aclose()
        self._open -= 1
        if track.lane is None and not track.opening:
            if not track.waiting:
                self._tracks.pop(track.key, None)
            elif track not in self._queue:
                self._queue.append(track)
        self._admit()

    def _refuse(self, track: _Track, error: BridgeError) -> None:
        """The plan cannot be run now, or never: that is how its units end."""
        log.log(
            logging.WARNING if isinstance(error, Unavailable) else logging.ERROR,
            "%s %s cannot be run: %s",
            *track.key[2:],
            error.detail,
        )
        while track.waiting:
            held = track.waiting.popleft()
            message = held.claimed.message
            failure = Failure.of(message, "", "", error)
            failure.message = None
            self._on_outcome(held, Outcome(message.id, "failed", failures=[failure]))

    def _circuit_found(self, track: _Track, name: str, circuit: CircuitState) -> None:
        state = self._destinations.found(track.place, name, circuit)
        self._destination_changed(track.place, state, but=track)

    def _destination_changed(self, place: Place, state: DestinationState, *, but: _Track | None = None) -> None:
        for track in self._tracks.values():
            if track.lane is not None and track.place == place and track is not but:
                track.lane.set_destination(state)

    def _in_background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
