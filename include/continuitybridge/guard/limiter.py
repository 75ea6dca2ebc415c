"""Rate limits, counted together by all processes, without asking the store at every request.

A limit is so many requests per window; windows begin at whole multiples of their length since the epoch, for
every process alike. A process takes tokens from the store in blocks (`block_of`) and spends them by itself, so
that a request of a busy key costs no round trip, and a key that is used up costs none until its window ends.

Guarantee: all processes together admit at most the limit in a window; twice of it can come around the moment
between two. Whoever is refused and comes again after `retry_after_s` finds a new window: he is admitted unless
others of the same key have used that up before him. Where it stops: while the store does not answer, each process
counts by itself, and admits the limit alone; and of the tokens that a process holds when the store says that there
are no more, others get none.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from limits import RateLimitItem, parse_many
from limits.storage import storage_from_string

from continuitybridge.errors import TooManyRequests
from continuitybridge.settings import get_settings

BLOCKS = 50
"""Into so many blocks a limit is divided; a limit below it is counted one by one."""
MAX_BLOCK = 1_000
STORE_TIMEOUT_S = 0.25
STORE_RETRY_S = 5.0
"""How long a store that did not answer is not asked again."""
MAX_LEASES = 50_000
"""So many keys are kept; beyond it, those of past windows are forgotten, and then all."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Claim:
    """One request on the account of one key. `name` names the limit in answers."""

    name: str
    limit: RateLimitItem
    key: str


@dataclass(frozen=True, slots=True)
class Standing:
    """What is left of a limit: `remaining` requests now, all of them again in `reset_s` seconds."""

    name: str
    amount: int
    window_s: int
    remaining: int
    reset_s: int


