"""How many messages and runs an organization may still begin in this hour and day, and room for their bytes.

Messages that come in by HTTP are counted in blocks, so that a request asks nobody: a process takes a block for
an organization, hands it out, and gives back what it did not need. Never more is accepted than is allowed. Less
may be: up to an eighth of what was left may be held by another process until it gives it back (`IDLE_S`), or
until the hour ends when that process was killed; room for bytes that it held is free when it is measured again
(`storage`), so that room from before that is neither used on nor given back. Everything else is counted in the
transaction that accepts it.
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
_TAKE_ROOM = "SELECT granted, allowed, used, measured_at FROM bridge.take_storage(%s, %s, %s)"
_GIVE_BACK_ROOM = "SELECT bridge.take_storage(%s, 0, %s, %s)"
_MEASURED = "SELECT organization_id, measured_at FROM bridge.storage_use WHERE organization_id = ANY(%s)"


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
    taken_at: datetime
    ends_at: float
    used_at: float


@dataclass(slots=True)
class _Room:
    left: int
    measured_at: datetime | None
    used_at: float


@dataclass(slots=True)
class _Full:
    """So many bytes more did not fit."""

    at: float
    missing: int
    allowed: int
    used: int


class Allowances:
    """The blocks of this process, for one event loop. `start` and `stop` it."""

    def __init__(self) -> None:
        self._blocks: dict[UUID, _Block] = {}
        self._rooms: dict[UUID, _Room] = {}
        self._refused: dict[UUID, tuple[float, AllowanceExhausted]] = {}
        self._full: dict[UUID, _Full] = {}
        self._late: dict[UUID, float] = {}
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
        for organization_id in {*self._blocks, *self._rooms}:
            await self._return(organization_id)

    async def admit(self, organization_id: UUID, size: int) -> None:
        """One message of `size` bytes. Raises `AllowanceExhausted` (facts: `resource`, `allowed`, `used`,
        `retry_after_s`) and `Unavailable`."""
        if self._hand_out(organization_id, size):
            return
        async with self._asking.setdefault(organization_id, asyncio.Lock()):
            if self._hand_out(organization_id, size):
                return
            self._refuse_again(organization_id, size)
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
        room = self._rooms.get(organization_id)
        if room is not None:
            room.left += size

    def _hand_out(self, organization_id: UUID, size: int) -> bool:
        block = self._blocks.get(organization_id)
        if block is None:
            return False
        now = time.time()
        if now >= block.ends_at or block.left < 1:
            del self._blocks[organization_id]
            return False
        room = self._rooms.get(organization_id)
        if room is None:
            if size > 0:
                return False
        elif room.left < size:
            return False
        else:
            room.left -= size
            room.used_at = now
        block.left -= 1
        block.used_at = now
        return True

    def _missing(self, organization_id: UUID, size: int) -> int:
        room = self._rooms.get(organization_id)
        return size if room is None else size - room.left

    def _refuse_again(self, organization_id: UUID, size: int) -> None:
        """Those who come one after the other do not all ask for what was refused to the first."""
        since = time.monotonic() - REFUSED_S
        if self._late.get(organization_id, since) > since:
            raise _late()
        refused = self._refused.get(organization_id)
        if refused is not None and refused[0] > since:
            raise exhausted(**_facts(refused[1]))
        found = self._full.get(organization_id)
        if found is not None and found.at > since and self._missing(organization_id, size) >= found.missing:
            raise full(found.allowed, found.used, size)

    async def _ask(self, organization_id: UUID, statement: str, *values: object) -> tuple[Any, ...]:
        try:
            async with asyncio.timeout(TAKE_TIMEOUT_S), aio.relay() as connection:
                cursor = await connection.execute(statement, (organization_id, *values))
                [row] = await cursor.fetchall()
                return row
        except TimeoutError as late:
            self._late[organization_id] = time.monotonic()
            raise _late() from late

    async def _take(self, organization_id: UUID) -> None:
        taken_at = datetime.now(UTC)
        granted, resource, allowed, used, ends_at = await self._ask(
            organization_id, _TAKE, "messages", BLOCK, False
        )
        if not granted:
            error = exhausted(resource, allowed, used, ends_at)
            error.facts["ends_at"] = ends_at
            self._refused[organization_id] = (time.monotonic(), error)
            raise exhausted(resource, allowed, used, ends_at)
        self._refused.pop(organization_id, None)
        self._blocks[organization_id] = _Block(granted, taken_at, ends_at.timestamp(), time.time())

    async def _make_room(self, organization_id: UUID, size: int) -> None:
        missing = self._missing(organization_id, size)
        if missing < 1:
            return
        granted, allowed, used, measured_at = await self._ask(
            organization_id, _TAKE_ROOM, missing, max(missing, BLOCK_BYTES)
        )
        if not granted:
            self._full[organization_id] = _Full(time.monotonic(), missing, allowed, used)
            raise full(allowed, used, size)
        self._full.pop(organization_id, None)
        room = self._rooms.get(organization_id)
        if room is None or room.measured_at != measured_at:
            self._rooms[organization_id] = _Room(granted, measured_at, time.time())
        else:
            room.left += granted

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(IDLE_S)
            before = time.time() - IDLE_S
            for organization_id in {*self._blocks, *self._rooms}:
                held = (self._blocks.get(organization_id), self._rooms.get(organization_id))
                if all(each is None or each.used_at < before for each in held):
                    await self._return(organization_id)
            if self._rooms:
                await self._forget()

    async def _forget(self) -> None:
        """Room that is not counted any more since it was measured."""
        with contextlib.suppress(BridgeError, psycopg.Error, TimeoutError):
            async with asyncio.timeout(TAKE_TIMEOUT_S), aio.relay() as connection:
                cursor = await connection.execute(_MEASURED, (list(self._rooms),))
                found = dict(await cursor.fetchall())
            for organization_id, room in list(self._rooms.items()):
                # What was taken since this was asked for may be newer.
                measured_at = found.get(organization_id, room.measured_at)
                if measured_at is not None and (room.measured_at is None or room.measured_at < measured_at):
                    del self._rooms[organization_id]

    async def _return(self, organization_id: UUID) -> None:
        block = self._blocks.pop(organization_id, None)
        room = self._rooms.pop(organization_id, None)
        # Lost with the database: messages are free again when the hour ends, room when it is measured.
        with contextlib.suppress(BridgeError, psycopg.Error, TimeoutError):
            async with asyncio.timeout(TAKE_TIMEOUT_S), aio.relay() as connection:
                if block is not None and block.left > 0 and time.time() < block.ends_at:
                    await connection.execute(_GIVE_BACK, (organization_id, -block.left, block.taken_at))
                if room is not None and room.left > 0:
                    await connection.execute(_GIVE_BACK_ROOM, (organization_id, -room.left, room.measured_at))


def _late() -> Unavailable:
    return Unavailable("the organization's allowance could not be asked for", retry_after_s=1)


def _facts(error: AllowanceExhausted) -> dict[str, Any]:
    return {name: error.facts[name] for name in ("resource", "allowed", "used", "ends_at")}
