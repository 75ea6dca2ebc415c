"""How many messages and runs an organization may still begin in this hour and day, and room for their bytes.

Messages that come in by HTTP are counted in blocks, so that a request asks nobody: a process takes a block for
an organization, hands it out, and gives back what it did not need. Never more is accepted than is allowed. Less
may be: up to an eighth of what was left may be held by another process until it gives it back (`IDLE_S`), or
until the hour ends when that process was killed; room for bytes that it held is free when it is measured again
(`storage`). Everything else is counted in the transaction that accepts it.
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
from continuitybridge.errors import AllowanceExhausted, BridgeError, Unavailable

BLOCK = 1_000
"""Messages that a process takes at once."""
BLOCK_BYTES = 8_000_000
"""Bytes for which a process takes room at once."""
FULL_S = 600.0
"""When to come again if there is no room: retention makes some, or somebody agrees upon more."""
TRIES = 3
IDLE_S = 5.0
"""A block that nobody used for so long is given back."""
TAKE_TIMEOUT_S = 5.0
"""How long taking one may last: all messages of the organization wait for it."""
REFUSED_S = 1.0
"""How long a process remembers that nothing is left: what was raised or given back shows after that."""

_TAKE = "SELECT granted, resource, allowed, used, ends_at FROM bridge.take_allowance(%s, %s, %s, %s)"
_GIVE_BACK = "SELECT bridge.take_allowance(%s, 'messages', %s, false, %s)"
_TAKE_ROOM = "SELECT granted, allowed, used FROM bridge.take_storage(%s, %s, %s)"


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


def full(allowed: int, used: int, size: int) -> AllowanceExhausted:
    """The refusal of what has `size` bytes."""
    return AllowanceExhausted(
        f"the organization's storage has no room for {size} bytes: {used} of {allowed} MB are used",
        resource="storage_mb",
        allowed=allowed,
        used=used,
        retry_after_s=FULL_S,
    )


def take_room(connection: psycopg.Connection[Any], organization_id: UUID, size: int) -> None:
    """Count so many bytes, in the caller's transaction. Raises `AllowanceExhausted`."""
    if size < 1:
        return
    row = connection.execute(_TAKE_ROOM, (organization_id, size, size)).fetchone()
    if row is not None and not row[0]:
        raise full(row[1], row[2], size)


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
    room: int
    taken_at: datetime
    ends_at: float
    used_at: float


class Allowances:
    """The blocks of this process, for one event loop. `start` and `stop` it."""

    def __init__(self) -> None:
        self._blocks: dict[UUID, _Block] = {}
        self._refused: dict[UUID, tuple[float, AllowanceExhausted]] = {}
        self._spare: dict[UUID, int] = {}
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
        for organization_id in {*self._blocks, *self._spare}:
            await self._return(organization_id)

    async def admit(self, organization_id: UUID, size: int) -> None:
        """One message of `size` bytes. Raises `AllowanceExhausted` (facts: `resource`, `allowed`, `used`,
        `retry_after_s`) and `Unavailable`."""
        if self._hand_out(organization_id, size):
            return
        async with self._asking.setdefault(organization_id, asyncio.Lock()):
            if self._hand_out(organization_id, size):
                return
            refused = self._refused.get(organization_id)
            if refused is not None and time.monotonic() - refused[0] < REFUSED_S:
                raise exhausted(**_facts(refused[1]))
            # Others who come by may take what was just made room for.
            for _ in range(TRIES):
                if organization_id not in self._blocks:
                    await self._take(organization_id)
                await self._make_room(organization_id, size)
                if self._hand_out(organization_id, size):
                    return
        raise AllowanceExhausted("the organization's messages are used up", retry_after_s=1)

    def give_back(self, organization_id: UUID, size: int) -> None:
        """One that was handed out and became no new message."""
        block = self._blocks.get(organization_id)
        if block is not None:
            block.left += 1
            block.room += size

    def _hand_out(self, organization_id: UUID, size: int) -> bool:
        block = self._blocks.get(organization_id)
        if block is None:
            return False
        now = time.time()
        if now >= block.ends_at or block.left < 1:
            del self._blocks[organization_id]
            self._spare[organization_id] = self._spare.get(organization_id, 0) + block.room
            return False
        if block.room < size:
            return False
        block.left -= 1
        block.room -= size
        block.used_at = now
        return True

    async def _take(self, organization_id: UUID) -> None:
        taken_at = datetime.now(UTC)
        try:
            async with asyncio.timeout(TAKE_TIMEOUT_S), aio.relay() as connection:
                cursor = await connection.execute(_TAKE, (organization_id, "messages", BLOCK, False))
                [(granted, resource, allowed, used, ends_at)] = await cursor.fetchall()
        except TimeoutError as late:
            raise Unavailable("the organization's allowance could not be asked for", retry_after_s=1) from late
        if not granted:
            error = exhausted(resource, allowed, used, ends_at)
            error.facts["ends_at"] = ends_at
            self._refused[organization_id] = (time.monotonic(), error)
            raise exhausted(resource, allowed, used, ends_at)
        self._refused.pop(organization_id, None)
        room = self._spare.pop(organization_id, 0)
        self._blocks[organization_id] = _Block(granted, room, taken_at, ends_at.timestamp(), time.time())

    async def _make_room(self, organization_id: UUID, size: int) -> None:
        block = self._blocks[organization_id]
        missing = size - block.room
        if missing < 1:
            return
        async with aio.relay() as connection:
            cursor = await connection.execute(_TAKE_ROOM, (organization_id, missing, max(missing, BLOCK_BYTES)))
            [(granted, allowed, used)] = await cursor.fetchall()
        if not granted:
            raise full(allowed, used, size)
        if self._blocks.get(organization_id) is block:
            block.room += granted
        else:
            self._spare[organization_id] = self._spare.get(organization_id, 0) + granted

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(IDLE_S)
            before = time.time() - IDLE_S
            for organization_id, block in list(self._blocks.items()):
                if block.used_at < before:
                    await self._return(organization_id)

    async def _return(self, organization_id: UUID) -> None:
        block = self._blocks.pop(organization_id, None)
        room = self._spare.pop(organization_id, 0) + (block.room if block is not None else 0)
        # Lost with the database: messages are free again when the hour ends, room when it is measured.
        with contextlib.suppress(BridgeError, psycopg.Error):
            async with aio.relay() as connection:
                if block is not None and block.left > 0 and time.time() < block.ends_at:
                    await connection.execute(_GIVE_BACK, (organization_id, -block.left, block.taken_at))
                if room:
                    await connection.execute(_TAKE_ROOM, (organization_id, 0, -room))


def _facts(error: AllowanceExhausted) -> dict[str, Any]:
    return {name: error.facts[name] for name in ("resource", "allowed", "used", "ends_at")}
