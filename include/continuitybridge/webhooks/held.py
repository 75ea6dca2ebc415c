"""Requests that are held until their message's flow has dealt with it.

Whoever settles a message says so on `bridge_replies` after its commit (`inbox.replies`); one connection per
process hears it. A notification can be lost, so the tables are asked about all that is held, every `POLL_S`.
A process that runs a message itself answers its own requests and tells nobody; a copy of the request that is held
in another one is made known on `bridge_replies_wanted`, so that it is told too.

Memory is bounded: at most so many requests are held, of which no organization gets all, and of notifications that
nobody waits for the newest are remembered (one may come before the request that it is for has learned its
message's id).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import Error, OperationalError, sql

from continuitybridge.database import aio
from continuitybridge.errors import Unavailable
from continuitybridge.inbox import replies
from continuitybridge.inbox.replies import Notice
from continuitybridge.inbox.replies.notices import WANTED_CHANNEL, read, wanted
from continuitybridge.webhooks.admission import SharedRoom

POLL_S = 1.0
REMEMBERED = 4_096
QUERY_TIMEOUT_S = 10.0
RETRY_S = 1.0
PATIENCE_S = 0.5
"""How long a request is held before it is looked whether its sender is still there: most are answered by then."""

log = logging.getLogger(__name__)

_Key = tuple[UUID, str]

# One snapshot: a message is awaited still, or has its answer.
_LOOK_UP = """
SELECT w.organization_id, w.message_id, r.status, r.code, r.content, r.reply_id IS NOT NULL,
       m.reply_until IS NOT NULL AND m.state <> 'dead',
       extract(epoch FROM CASE m.state WHEN 'accepted' THEN m.available_at WHEN 'handed_over' THEN (
           SELECT max(h.available_at) FROM bridge.hand_overs h WHERE h.organization_id = w.organization_id
           AND h.message_id = w.message_id AND h.state = 'available') END - now())::float8
FROM unnest(%b::uuid[], %b::text[]) AS w (organization_id, message_id)
LEFT JOIN bridge.messages m USING (organization_id, message_id)
LEFT JOIN LATERAL (
    SELECT reply_id, status, code, content FROM bridge.replies
    WHERE organization_id = w.organization_id AND message_id = w.message_id AND ready
    ORDER BY replays DESC, written_at LIMIT 1) AS r ON true
"""


class Gone(Exception):
    """The sender of a held request closed its connection."""


@dataclass(slots=True, eq=False)
class _Held:
    answered: asyncio.Future[Notice | None]
    until: float
    """In the event loop's time."""
    is_late: bool = False
    """The request's patience is over: `answered` is another since."""

    def lose_patience(self) -> None:
        if not self.answered.done():
            former, self.answered = self.answered, self.answered.get_loop().create_future()
            self.is_late = True
            former.set_result(None)


