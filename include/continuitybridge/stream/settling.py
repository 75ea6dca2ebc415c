"""Writes outcomes beside the work, in groups: whatever came while the last transaction ran goes into the next."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from continuitybridge.engine.message import Failure, Outcome
from continuitybridge.errors import BridgeError, NotFound, Unavailable, Verdict
from continuitybridge.inbox.retry import RetryPolicy
from continuitybridge.inbox.settle.endings import Ending, ending_of
from continuitybridge.inbox.settle.writing import Became
from continuitybridge.inbox.stream import Hear, StreamSettlements
from continuitybridge.stream.access import Access
from continuitybridge.stream.listening import RETRY_S
from continuitybridge.stream.units import Held
from continuitybridge.vault.keyring import Cipher

MAX_GROUP = 256
"""Most outcomes of one transaction."""
BUSY_GROUP = 16
BUSY_PAUSE_S = 0.005
"""A group that is smaller than `BUSY_GROUP` waits so long after the one before, so that a busy worker does not pay
a transaction for each two outcomes. One that comes after a pause does not wait at all."""
KEYS_RETRY_S = 2.0

log = logging.getLogger(__name__)

_Item = tuple[Held, Outcome]


class Settler:
    """`on_settled(held, became)` is called for each, once it is on disk.

    While the database is away, outcomes stay here, however long: the room of the worker bounds them. What could
    not be written within its lease is somebody else's by then, and becomes `stale`.

    `hear` is called first with each answer that a caller may wait for. `pause_s` is between a small group and the
    one before.
    """

    def __init__(
        self,
        access: Access,
        on_settled: Callable[[Held, Became], None],
        *,
        hear: Hear | None = None,
        pause_s: float = BUSY_PAUSE_S,
    ) -> None:
        self._access = access
        self._on_settled = on_settled
        self._pause_s = pause_s
        self._settlements = StreamSettlements(hear)
        self._policy = RetryPolicy.from_settings()
        self._queue: deque[_Item] = deque()
        self._later: set[asyncio.TimerHandle] = set()
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        self._done = asyncio.Event()
        self._writing: list[_Item] = []
        self._last = 0.0

    @property
    def waiting(self) -> int:
        """Outcomes that are not on disk."""
        return len(self._queue) + len(self._writing) + len(self._later)

    def put(self, held: Held, outcome: Outcome, *, urgent: bool = False) -> None:
        """Have an outcome written; `urgent` where somebody waits for it, with no pause before its group."""
        self._queue.append((held, outcome))
        self._done.clear()
        self._wake.set()
        if urgent:
            self._urgent.set()

    async def run(self) -> None:
        """Write until cancelled; between transactions only."""
        while True:
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
            pause_s = self._last + self._pause_s - time.monotonic()
            if pause_s > 0 and len(self._queue) < BUSY_GROUP and not self._urgent.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._urgent.wait()
            self._urgent.clear()
            self._writing = [self._queue.popleft() for _ in range(min(MAX_GROUP, len(self._queue)))]
            await asyncio.shield(asyncio.ensure_future(self._write(self._writing)))
            self._last = time.monotonic()

    async def flush(self, timeout_s: float) -> None:
        """Wait until everything is on disk, so long at most."""
        if self.waiting:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._done.wait()
            except TimeoutError:
                log.warning("%d outcomes could not be written", self.waiting)

    async def close(self) -> None:
        for timer in self._later:
            timer.cancel()
        await self._settlements.close()

    async def _write(self, items: list[_Item]) -> None:
        left = {each for each, _ in items}
        try:
            held, endings = await self._endings(items, left)
            if endings:
                became = await self._settle(endings)
                for each, ending in zip(held, became, strict=True):
                    left.discard(each)
                    self._on_settled(each, ending)
        except Exception:
            # Whatever it is, the others must not wait for it: their leases run out, and they are run again.
            log.exception("%d outcomes could not be settled", len(left))
            for each in left:
                self._on_settled(each, "stale")
        finally:
            self._writing = []
            if not self.waiting:
                self._done.set()

    async def _settle(self, endings: Sequence[Ending]) -> list[Became]:
        tries = 0
        while True:
            try:
                return await self._settlements.settle(endings)
            except Unavailable as error:
                if tries == 0:
                    log.warning("outcomes wait for the database: %s", error.detail)
                await asyncio.sleep(RETRY_S[min(tries, len(RETRY_S) - 1)])
                tries += 1
            except Exception:
                if len(endings) == 1:
                    # Its lease runs out, and it is run again.
                    log.exception("the outcome of message %s could not be settled", endings[0].claimed.message_id)
                    return ["stale"]
                return [became for each in endings for became in await self._settle([each])]

    async def _endings(self, items: Sequence[_Item], left: set[Held]) -> tuple[list[Held], list[Ending]]:
        """What can be written now. What waits for its keys leaves `left`, to be told of later; so does that of
        which nothing at all can be made, which is told of here."""
        held: list[Held] = []
        endings: list[Ending] = []
        for each, outcome in items:
            try:
                keys = await self._access.keys(each.claimed.organization_id)
            except Exception as error:
                # A key that somebody has to put back, or what nobody expected: no outcome is lost by it.
                log.warning("an outcome waits for keys: %s", getattr(error, "detail", None) or repr(error))
                left.discard(each)
                self._put_later(each, outcome)
                continue
            try:
                ending = await self._ending(each, outcome, keys)
            except (Unavailable, NotFound) as error:
                log.warning("an outcome waits for keys or for the payload store: %s", error.detail)
                left.discard(each)
                self._put_later(each, outcome)
                continue
            except Exception:
                # Not even a failure can be made of it. Its lease runs out, and it is run again.
                log.exception("the outcome of message %s could not be settled", each.claimed.message_id)
                left.discard(each)
                self._on_settled(each, "stale")
                continue
            held.append(each)
            endings.append(ending)
        return held, endings

    async def _ending(self, held: Held, outcome: Outcome, keys: Cipher) -> Ending:
        """An outcome of which nothing can be made is a failure of its message, which is tried again and in the end
        a dead letter."""
        try:
            if _is_simple(outcome):
                return self._made(held, outcome, keys)
            # Scrubbing what triage keeps, and storing what is large, takes its time.
            return await asyncio.to_thread(self._made, held, outcome, keys)
        except (Unavailable, NotFound):
            raise
        except Exception as error:
            log.exception("of the outcome of message %s nothing can be made", outcome.message_id)
            code = error.code if isinstance(error, BridgeError) else BridgeError.code
            detail = f"its outcome could not be written down: {type(error).__name__}"
            failure = Failure(outcome.message_id, "", "", code, detail, Verdict.TRANSIENT)
            return self._made(held, Outcome(outcome.message_id, "failed", failures=[failure]), keys)

    def _made(self, held: Held, outcome: Outcome, keys: Cipher) -> Ending:
        return ending_of(held.claimed, outcome, keys, held.plan, self._policy)

    def _put_later(self, held: Held, outcome: Outcome) -> None:
        def put() -> None:
            self._later.discard(timer)
            self.put(held, outcome)

        timer = asyncio.get_running_loop().call_later(KEYS_RETRY_S, put)
        self._later.add(timer)


def _is_simple(outcome: Outcome) -> bool:
    return not outcome.failures and all(output.stage is None for output in outcome.outputs)
