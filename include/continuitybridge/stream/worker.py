"""The stream worker: takes messages as they come, runs them, writes what became of them.

Guarantees as `inbox.stream` gives them: whatever is killed, what was accepted is run by somebody, at least once,
and settled once. Where a worker is killed, what it held is taken up by others when its leases have run out.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Any
from uuid import UUID

from continuitybridge import connections, destinations
from continuitybridge.database import aio
from continuitybridge.deployments.verbs import CHANNEL as DEPLOYED
from continuitybridge.engine.limits import Limits
from continuitybridge.engine.message import Outcome
from continuitybridge.engine.runner import Runner
from continuitybridge.errors import BridgeError, NotFound, Unavailable
from continuitybridge.inbox import claim as claims
from continuitybridge.inbox import waits
from continuitybridge.inbox.accept import CHANNEL as ACCEPTED
from continuitybridge.inbox.batches import FlowKey
from continuitybridge.inbox.holds import CHANNEL as HELD
from continuitybridge.inbox.settle.writing import Became
from continuitybridge.inbox.stream import Hear, Sealed, StreamClaims, Wanted, giving_back
from continuitybridge.settings import Settings, get_settings
from continuitybridge.stream.access import Access
from continuitybridge.stream.lanes import Lanes
from continuitybridge.stream.listening import RETRY_S, Listener
from continuitybridge.stream.plans import Bounds, Plans
from continuitybridge.stream.precedence import Precedence
from continuitybridge.stream.settling import BUSY_PAUSE_S as SETTLE_PAUSE_S
from continuitybridge.stream.settling import Settler
from continuitybridge.stream.sharing import Sharing
from continuitybridge.stream.turns import Room, Turns
from continuitybridge.stream.units import Held
from continuitybridge.stream.upkeep import Upkeep
from continuitybridge.vault.cipher import DecryptionFailed
from continuitybridge.vault.keyring import Cipher

LOOK_S = 1.0
"""How often all flows are looked at, for what no notification tells: retries that are due, leases that ran out."""
LOOK_BLIND_S = 0.25
"""The same while the connection that listens is down."""
BUSY, VERY_BUSY = 8, 48
BUSY_PAUSE_S, VERY_BUSY_PAUSE_S = 0.005, 0.01
"""With more than so many units under way, so much time is between two claims: they come together then."""
LEAST_PAUSE_S = 0.001
"""The same for who has nothing under way here yet: he does not wait for the others' sake."""
MOST_AT_ONCE = 24
"""Most units of one claim: who has none under way waits for one that is being made, and for what it took to begin.
Where there may be more, the next claim follows at once."""
REFRESH_S = 30.0
"""How often is read again what notifications told to have changed, in case one was lost."""
SETTLE_REST_S = 2.0
"""How long a stopping worker goes on trying to write what has ended."""
REST_S = 5.0
"""How long an organization is left alone whose keys cannot be had."""

log = logging.getLogger(__name__)