class HeldRequests:
    """The requests that one process holds. One event loop."""

    def __init__(self, max_held: int) -> None:
        self._room = SharedRoom(max_held)
        self._held: dict[_Key, list[_Held]] = {}
        self._count = 0
        self._recent: OrderedDict[_Key, None] = OrderedDict()
        self._wanted: set[_Key] = set()
        self._unannounced: set[_Key] = set()
        self._elsewhere: OrderedDict[_Key, None] = OrderedDict()
        """What other processes hold requests for."""
        self._asking_pid = 0
        self._asked = asyncio.Event()
        self._closed = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def count(self) -> int:
        """Requests held now."""
        return self._count

    async def answer(
        self,
        organization_id: UUID,
        message_id: str,
        *,
        until: float,
        repeated: bool,
        gone: Callable[[], Awaitable[Any]],
    ) -> Notice | None:
        """The message's answer, when it is there; None when there is none by `until` (in the loop's time), or no
        room to wait, or this is closing. `repeated`: the message may have been settled long ago. Raises `Gone`
        when the awaitable of `gone` ends: the sender has hung up."""
        if self._closed or asyncio.get_running_loop().time() >= until:
            return None
        try:
            if not self._room.take(organization_id, 1):
                return None
            return await self._hold(organization_id, message_id, until, gone, repeated=repeated)
        finally:
            self._room.give_back(organization_id, 1)

    async def _hold(
        self,
        organization_id: UUID,
        message_id: str,
        until: float,
        gone: Callable[[], Awaitable[Any]],
        *,
        repeated: bool,
    ) -> Notice | None:
        loop = asyncio.get_running_loop()
        self._begin()
        key = organization_id, message_id
        held = _Held(loop.create_future(), until)
        self._held.setdefault(key, []).append(held)
        self._count += 1
        if repeated or key in self._recent:
            if repeated and len(self._held[key]) == 1:
                # Else it is run for the one that was here before, or was made known for it.
                self._unannounced.add(key)
            self._look_up(key)
        elif self._count == 1:
            self._asked.set()  # so that the tables are asked now and then from here on
        try:
            return await _answered(held, gone)
        finally:
            self._count -= 1
            others = self._held[key]
            others.remove(held)
            if not others:
                del self._held[key]
                self._unannounced.discard(key)

    def hear(self, notice: Notice) -> bool:
        """Answer those that this is for; False when it is for none, to be looked up, or for others too."""
        key = notice.organization_id, notice.message_id
        if not notice.known or key not in self._held:
            return False
        self._resolve(key, notice)
        return key not in self._elsewhere

    def close(self) -> None:
        """Let all go, and hold none any more. May be called in a signal's handler by way of the loop."""
        self._closed = True
        for key in list(self._held):
            self._resolve(key, None)

    async def stop(self) -> None:
        """As `close`, and end what listens."""
        self.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @contextlib.contextmanager
    def closing_at_signals(self) -> Iterator[None]:
        """Close as soon as the process is told to end. Servers answer what is under way before they tell their
        applications: held requests would hold them up."""
        loop = asyncio.get_running_loop()
        former: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                before = signal.getsignal(number)
                if callable(before):
                    former[number] = before
                    signal.signal(number, _then(lambda: loop.call_soon_threadsafe(self.close), before))
        try:
            yield
        finally:
            for each, before in former.items():
                signal.signal(each, before)

    # -- hearing ------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._keep(self._listen), name="replies-heard"),
                asyncio.create_task(self._keep(self._ask), name="replies-asked-for"),
            ]

    async def _keep(self, doing: Callable[[aio.AsyncConnection], Awaitable[None]]) -> None:
        failing = False
        while True:
            try:
                async with await aio.connect("relay", application_name="bridge-replies") as connection:
                    failing = False
                    await doing(connection)
            except (Unavailable, OperationalError, TimeoutError) as error:
                if not failing:
                    log.warning("replies: the database does not answer, trying again: %s", error)
                failing = True
            except Exception:
                log.exception("replies: trying again")
            await asyncio.sleep(RETRY_S)

    async def _listen(self, connection: aio.AsyncConnection) -> None:
        for channel in (replies.CHANNEL, WANTED_CHANNEL):
            await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        # What was told before this connection listened.
        self._look_up(*self._held)
        async for notify in connection.notifies():
            for notice in read(notify.payload):
                if notify.channel == replies.CHANNEL:
                    self._heard(notice)
                elif notify.pid != self._asking_pid:
                    _remember(self._elsewhere, (notice.organization_id, notice.message_id))

    def _heard(self, notice: Notice) -> None:
        key = notice.organization_id, notice.message_id
        if key not in self._held:
            _remember(self._recent, key)
        elif notice.known:
            self._resolve(key, notice)
        else:
            self._look_up(key)

    # -- asking -------------------------------------------------------------------------------------------

    def _look_up(self, *keys: _Key) -> None:
        """Ask the tables for these; whoever asks while a query runs is in the next one."""
        self._wanted.update(keys)
        if self._wanted:
            self._asked.set()

    async def _ask(self, connection: aio.AsyncConnection) -> None:
        self._asking_pid = connection.info.backend_pid
        while True:
            try:
                async with asyncio.timeout(POLL_S if self._held else None):
                    await self._asked.wait()
            except TimeoutError:
                self._wanted.update(self._held)
            self._asked.clear()
            keys = [key for key in self._wanted if key in self._held]
            self._wanted.clear()
            if not keys:
                continue
            try:
                async with asyncio.timeout(QUERY_TIMEOUT_S):
                    cursor = await connection.execute(
                        _LOOK_UP, ([key[0] for key in keys], [key[1] for key in keys]), binary=True
                    )
                    rows = await cursor.fetchall()
                    for row in rows:
                        self._found(*row)
                    if unannounced := self._unannounced.intersection(keys):
                        await connection.execute(*wanted(unannounced))
                        self._unannounced -= unannounced
                        # It may have been settled before that was heard.
                        self._look_up(*unannounced)
            except Error:
                self._look_up(*keys)
                raise

    def _found(
        self,
        organization_id: UUID,
        message_id: str,
        status: int | None,
        code: str | None,
        content: bytes | None,
        answered: bool,
        awaited: bool | None,
        goes_on_s: float | None,
    ) -> None:
        key = organization_id, message_id
        if answered or not awaited:
            self._unannounced.discard(key)
        if answered:
            self._resolve(key, Notice(organization_id, message_id, True, status, code, content))
        elif not awaited:
            self._resolve(key, None)
        elif goes_on_s is not None:
            # It waits for another try: whoever's time ends before that need not wait.
            self._resolve(key, None, before=asyncio.get_running_loop().time() + goes_on_s)

    def _resolve(self, key: _Key, answer: Notice | None, *, before: float = float("inf")) -> None:
        for held in self._held.get(key, ()):
            if not held.answered.done() and held.until < before:
                held.answered.set_result(answer)


async def _answered(held: _Held, gone: Callable[[], Awaitable[Any]]) -> Notice | None:
    loop = asyncio.get_running_loop()
    # A future that is awaited by itself: what waits for several takes its time, and most are answered now.
    timer = loop.call_later(min(PATIENCE_S, held.until - loop.time()), held.lose_patience)
    try:
        answer = await held.answered
    finally:
        timer.cancel()
    if not held.is_late:
        return answer
    if held.answered.done() or loop.time() >= held.until:
        return held.answered.result() if held.answered.done() else None
    leaving = asyncio.ensure_future(gone())
    try:
        await asyncio.wait(
            (held.answered, leaving), timeout=held.until - loop.time(), return_when=asyncio.FIRST_COMPLETED
        )
        if held.answered.done():
            return held.answered.result()
        if leaving.done():
            raise Gone
        return None
    finally:
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)


def _remember(keys: OrderedDict[_Key, None], key: _Key) -> None:
    keys[key] = None
    if len(keys) > REMEMBERED:
        keys.popitem(last=False)


def _then(first: Callable[[], Any], second: Callable[[int, Any], Any]) -> Callable[[int, Any], None]:
    def handler(number: int, frame: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            first()
        second(number, frame)

    return handler
