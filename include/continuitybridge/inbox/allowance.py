"""How many messages and runs an organization may still begin in this hour and day.

Messages that come in by HTTP are counted in blocks, so that a request asks nobody: a process takes a block for
an organization, hands it out, and gives back what it did not need. Never more is accepted than is allowed. Less
may be: up to an eighth of what was left may be held by another process until it gives it back (`IDLE_S`), or
until the hour ends when that process was killed. Everything else is counted in the transaction that accepts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg

from continuitybridge.database import aio
from continuitybridge.errors import AllowanceExhausted, BridgeError

BLOCK = 1_000
"""Messages that a process takes at once."""
IDLE_S = 5.0
"""A block that nobody used for so long is given back."""
REFUSED_S = 1.0
"""How long a process remembers that nothing is left: what was raised or given back shows after that."""

_TAKE = "SELECT granted, resource, allowed, used, ends_at FROM bridge.take_allowance(%s, %s, %s, %s)"
_GIVE_BACK = "SELECT bridge.take_allowance(%s, 'messages', %s, false, %s)"


def exhausted(resource: str, allowed: int, used: int, ends_at: datetime) -> AllowanceExhausted:
    """The refusal."""
    wait_s = max(1.0, (ends_at - datetime.now(UTC)).total_seconds())
    return AllowanceExhausted(
        f"the organization's {resource.replace('_', ' ')} are used up: {used} of {allowed}",
        resource=resource,
        allowed=allowed,
        used=used,
        retry_after_s=wait_s,
    )


def take(connection: psycopg.Connection[Any], organization_id: UUID, kind: str, number: int) -> None:
    """Count so many `messages` or `runs`, in the caller's transaction. Raises `AllowanceExhausted`; then nothing
    was counted."""
    if number < 1:
        return
    row = connection.execute(_TAKE, (organization_id, kind, number, True)).fetchone()
    if row is not None and not row[0]:
        raise exhausted(*row[1:])


def give_back(connection: psycopg.Connection[Any], organization_id: UUID, kind: str, number: int) -> None:
    """What was counted in this transaction, and not needed."""
    connection.execute(_TAKE, (organization_id, kind, -number, False))


@dataclass(slots=True)
class _Block:
    left: int
    taken_at: datetime
    ends_at: float
    used_at: float


class Allowances:
    """The blocks of this process, for one event loop. `start` and `stop` it."""

    def __init__(self) -> None:
        self._blocks: dict[UUID, _Block] = {}
        self._refused: dict[UUID, tuple[float, AllowanceExhausted]] = {}
        self._asking: dict[UUID, asyncio.Lock] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to give back what is idle."""
        self._task = asyncio.create_task(self._tidy(), name="bridge-allowances")

    async def stop(self) -> None:
        """Give everything back."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        for organization_id in list(self._blocks):
            await self._return(organization_id)

    async def admit(self, organization_id: UUID) -> None:
        """One message. Raises `AllowanceExhausted` (facts: `resource`, `allowed`, `used`, `retry_after_s`) and
        `Unavailable`."""
        if self._hand_out(organization_id):
            return
        async with self._asking.setdefault(organization_id, asyncio.Lock()):
            if self._hand_out(organization_id):
                return
            refused = self._refused.get(organization_id)
            if refused is not None and time.monotonic() - refused[0] < REFUSED_S:
                raise exhausted(**_facts(refused[1]))
            await self._take(organization_id)
        if not self._hand_out(organization_id):
            raise AllowanceExhausted("the organization's messages are used up", retry_after_s=1)

    def give_back(self, organization_id: UUID) -> None:
        """One that was handed out and became no new message."""
        block = self._blocks.get(organization_id)
        if block is not None:
            block.left += 1

    def _hand_out(self, organization_id: UUID) -> bool:
        block = self._blocks.get(organization_id)
        if block is None or block.left < 1:
            return False
        now = time.time()
        if now >= block.ends_at:
            del self._blocks[organization_id]
            return False
        block.left -= 1
        block.used_at = now
        return True

    async def _take(self, organization_id: UUID) -> None:
        taken_at = datetime.now(UTC)
        async with aio.relay() as connection:
            cursor = await connection.execute(_TAKE, (organization_id, "messages", BLOCK, False))
            [(granted, resource, allowed, used, ends_at)] = await cursor.fetchall()
        if not granted:
            error = exhausted(resource, allowed, used, ends_at)
            error.facts["ends_at"] = ends_at
            self._refused[organization_id] = (time.monotonic(), error)
            raise exhausted(resource, allowed, used, ends_at)
        self._refused.pop(organization_id, None)
        self._blocks[organization_id] = _Block(granted, taken_at, ends_at.timestamp(), time.time())

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(IDLE_S)
            before = time.time() - IDLE_S
            for organization_id, block in list(self._blocks.items()):
                if block.used_at < before:
                    await self._return(organization_id)

    async def _return(self, organization_id: UUID) -> None:
        block = self._blocks.pop(organization_id, None)
        if block is None or block.left < 1 or time.time() >= block.ends_at:
            return
        # Lost with the database: it is free again when the hour ends.
        with contextlib.suppress(BridgeError, psycopg.Error):
            async with aio.relay() as connection:
                await connection.execute(_GIVE_BACK, (organization_id, -block.left, block.taken_at))


def _facts(error: AllowanceExhausted) -> dict[str, Any]:
    return {name: error.facts[name] for name in ("resource", "allowed", "used", "ends_at")}
