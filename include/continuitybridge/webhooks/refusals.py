"""What was refused at the door: counted by endpoint, reason and minute, written in the background.

However many requests are refused, memory holds one counter per endpoint, reason and minute, and the database gets
one statement per flush. No payload, no credential: `last_detail` is the text the sender got.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from continuitybridge.database import aio
from continuitybridge.errors import BridgeError, Unavailable

FLUSH_INTERVAL_S = 2.0
MAX_COUNTERS = 10_000
"""Counters kept while the database is away; beyond them refusals are counted in the log only."""
MAX_DETAIL_CHARACTERS = 300
ANY_ENDPOINT = "-"
"""Stands for addresses that no endpoint has: names that strangers make up are not stored."""

log = logging.getLogger(__name__)

_Key = tuple[UUID, str, str, str, datetime]


@dataclass(slots=True)
class _Counter:
    count: int
    last_at: datetime
    last_detail: str


class Refusals:
    """The process's buffer of refusals. A crash loses at most `FLUSH_INTERVAL_S` of counts, never a message."""

    def __init__(self) -> None:
        self._counters: dict[_Key, _Counter] = {}
        self._overflow = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="refusals")

    async def stop(self) -> None:
        """Write what is buffered and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.flush()

    def note(self, organization_id: UUID, environment: str, endpoint: str, error: BridgeError) -> None:
        now = datetime.now(UTC)
        key = (organization_id, environment, endpoint, error.code, now.replace(second=0, microsecond=0))
        counter = self._counters.get(key)
        if counter is None:
            if len(self._counters) >= MAX_COUNTERS:
                self._overflow += 1
                return
            counter = self._counters[key] = _Counter(0, now, "")
        counter.count += 1
        counter.last_at = now
        counter.last_detail = error.detail[:MAX_DETAIL_CHARACTERS]

    async def flush(self) -> None:
        """Add the buffered counts to `bridge.refusals`; kept for the next time when the database is away."""
        if self._overflow:
            log.warning("refusals: %d not recorded, the buffer was full", self._overflow)
            self._overflow = 0
        if not self._counters:
            return
        counters, self._counters = self._counters, {}
        try:
            async with aio.relay() as connection, connection.cursor() as cursor:
                await cursor.executemany(
                    "INSERT INTO bridge.refusals"
                    " (organization_id, environment, endpoint, code, minute, count, last_at, last_detail)"
                    # Of one that was deleted meanwhile nothing is kept.
                    " SELECT o.organization_id, %s, %s, %s, %s, %s, %s, %s FROM bridge.organizations o"
                    " WHERE o.organization_id = %s"
                    " ON CONFLICT (organization_id, environment, endpoint, code, minute) DO UPDATE SET"
                    " count = refusals.count + excluded.count, last_detail = excluded.last_detail,"
                    " last_at = greatest(refusals.last_at, excluded.last_at)",
                    # In one order in every process, so that two flushes cannot wait for each other.
                    [
                        (*key[1:], c.count, c.last_at, c.last_detail, key[0])
                        for key, c in sorted(counters.items(), key=_order)
                    ],
                )
        except Unavailable:
            for key, counter in counters.items():
                newer = self._counters.setdefault(key, counter)
                if newer is not counter:
                    newer.count += counter.count

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_INTERVAL_S)
            try:
                await self.flush()
            except Exception:
                log.exception("refusals: recording failed")


def _order(item: tuple[_Key, _Counter]) -> tuple[str, ...]:
    return tuple(map(str, item[0]))