class _Lease:
    """Tokens of one key in one window: `granted` so far, `left` of them, `rest` in the store when it was last
    asked. `spent`: there are no more to be had."""

    __slots__ = ("asking", "granted", "left", "rest", "spent", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.granted = 0
        self.left = 0
        self.rest = 0
        self.spent = False
        self.asking: asyncio.Task[None] | None = None

    def grant(self, tokens: int) -> None:
        self.granted += tokens
        self.left += tokens


class Limiter:
    """The limits of one process and event loop. `redis_url` None: it counts by itself."""

    def __init__(self, redis_url: str | None) -> None:
        self._shared: Any = None
        if redis_url is not None:
            self._shared = storage_from_string(
                f"async+{redis_url}",
                implementation="redispy",
                socket_timeout=STORE_TIMEOUT_S,
                socket_connect_timeout=STORE_TIMEOUT_S,
            )
        self._asks_again_at = 0.0
        self._down = False
        self._leases: dict[tuple[str, str, RateLimitItem], _Lease] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def admit(self, claims: Sequence[Claim]) -> list[Standing]:
        """Take one token for each claim, or none. Raises `TooManyRequests` (facts: `retry_after_s`, `standings`)
        when one of them is used up."""
        for again in (True, False):
            standings, empty, wait_s = await self._take(claims)
            if not empty:
                return standings
            # Another request, which another limit refused, may have given tokens back since that was seen.
            if not again or not all(lease.left for _, lease in empty):
                break
        raise _refusal(standings, {claim.name for claim, _ in empty}, wait_s)

    async def _take(self, claims: Sequence[Claim]) -> tuple[list[Standing], list[tuple[Claim, _Lease]], float]:
        """Take one token for each claim, or none: how they stand, those that had none, and the longest time in
        seconds until one of these begins anew."""
        taken: list[_Lease] = []
        asked: list[tuple[Claim, _Lease, float]] = []
        empty: list[tuple[Claim, _Lease]] = []
        wait_s = 0.0
        for claim in claims:
            lease, ends = await self._lease(claim)
            left_s = ends - time.time()
            if lease.left:
                lease.left -= 1
                taken.append(lease)
                self._look_ahead(claim, lease)
            else:
                empty.append((claim, lease))
                wait_s = max(wait_s, left_s)
            asked.append((claim, lease, left_s))
        if empty:
            for lease in taken:
                lease.left += 1
        # By now: who lent the last token of a limit to a request that another limit refuses has it again.
        return [_standing(claim, lease, left_s) for claim, lease, left_s in asked], empty, wait_s

    def refuse_used_up(self, claims: Sequence[Claim]) -> None:
        """Raise as `admit` where it is known by now that it would; takes nothing and asks nobody."""
        now, wait_s = time.time(), 0.0
        standings: list[Standing] = []
        empty: set[str] = set()
        for claim in claims:
            window_s = claim.limit.get_expiry()
            window = int(now // window_s)
            lease = self._leases.get((claim.name, claim.key, claim.limit))
            if lease is None or lease.window != window:
                continue
            left_s = (window + 1.0) * window_s - now
            standings.append(_standing(claim, lease, left_s))
            if lease.spent and not lease.left:
                empty.add(claim.name)
                wait_s = max(wait_s, left_s)
        if empty:
            raise _refusal(standings, empty, wait_s)

    async def _lease(self, claim: Claim) -> tuple[_Lease, float]:
        """A lease of the current window with a token, or one that is used up; and the window's end."""
        window_s = claim.limit.get_expiry()
        key = (claim.name, claim.key, claim.limit)
        while True:
            window = int(time.time() // window_s)
            lease = self._leases.get(key)
            if lease is None or lease.window != window:
                self._make_room()
                lease = self._leases[key] = _Lease(window)
            if not (lease.left or lease.spent) and not self._is_shared:
                self._grant_alone(claim, lease)
            if lease.left or lease.spent:
                return lease, (window + 1.0) * window_s
            # Who goes away while he waits must not take the answer from the others.
            await asyncio.shield(self._ask(claim, lease))

    def _look_ahead(self, claim: Claim, lease: _Lease) -> None:
        """Get the next block before this one is used up, so that nobody waits for it."""
        block = block_of(claim.limit)
        if lease.left * 2 <= block and block > 1 and not lease.spent and self._is_shared:
            self._ask(claim, lease)

    def _ask(self, claim: Claim, lease: _Lease) -> asyncio.Task[None]:
        if lease.asking is None:
            lease.asking = asyncio.create_task(self._more(claim, lease))
            self._tasks.add(lease.asking)
            lease.asking.add_done_callback(self._tasks.discard)
        return lease.asking

    async def _more(self, claim: Claim, lease: _Lease) -> None:
        limit, block = claim.limit, block_of(claim.limit)
        key = f"bridge/{limit.key_for(claim.name, claim.key)}/{lease.window}"
        try:
            # Kept longer than the window, as clocks differ between machines.
            total: int = await self._shared.incr(key, 2 * limit.get_expiry(), block)
        except Exception as error:
            self._asks_again_at = time.monotonic() + STORE_RETRY_S
            if not self._down:
                log.warning("rate limits are counted by this process alone: %s", type(error).__name__)
            self._down = True
            self._grant_alone(claim, lease)
            return
        finally:
            lease.asking = None
        if self._down:
            log.warning("rate limits are counted together again")
        self._down = False
        granted = max(0, min(block, limit.amount - (total - block)))
        lease.grant(granted)
        lease.rest = max(0, limit.amount - total)
        lease.spent = granted < block

    @property
    def _is_shared(self) -> bool:
        return self._shared is not None and time.monotonic() >= self._asks_again_at

    @staticmethod
    def _grant_alone(claim: Claim, lease: _Lease) -> None:
        lease.grant(max(0, claim.limit.amount - lease.granted))
        lease.rest = 0
        lease.spent = True

    def _make_room(self) -> None:
        if len(self._leases) < MAX_LEASES:
            return
        now = time.time()
        self._leases = {
            key: lease for key, lease in self._leases.items() if lease.window == int(now // key[2].get_expiry())
        }
        if len(self._leases) >= MAX_LEASES:
            # Where there is a store, it knows what was counted.
            self._leases.clear()


def _standing(claim: Claim, lease: _Lease, left_s: float) -> Standing:
    limit = claim.limit
    remaining = lease.left + lease.rest
    return Standing(claim.name, limit.amount, limit.get_expiry(), remaining, max(1, math.ceil(left_s)))


def _refusal(standings: Sequence[Standing], empty: Collection[str], wait_s: float) -> TooManyRequests:
    return TooManyRequests(
        f"the rate limit is used up: {', '.join(sorted(empty))}",
        retry_after_s=max(1.0, wait_s),
        standings=standings,
    )


def block_of(limit: RateLimitItem) -> int:
    """How many tokens are taken from the store at once."""
    return max(1, min(MAX_BLOCK, limit.amount // BLOCKS))


def parsed(text: str | None) -> tuple[RateLimitItem, ...]:
    """Limits written as the library does: `200/minute; 10000/hour`; none for an empty text. Raises
    `ValueError`."""
    return tuple(parse_many(text)) if text else ()


def headers(standings: Sequence[Standing]) -> list[tuple[bytes, bytes]]:
    """`RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10)."""
    policy = ", ".join([f'"{each.name}";q={each.amount};w={each.window_s}' for each in standings])
    state = ", ".join([f'"{each.name}";r={each.remaining};t={each.reset_s}' for each in standings])
    return [(b"ratelimit-policy", policy.encode()), (b"ratelimit", state.encode())]


def current() -> Limiter:
    """The limiter of this process and event loop."""
    loop = asyncio.get_running_loop()
    found = _limiters.get(loop)
    if found is None:
        url = get_settings().redis_url
        found = Limiter(None if url is None else url.get_secret_value())
        install(found)
    return found


def install(limits: Limiter) -> None:
    """Make it the limiter of this event loop."""
    _limiters[asyncio.get_running_loop()] = limits


_limiters: WeakKeyDictionary[asyncio.AbstractEventLoop, Limiter] = WeakKeyDictionary()