class StreamWorker:
    """One worker of an event loop. `owner` names it in its leases and begins with `stream/`: no other may have
    that name, ever.

    What it holds is bounded in units and bytes (`BRIDGE_STREAM_MAX_MESSAGES`, `BRIDGE_STREAM_MAX_BYTES`), and so
    is the number of its node processes (`BRIDGE_STREAM_LANES`). Organizations and flows take turns (see `turns`).
    """

    _CHANNELS: tuple[str, ...] = (
        *(ACCEPTED, DEPLOYED, HELD),
        *(connections.CHANNEL, destinations.CHANNEL, waits.CHANNEL_DUE),
    )
    _SETTLE_PAUSE_S = SETTLE_PAUSE_S

    def __init__(
        self,
        owner: str,
        access: Access,
        runner: Runner,
        settings: Settings | None = None,
        *,
        lanes: int | None = None,
        hear: Hear | None = None,
    ) -> None:
        """`lanes`: so many node processes instead of `BRIDGE_STREAM_LANES`. `hear`: see `Settler`."""
        settings = settings or get_settings()
        self.owner = owner
        self.counts: Counter[str] = Counter()
        """Units by what became of them, and `claimed`."""
        self._settings = settings
        self._access = access
        self._claims = StreamClaims(owner, settings.lease_s)
        self._settler = Settler(access, self._settled, hear=hear, pause_s=self._SETTLE_PAUSE_S)
        self._lanes = Lanes(
            *(runner, Plans(), access, Limits.from_settings(settings)),
            *(settings.stream_lanes if lanes is None else lanes, self._outcome),
        )
        self._room = Room(settings.stream_max_messages, settings.stream_max_bytes)
        self._turns = Turns()
        self._sharing = Sharing()
        self._precedence = Precedence()
        self._bounds = Bounds()
        self._held: set[Held] = set()
        self._resting: dict[UUID, float] = {}
        self._added: set[FlowKey] = set()
        """Flows that got something to do while a claim was under way."""
        self._wake = asyncio.Event()
        self._pressing = asyncio.Event()
        """Set when an organization that has nothing under way here got something to do."""
        self._look_at = 0.0
        self._stale: set[str] = set()
        self._changed = asyncio.Event()
        self._is_informed = False
        """Whether it was once read what deployments and destinations there are."""
        self._upkeep = Upkeep(settings, self._held, self._look)
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._empty = asyncio.Event()
        self._listener = Listener(
            self._CHANNELS,
            self._notice,
            self._connected,
            name=owner,
        )

    @property
    def under_way(self) -> int:
        """Units that are held."""
        return len(self._held)

    @property
    def listening(self) -> bool:
        return self._listener.connected

    async def wait_listening(self) -> None:
        """Return when notifications arrive."""
        await self._listener.wait_connected()

    @property
    def lanes(self) -> int:
        """Plans that have a node process."""
        return self._lanes.open

    def stop(self) -> None:
        """Take nothing new, finish what is under way for `BRIDGE_STREAM_DRAIN_S`, give back the rest. Called
        again: give it back at once."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        """Work until `stop`."""
        loops = [
            asyncio.create_task(self._steadily(loop), name=f"stream-{loop.__name__.strip('_')}")
            for loop in self._loops()
        ]
        claiming = asyncio.create_task(self._steadily(self._claim))
        try:
            await self._stopping.wait()
        finally:
            await self._drain(claiming)
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await self._close()

    def _loops(self) -> Iterable[Callable[[], Coroutine[Any, Any, None]]]:
        return (
            *(self._listener.run, self._settler.run, self._refresh),
            *(self._upkeep.renew, self._upkeep.watch, self._upkeep.release),
        )

    async def _close(self) -> None:
        await self._claims.close()
        await self._settler.close()
        await aio.close_pools()

    async def _steadily(self, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Whatever goes wrong in one of the worker's loops, it goes on."""
        while True:
            try:
                return await loop()
            except Exception:
                log.exception("%s failed, going on", loop.__name__.strip("_"))
                await asyncio.sleep(1.0)

    # -- what has something to do ---------------------------------------------------------------------------

    def _notice(self, channel: str, payload: str) -> None:
        if channel == ACCEPTED:
            organization, environment, flow = payload.split("/", 2)
            self._add((UUID(organization), environment, flow))
        elif channel == waits.CHANNEL_DUE:
            self._upkeep.something_is_due()
        elif channel == connections.CHANNEL:
            organization, environment = payload.split("/", 1)
            self._access.forget(UUID(organization), environment)
            self._lanes.forget_connections((UUID(organization), environment))
        else:
            self._stale.add(channel)
            self._changed.set()
            # A flow that was held or disabled may run again.
            self._look()

    def _connected(self) -> None:
        # What was told before is lost.
        self._look()
        self._lanes.forget_connections()
        self._stale |= {DEPLOYED, destinations.CHANNEL}
        self._changed.set()

    def _look(self) -> None:
        """Look at all flows now."""
        self._look_at = 0.0
        self._wake.set()

    def _add(self, flow: FlowKey) -> None:
        until = self._resting.get(flow[0])
        if until is not None:
            if time.monotonic() < until:
                return
            del self._resting[flow[0]]
        self._turns.add(flow)
        self._added.add(flow)
        self._wake.set()
        if self._sharing.noticed(flow[0]) or not self._room.holds_of(flow[0]):
            self._pressing.set()

    async def _refresh(self) -> None:
        """Keep what is known of flows and destinations like the tables."""
        while True:
            try:
                async with asyncio.timeout(REFRESH_S):
                    await self._changed.wait()
            except TimeoutError:
                self._stale |= {DEPLOYED, destinations.CHANNEL}
                self._lanes.tidy()
            self._changed.clear()
            stale, self._stale = self._stale, set()
            try:
                if DEPLOYED in stale:
                    await self._bounds.refresh()
                if destinations.CHANNEL in stale:
                    await self._lanes.destinations.refresh()
                self._is_informed = True
            except Unavailable:
                self._stale |= stale
                await asyncio.sleep(LOOK_S)
                self._changed.set()

    # -- claiming -------------------------------------------------------------------------------------------

    async def _claim(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                if started >= self._look_at:
                    self._look_at = started + (LOOK_S if self._listener.connected else LOOK_BLIND_S)
                    for flow in await self._claims.ready_flows():
                        self._add(flow)
                wanted = self._wanted()
                if wanted:
                    self._added.clear()
                    self._pressing.clear()
                    self._sharing.asking(wanted)
                    sealed = await self._claims.claim(wanted, self._room.free_size)
                    self._look_again(wanted, sealed)
                    self._sharing.claimed(wanted, sealed)
                    await self._begin(sealed)
                failures = 0
            except Unavailable as error:
                if not failures:
                    log.warning("claiming waits for the database: %s", error.detail)
                await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
                failures += 1
                continue
            if not wanted and self._precedence.behind_until < math.inf:
                self._pressing.clear()
                await _until(self._pressing, self._precedence.behind_until)
            elif not wanted:
                self._wake.clear()
                await _until(self._wake, self._look_at)
            elif self._sharing.holds_back:
                now = time.monotonic()
                await _until(self._pressing, now + self._sharing.rest_s(now - started))
            elif sum(each.most for each in wanted) < MOST_AT_ONCE and len(self._held) > BUSY:
                pause_s = BUSY_PAUSE_S if len(self._held) < VERY_BUSY else VERY_BUSY_PAUSE_S
                await asyncio.sleep(min(pause_s, LEAST_PAUSE_S))
                await _until(self._pressing, started + pause_s)

    def _wanted(self) -> list[Wanted]:
        free = min(self._room.free, MOST_AT_ONCE)
        self._sharing.begin()
        self._precedence.look()
        chosen = self._turns.choose(free, self._allowance) if self._turns else {}
        return [Wanted(*flow, most, self._bounds.of(flow)) for flow, most in chosen.items()]

    def _allowance(self, organization_id: UUID) -> int:
        allowed = self._room.allowance(organization_id)
        if not allowed or self._precedence.stays_behind(organization_id):
            return 0
        return self._sharing.most(organization_id, allowed)

    def _look_again(self, wanted: Iterable[Wanted], sealed: Iterable[Sealed]) -> None:
        """Keep those flows in turn that may have more than was taken."""
        taken = Counter(each.flow_key for each in sealed)
        for each in wanted:
            flow = (each.organization_id, each.environment, each.flow)
            if taken[flow] < each.most and flow not in self._added:
                self._turns.discard(flow)

    async def _begin(self, sealed: Iterable[Sealed]) -> None:
        """Open what was claimed and run it; what cannot be opened is given back or buried."""
        rings: dict[UUID, Cipher | BridgeError] = {}
        for each in sealed:
            self.counts["claimed"] += 1
            organization_id = each.organization_id
            self._room.take(organization_id, each.size_bytes)
            try:
                keys = rings.get(organization_id)
                if keys is None:
                    keys = rings[organization_id] = await self._keys(organization_id)
                if isinstance(keys, BridgeError):
                    raise keys
                claimed = await self._opened(each, keys)
            except Exception as error:
                # Room that is not given back is nobody's for as long as this worker lives.
                self._room.give_back(organization_id, each.size_bytes)
                if not isinstance(error, BridgeError):
                    log.exception("message %s could not be opened", each.message_id)
                    error = Unavailable(f"it could not be opened: {type(error).__name__}")
                await self._not_begun(each, error)
                continue
            again = each.ordered or self._bounds.of(each.flow_key) is not None
            held = Held(claimed, each.organization, each.size_bytes, again, (*each.flow_key, each.version))
            self._held.add(held)
            self._precedence.began(organization_id)
            self._lanes.submit(held)
        if self._held:
            self._empty.clear()

    async def _keys(self, organization_id: UUID, *, fresh: bool = False) -> Cipher | BridgeError:
        """The organization's keys, or why there are none; then it rests a while."""
        try:
            return await self._access.keys(organization_id, fresh=fresh)
        except (Unavailable, NotFound) as error:
            found: BridgeError = error
        except BridgeError as error:
            # A master key or a data key that somebody has to put back: no message dies of it.
            found = Unavailable(error.detail)
        except Exception as error:
            log.exception("the keys of organization %s cannot be had", organization_id)
            found = Unavailable(f"its keys cannot be had: {type(error).__name__}")
        log.warning("organization %s rests: %s", organization_id, found.detail)
        self._resting[organization_id] = time.monotonic() + REST_S
        self._turns.drop(organization_id)
        return found

    async def _opened(self, sealed: Sealed, keys: Cipher) -> claims.Claimed:
        try:
            if sealed.is_outside:
                return await asyncio.to_thread(sealed.open, keys, self.owner)
            return sealed.open(keys, self.owner)
        except NotFound:
            # A version of the key that was made a moment ago.
            newer = await self._keys(sealed.organization_id, fresh=True)
            if isinstance(newer, BridgeError):
                raise newer from None
            return await asyncio.to_thread(sealed.open, newer, self.owner)
        except ValueError as error:
            raise DecryptionFailed(f"what is stored of the message cannot be read: {error}") from None

    async def _not_begun(self, sealed: Sealed, error: BridgeError) -> None:
        try:
            if isinstance(error, Unavailable | NotFound):
                await asyncio.to_thread(giving_back.postpone, sealed, self.owner)
            else:
                log.error("message %s cannot be opened: %s", sealed.message_id, error.detail)
                await asyncio.to_thread(giving_back.bury, sealed, self.owner, error.code)
        except Unavailable:
            # Its lease runs out.
            log.warning("message %s could not be given back", sealed.message_id)

    # -- ending ---------------------------------------------------------------------------------------------

    def _outcome(self, held: Held, outcome: Outcome) -> None:
        if self._precedence.ended(held.claimed.organization_id):
            self._pressing.set()
        self._settler.put(held, outcome)

    def _settled(self, held: Held, became: Became) -> None:
        self.counts[became] += 1
        self._held.discard(held)
        if not self._held:
            self._empty.set()
        self._room.give_back(held.claimed.organization_id, held.size_bytes)
        if held.again:
            self._add(held.lane[:3])
        elif self._turns:
            self._wake.set()

    # -- the end --------------------------------------------------------------------------------------------

    async def _drain(self, claiming: asyncio.Task[None]) -> None:
        drain_s = self._settings.stream_drain_s
        self._stopping.set()
        self._wake.set()
        await asyncio.wait({claiming}, timeout=drain_s)
        claiming.cancel()
        await asyncio.gather(claiming, return_exceptions=True)
        await self._give_back(self._lanes.take_back())
        if self._held:
            ends = [asyncio.ensure_future(each.wait()) for each in (self._empty, self._hurry)]
            await asyncio.wait(ends, timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()
        # Nothing is told of the rest any more: it may be given away.
        await self._lanes.aclose()
        await self._settler.flush(SETTLE_REST_S)
        if self._held:
            log.warning("%d units were still under way when the worker stopped", len(self._held))
            await self._give_back(list(self._held))

    async def _give_back(self, held: list[Held]) -> None:
        if not held:
            return
        self._held.difference_update(held)
        if not self._held:
            self._empty.set()
        try:
            await asyncio.to_thread(claims.release, [each.claimed for each in held])
        except Unavailable:
            log.warning("%d units could not be given back: their leases run out", len(held))


async def _until(event: asyncio.Event, at: float) -> None:
    """Wait for the event, until that moment (`time.monotonic`) at most."""
    most_s = at - time.monotonic()
    if most_s > 0:
        timer = asyncio.get_running_loop().call_later(most_s, event.set)
        await event.wait()
        timer.cancel()
