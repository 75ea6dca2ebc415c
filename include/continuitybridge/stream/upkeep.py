"""What a worker does beside its messages: keeps its leases, takes up those of workers that are gone, lets go on
what waited until now."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection
from uuid import UUID

from continuitybridge.errors import Unavailable
from continuitybridge.inbox import claim as claims
from continuitybridge.inbox import waits
from continuitybridge.inbox.presence import LostLeases
from continuitybridge.inbox.sweep import expire_leases
from continuitybridge.settings import Settings
from continuitybridge.stream.units import Held

WATCH_S = 2.0
"""How often is looked for leases of workers that are gone, and for what waited."""

log = logging.getLogger(__name__)


class Upkeep:
    """Its loops run until they are cancelled, and ride out a database that is away. `look` is called when there
    may be something to claim of which no notification tells."""

    def __init__(self, settings: Settings, held: Collection[Held], look: Callable[[], None]) -> None:
        self._lease_s = settings.lease_s
        self._sweep_interval_s = settings.sweep_interval_s
        self._held = held
        self._look = look
        self._due = asyncio.Event()

    def something_is_due(self) -> None:
        """Something waits no longer."""
        self._due.set()

    async def renew(self) -> None:
        """Extend the leases of what is under way."""
        while True:
            await asyncio.sleep(self._lease_s / 3)
            held = list(self._held)
            if not held:
                continue
            try:
                kept = await asyncio.to_thread(claims.renew, [each.claimed for each in held], self._lease_s)
            except Unavailable as error:
                log.warning("leases could not be renewed now: %s", error.detail)
                continue
            # What was settled meanwhile has no lease any more either.
            renewed = {_unit(each) for each in kept}
            lost = [each for each in held if each in self._held and _unit(each.claimed) not in renewed]
            if lost:
                log.warning("%d units were taken over by other workers", len(lost))

    async def watch(self) -> None:
        """Take up what workers held that were killed, or whose leases ran out."""
        lost = LostLeases()
        expire_at = 0.0
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                ended = await asyncio.to_thread(lost.end)
                if ended:
                    log.warning("a worker is gone: %d units that it held are taken up", ended)
                if time.monotonic() >= expire_at:
                    expire_at = time.monotonic() + self._sweep_interval_s
                    ended += sum(await asyncio.to_thread(expire_leases))
            except Unavailable as error:
                log.debug("nobody can be watched now: %s", error.detail)
                continue
            if ended:
                self._look()

    async def release(self) -> None:
        """Let go on what waited and is due; what it becomes is told like anything accepted."""
        more = False
        while True:
            if not more:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(WATCH_S):
                        await self._due.wait()
            self._due.clear()
            try:
                more = (await asyncio.to_thread(waits.release_due)).is_full
            except Unavailable as error:
                more = False
                log.debug("nothing can be released now: %s", error.detail)


def _unit(claimed: claims.Claimed) -> tuple[UUID, str, UUID | None]:
    return claimed.organization_id, claimed.message_id, claimed.hand_over_id
