"""A server that is killed and started again: how soon those who use it can go on."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from continuitybridge import database
from continuitybridge.database import aio
from continuitybridge.database.embedded import EmbeddedPostgres
from continuitybridge.errors import Unavailable

AT_ONCE = 8
SOON_S = 4.0
"""Well below what a caller waits for a connection, well above what a loaded machine takes to make some."""


def use(together: threading.Barrier | None = None) -> int:
    with database.relay() as connection:
        if together:
            together.wait(30)
        [found] = connection.execute("SELECT 1").fetchone() or (0,)
        return int(found)


async def use_aio(together: asyncio.Barrier | None = None) -> int:
    async with aio.relay() as connection:
        if together:
            await together.wait()
        [found] = await (await connection.execute("SELECT 1")).fetchone() or (0,)
        return int(found)


@contextlib.contextmanager
def quick() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < SOON_S


@pytest.fixture(autouse=True)
def _running_afterwards(postgres: EmbeddedPostgres) -> Iterator[None]:
    yield
    if not postgres.running:
        postgres.start(die_with_parent=True)


def test_a_pool_full_of_dead_connections_serves_at_once_when_the_server_is_back(
    postgres: EmbeddedPostgres,
) -> None:
    together = threading.Barrier(AT_ONCE)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        assert list(threads.map(use, [together] * AT_ONCE)) == [1] * AT_ONCE
        postgres.kill()
        postgres.start(die_with_parent=True)
        with quick():
            assert use() == 1
        with quick():
            assert list(threads.map(use, [together] * AT_ONCE)) == [1] * AT_ONCE


async def test_a_pool_of_coroutines_does_so_too(postgres: EmbeddedPostgres) -> None:
    together = asyncio.Barrier(AT_ONCE)
    try:
        assert await asyncio.gather(*(use_aio(together) for _ in range(AT_ONCE))) == [1] * AT_ONCE
        postgres.kill()
        postgres.start(die_with_parent=True)
        with quick():
            assert await use_aio() == 1
        with quick():
            assert await asyncio.gather(*(use_aio(together) for _ in range(AT_ONCE))) == [1] * AT_ONCE
    finally:
        await aio.close_pools()


def test_who_waits_while_the_server_is_away_is_served_soon_after_it_came_back(postgres: EmbeddedPostgres) -> None:
    use()
    postgres.kill()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        # Somebody asked all along: the longer it is away, the longer the pauses would become.
        asked = time.monotonic()
        early = threads.submit(use)
        time.sleep(4.5)
        late = [threads.submit(use) for _ in range(AT_ONCE - 1)]
        postgres.start(die_with_parent=True)
        back = time.monotonic()
        assert [one.result() for one in late] == [1] * (AT_ONCE - 1)
        assert time.monotonic() - back < SOON_S
        with contextlib.suppress(Unavailable):  # only when the server took longer than a caller waits
            assert early.result() == 1
        assert time.monotonic() - asked < 30
