"""Writing what became of units of many flows and organizations, in groups."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

import psycopg

from continuitybridge import database
from continuitybridge.database import aio
from continuitybridge.errors import BridgeError, Unavailable
from continuitybridge.inbox import units
from continuitybridge.inbox.replies import Notice, Notices
from continuitybridge.inbox.settle.endings import Ending
from continuitybridge.inbox.settle.writing import Became, write

Hear = Callable[[Notice], bool]
"""Takes an answer to whoever waits for it, and says whether somebody did."""

log = logging.getLogger(__name__)


class StreamSettlements:
    """Settlements of one worker, on one connection. One call at a time. What `hear` does not take, as its caller
    does not wait in this process, all processes are notified of."""

    def __init__(self, hear: Hear | None = None) -> None:
        self._hear = hear
        self._connection: aio.AsyncConnection | None = None

    async def settle(self, endings: Sequence[Ending]) -> list[Became]:
        """Write endings in one transaction, which is on disk when this returns; answers in the order given. Rules
        and guarantees as `settle.settle_many`.

        An ending that the database refuses does not spoil the others: they are written one by one then, and the
        unit of the one at fault becomes a dead letter. Raises `Unavailable` when the database does not finish: the
        call may be repeated.
        """
        try:
            return await self._settle(endings)
        except psycopg.OperationalError as error:
            raise Unavailable("the database did not finish the settlement", sqlstate=error.sqlstate) from error
        except psycopg.Error as error:
            if len(endings) == 1:
                return [await asyncio.to_thread(_bury, endings[0], error)]
            return [became for each in endings for became in await self.settle([each])]

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _settle(self, endings: Sequence[Ending]) -> list[Became]:
        if self._connection is None or self._connection.closed:
            self._connection = await aio.connect(
                "relay", application_name="bridge-settlements", options=aio.STEADY_PLANS
            )
            self._connection.prepare_threshold = 0
        connection = self._connection
        notices = Notices()
        # One statement is a transaction by itself, and saves two round trips.
        plain = all(ending.is_plain for ending in endings)
        async with contextlib.nullcontext() if plain else connection.transaction():
            became = await _written(connection, endings, notices)
        if self._hear is not None:
            notices.keep_from(self._hear)
        if notices:
            with contextlib.suppress(psycopg.Error):
                await connection.execute(*notices.statement())
        return became


async def _written(connection: aio.AsyncConnection, endings: Sequence[Ending], notices: Notices) -> list[Became]:
    writing = write(endings, notices)
    try:
        statement, parameters = next(writing)
        while True:
            cursor = await connection.execute(statement, parameters, binary=True)
            rows = await cursor.fetchall() if cursor.description else []
            statement, parameters = writing.send(rows)
    except StopIteration as end:
        became: list[Became] = end.value
    return became


def _bury(ending: Ending, error: psycopg.Error) -> Became:
    claimed = ending.claimed
    log.error("message %s cannot be settled: %s", claimed.message_id, error)
    notices = Notices()
    with database.relay(after=notices) as connection:
        units.bury(
            connection,
            claimed.organization_id,
            claimed.message_id,
            claimed.hand_over_id,
            claimed.owner,
            claimed.epoch,
            BridgeError.code,
            notices=notices,
        )
    return "dead"
