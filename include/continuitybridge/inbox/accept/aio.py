"""Group commit: many callers' messages in one transaction, for a process that takes messages over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

import psycopg

from continuitybridge.database import aio
from continuitybridge.database.connections import hung_up
from continuitybridge.errors import Conflict, Unavailable
from continuitybridge.inbox import offload
from continuitybridge.inbox.accept import rows as _rows
from continuitybridge.inbox.accept.rows import Acceptance, Accepted, Lease, Row
from continuitybridge.inbox.accept.waiting import Waiting
from continuitybridge.inbox.allowance import Allowances
from continuitybridge.vault.keyring import Cipher, Keyring

THREAD_BYTES = 256 * 1024
"""Larger bodies are read for their ordering key in a thread: parsing them would hold up the others."""
COMMIT_TIMEOUT_S = 10.0
"""How long one commit may take before its callers are told to come again."""

log = logging.getLogger(__name__)


class GroupCommit:
    """Writes whatever queued up while the last commit ran; no timer, so that a single message waits for nothing.
    Organizations take turns in it (`waiting.Waiting`); only where one floods beside others is there a rest between
    two commits, which any of the others ends.

    Guarantees as `accept.accept`, for each message by itself: `submit` returns after the commit that holds its
    message. Runs as the relay role, because one commit may hold messages of several organizations. A message that
    the database refuses does not spoil the others of its group: they are written one by one then.

    The queue is bounded in messages and bytes: beyond that `submit` raises `Unavailable` at once, and so it does
    for a whole group when the database does not answer. `stop` writes what is queued and ends. One event loop;
    use as an async context manager, or `start` and `stop`.
    """

    def __init__(
        self,
        keys: Cipher,
        *,
        max_queued: int = 4_000,
        max_queued_bytes: int = 256 * 1024 * 1024,
        max_group: int = 512,
        max_group_bytes: int = 16 * 1024 * 1024,
        commit_timeout_s: float = COMMIT_TIMEOUT_S,
    ) -> None:
        self._keys = keys
        self._max_queued = max_queued
        self._max_queued_bytes = max_queued_bytes
        self._max_group = max_group
        self._max_group_bytes = max_group_bytes
        self._commit_timeout_s = commit_timeout_s
        self._queue = Waiting()
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._connection: aio.AsyncConnection | None = None
        self._allowances = Allowances()

    async def start(self) -> None:
        """Begin to write. Does not need the database to be up."""
        self._stopping = False
        self._task = asyncio.create_task(self._run(), name="bridge-group-commit")
        await self._allowances.start()

    async def stop(self) -> None:
        """Take no more, write what is queued, end. Every submitted message has its answer afterwards."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task
            self._task = None
        await self._allowances.stop()
        await self._drop_connection()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def queued(self) -> int:
        """Messages waiting for a commit."""
        return len(self._queue)

    async def submit(self, acceptance: Acceptance, lease: Lease | None = None) -> Accepted:
        """Accept one message, and claim it where there is a lease; returns when it is on disk. Raises as
        `accept.accept`, `Unavailable` (`retry_after_s`) when the queue is full or this is stopping, and
        `AllowanceExhausted` when its organization has sent or holds as much as it may. A caller that is cancelled
        before its message's commit began leaves none; later, it may have been accepted."""
        self._check_room()
        size = len(acceptance.body)
        await self._allowances.admit(acceptance.organization_id, size)
        accepted: Accepted | None = None
        try:
            accepted = await self._submit(acceptance, lease)
        finally:
            if accepted is None or accepted.duplicate:
                self._allowances.give_back(acceptance.organization_id, size)
        return accepted

    async def _submit(self, acceptance: Acceptance, lease: Lease | None) -> Accepted:
        self._check_room()
        if isinstance(self._keys, Keyring) and not self._keys.holds(acceptance.organization_id):
            await self._keys.ready(acceptance.organization_id)
            self._check_room()
        large = offload.is_large(acceptance.body)
        if large or (acceptance.ordering is not None and len(acceptance.body) > THREAD_BYTES):
            row = await asyncio.to_thread(_rows.prepare, acceptance, self._keys, lease)
            self._check_room()
        else:
            row = _rows.prepare(acceptance, self._keys, lease)
        future: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        if self._queue.put(row, future):
            self._wake.set()
        return await future

    def _check_room(self) -> None:
        if self._stopping or self._task is None:
            raise Unavailable("this process is stopping and takes no more messages", retry_after_s=1)
        if len(self._queue) >= self._max_queued or self._queue.size >= self._max_queued_bytes:
            raise Unavailable("more messages wait to be written than may queue up", retry_after_s=1)

    async def _run(self) -> None:
        try:
            await self._write_groups()
        finally:
            # Only a cancelled task gets here with something queued.
            _fail(self._queue.take_all(), Unavailable("this process is stopping", retry_after_s=1), None)

    async def _write_groups(self) -> None:
        while self._queue or not self._stopping:
            self._wake.clear()
            if not self._queue:
                await self._wake.wait()
                continue
            group = self._queue.take(self._max_group, self._max_group_bytes)
            if not group:
                continue
            began = time.monotonic()
            try:
                await self._write(group)
            except Exception:
                # Whatever it was: without this task nobody's message would ever be written.
                log.exception("inbox: a group of %d messages could not be written", len(group))
            finally:
                _fail(group, Unavailable("the message could not be written", retry_after_s=1), None)
            rest_s = self._queue.written(time.monotonic() - began)
            if rest_s and not self._stopping:
                await self._rest(rest_s)

    async def _write(self, group: Sequence[tuple[Row, asyncio.Future[Accepted]]]) -> None:
        try:
            async with asyncio.timeout(self._commit_timeout_s):
                await self._commit(group)
        except (Unavailable, TimeoutError, psycopg.OperationalError, psycopg.InterfaceError) as error:
            await self._drop_connection()
            _fail(group, Unavailable("the database does not answer", retry_after_s=1), error)
        except Exception as error:
            await self._drop_connection()
            await self._one_by_one(group, error)
        await self._notify(group)

    async def _rest(self, rest_s: float) -> None:
        """Leave the machine to others, unless one of them came meanwhile, or until one does."""
        timer = asyncio.get_running_loop().call_later(rest_s, self._wake.set)
        await self._wake.wait()
        timer.cancel()

    async def _commit(self, group: Sequence[tuple[Row, asyncio.Future[Accepted]]]) -> None:
        if self._connection is not None and hung_up(self._connection):
            # The server was restarted meanwhile. Nothing was sent, so nobody needs to come again for that.
            await self._drop_connection()
        if self._connection is None:
            self._connection = await aio.connect("relay", application_name="bridge-group-commit")
        connection = self._connection
        rest = list(group)
        for _ in range(_rows.TRIES):
            leaders = _rows.leaders([row for row, _ in rest])
            statement, parameters = _rows.insertion(leaders)
            cursor = await connection.execute(statement, parameters, binary=True)
            [(lost, claimed)] = await cursor.fetchall()
            fresh, leased = _rows.written(leaders, lost, claimed)
            losers = []
            for row, future in rest:
                if id(row) in fresh:
                    if id(row) in leased:
                        # Whether or not its caller still waits: it is this process's to run now.
                        row.claim()
                    _answer(future, Accepted(row.message_id, duplicate=False))
                else:
                    losers.append((row, future))
            if not losers:
                return
            cursor = await connection.execute(
                _rows.LOOK_UP_KEYS, _rows.key_parameters(row for row, _ in losers), binary=True
            )
            known = {(o, e, p, h): (i, b) for o, e, p, h, i, b in await cursor.fetchall()}
            rest = []
            for row, future in losers:
                if row.key in known:
                    _answer(future, _rows.repeated(self._keys, row, *known[row.key]))
                else:
                    rest.append((row, future))
            if not rest:
                return
        _fail(rest, Unavailable("the idempotency key expired while it was looked up", retry_after_s=1), None)

    async def _one_by_one(self, group: Sequence[tuple[Row, asyncio.Future[Accepted]]], error: Exception) -> None:
        if len(group) == 1:
            _fail(group, error, None)
            return
        for row, future in group:
            if future.done():
                continue
            try:
                async with asyncio.timeout(self._commit_timeout_s):
                    await self._commit([(row, future)])
            except (Unavailable, TimeoutError, psycopg.OperationalError, psycopg.InterfaceError) as lost:
                await self._drop_connection()
                _fail([(row, future)], Unavailable("the database does not answer", retry_after_s=1), lost)
            except Exception as refused:
                _fail([(row, future)], refused, None)

    async def _notify(self, group: Sequence[tuple[Row, asyncio.Future[Accepted]]]) -> None:
        # After the commit, not within: a transaction that notifies holds a lock of the whole server through its
        # commit, so that several intakes would wait for each other's disk. Lost with a crash, it is only a hint.
        accepted = [
            row
            for row, future in group
            if future.done()
            and not future.cancelled()
            and future.exception() is None
            and not future.result().duplicate
            # Who claimed it knows.
            and not row.is_claimed
        ]
        if accepted and self._connection is not None and not self._connection.closed:
            with contextlib.suppress(psycopg.Error, TimeoutError):
                async with asyncio.timeout(self._commit_timeout_s):
                    await self._connection.execute(_rows.NOTIFY, (_rows.CHANNEL, _rows.notifications(accepted)))

    async def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await connection.close()


def _answer(future: asyncio.Future[Accepted], outcome: Accepted | Conflict) -> None:
    if future.done():
        return
    if isinstance(outcome, Conflict):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _fail(
    group: Iterable[tuple[Row, asyncio.Future[Accepted]]], error: Exception, cause: BaseException | None
) -> None:
    for _, future in group:
        if not future.done():
            # Each caller gets an instance of its own: a raised exception collects its raiser's traceback.
            failure = copy.copy(error)
            failure.__cause__ = cause
            future.set_exception(failure)
