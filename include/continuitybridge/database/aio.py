"""The same connections for coroutines: one pool per role, event loop and process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from continuitybridge.database import refusals
from continuitybridge.database.connections import (
    _KEEPALIVE,
    _SET_TENANT,
    CONNECT_TIMEOUT_S,
    RECONNECT_EVERY_S,
    Role,
    hung_up,
    role_url,
)
from continuitybridge.errors import Unavailable
from continuitybridge.settings import get_settings

AsyncConnection = psycopg.AsyncConnection[tuple[Any, ...]]
_Pools = dict[tuple[Role, str], AsyncConnectionPool[AsyncConnection]]

STEADY_PLANS = (
    "-c jit=off -c plan_cache_mode=force_generic_plan"
    " -c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off"
)
"""Options of a connection for a few statements that look up rows by their keys, again and again. They are planned
once, whatever the tables hold then: that a table is empty now is no reason to read it through when it is full."""

_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pools] = WeakKeyDictionary()
_left_behind: list[object] = []


def _after_fork_in_child() -> None:
    _left_behind.append(dict(_pools))
    _pools.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


async def _pool(role: Role) -> AsyncConnectionPool[AsyncConnection]:
    settings = get_settings()
    key = (role, role_url(role))
    pools = _pools.setdefault(asyncio.get_running_loop(), {})
    pool = pools.get(key)
    if pool is None:
        pool = pools[key] = _make_pool(role, key[1], settings.database_pool_size)
        await pool.open()
    return pool


def _make_pool(role: Role, url: str, size: int) -> AsyncConnectionPool[AsyncConnection]:
    """As `connections._make_pool`; the caller opens it."""

    async def check(connection: AsyncConnection) -> None:
        if hung_up(connection):
            await connection.close()
            await pool.check()
            raise psycopg.OperationalError("the server has ended the connection")

    async def keep_trying(pool: AsyncConnectionPool[AsyncConnection]) -> None:
        if pool.get_stats()["requests_waiting"]:
            await pool.check()

    pool = AsyncConnectionPool(
        url,
        min_size=0,
        max_size=size,
        timeout=CONNECT_TIMEOUT_S,
        max_idle=120.0,
        check=check,
        reconnect_timeout=RECONNECT_EVERY_S,
        reconnect_failed=keep_trying,
        kwargs={"application_name": f"bridge-{role}", **_KEEPALIVE},
        name=f"bridge-{role}",
        open=False,
    )
    return pool


async def close_pools() -> None:
    """Close the pools of the running event loop."""
    for pool in _pools.pop(asyncio.get_running_loop(), {}).values():
        await pool.close(timeout=2.0)


async def connect(role: Role, **options: Any) -> AsyncConnection:
    """A connection outside the pools, in autocommit mode, for one long-lived owner. Raises `Unavailable`."""
    try:
        return await psycopg.AsyncConnection.connect(
            role_url(role), autocommit=True, **{"application_name": f"bridge-{role}", **_KEEPALIVE, **options}
        )
    except psycopg.OperationalError as error:
        raise Unavailable("the database does not answer", sqlstate=error.sqlstate) from error


@asynccontextmanager
async def _transaction(role: Role) -> AsyncIterator[AsyncConnection]:
    try:
        pool = await _pool(role)
        async with pool.connection() as connection, connection.transaction():
            yield connection
    except PoolTimeout as error:
        raise Unavailable(f"no database connection within {CONNECT_TIMEOUT_S:g} s") from error
    except psycopg.OperationalError as error:
        raise Unavailable("the database did not finish the transaction", sqlstate=error.sqlstate) from error
    except psycopg.DatabaseError as error:
        refusals.reraise(error)


@asynccontextmanager
async def tenant(organization_id: UUID | None, user_name: str | None = None) -> AsyncIterator[AsyncConnection]:
    """As `continuitybridge.database.tenant`."""
    async with _transaction("app") as connection:
        await connection.execute(
            _SET_TENANT, ("" if organization_id is None else str(organization_id), user_name or "")
        )
        yield connection


@asynccontextmanager
async def relay() -> AsyncIterator[AsyncConnection]:
    """As `continuitybridge.database.relay`."""
    async with _transaction("relay") as connection:
        yield connection


@asynccontextmanager
async def platform() -> AsyncIterator[AsyncConnection]:
    """As `continuitybridge.database.platform`."""
    async with _transaction("platform") as connection:
        yield connection


async def listen(channels: Sequence[str]) -> AsyncIterator[psycopg.Notify]:
    """As `continuitybridge.database.listen`, without end."""
    connection = await connect("relay", application_name="bridge-listen")
    try:
        for channel in channels:
            await connection.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel)))
        async for notify in connection.notifies():
            yield notify
    except psycopg.OperationalError as error:
        raise Unavailable("the database does not answer", sqlstate=error.sqlstate) from error
    finally:
        await connection.close()
