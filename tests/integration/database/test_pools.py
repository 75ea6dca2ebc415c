"""Connections that are kept: whose they are, how many, what becomes of those that the server ended, and what a
child process has of them."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from continuitybridge import database
from continuitybridge.database import aio, connections
from continuitybridge.errors import Unavailable
from continuitybridge.settings import Settings

MY_PID = "SELECT pg_backend_pid()"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    """Nobody waits long for a connection."""
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT_S", 0.25)
    monkeypatch.setattr(aio, "CONNECT_TIMEOUT_S", 0.25)


@pytest.fixture
def relay_beside() -> Iterator[psycopg.Connection[Any]]:
    """A connection of the relay beside the pools, which may end those."""
    with psycopg.connect(connections.role_url("relay"), autocommit=True) as connection:
        yield connection


def pid_of(connection: psycopg.Connection[Any]) -> int:
    [(pid,)] = connection.execute(MY_PID)
    return int(pid)


async def pid_of_aio(connection: aio.AsyncConnection) -> int:
    [(pid,)] = await (await connection.execute(MY_PID)).fetchall()
    return int(pid)


def living(beside: psycopg.Connection[Any], pids: Sequence[int]) -> set[int]:
    rows = beside.execute("SELECT pid FROM pg_stat_activity WHERE pid = ANY(%s)", (list(pids),))
    return {pid for (pid,) in rows}


def until(what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def end(beside: psycopg.Connection[Any], pids: Sequence[int]) -> None:
    for pid in pids:
        beside.execute("SELECT pg_terminate_backend(%s)", (pid,))
    until(lambda: not living(beside, pids))


def some_pids(door: Callable[[], Any], count: int) -> list[int]:
    """Those of so many connections in use at once."""
    with ExitStack() as stack:
        return [pid_of(stack.enter_context(door())) for _ in range(count)]


async def some_pids_aio(count: int) -> list[int]:
    together = asyncio.Barrier(count)

    async def one() -> int:
        async with aio.relay() as connection:
            await together.wait()
            return await pid_of_aio(connection)

    return await asyncio.gather(*(one() for _ in range(count)))


def test_connections_are_kept_and_those_that_the_server_ended_are_given_to_nobody(
    impatient: None, relay_beside: psycopg.Connection[Any]
) -> None:
    first = some_pids(database.relay, 3)
    assert set(some_pids(database.relay, 3)) == set(first), "they are kept"
    end(relay_beside, first)
    then = some_pids(database.relay, 3)
    assert not set(first) & set(then)


async def test_coroutines_get_none_that_the_server_ended_either(
    impatient: None, relay_beside: psycopg.Connection[Any]
) -> None:
    first = await some_pids_aio(3)
    assert set(await some_pids_aio(3)) == set(first)
    end(relay_beside, first)
    then = await some_pids_aio(3)
    assert not set(first) & set(then)


async def test_closed_pools_have_no_connections_and_are_made_anew(
    impatient: None, relay_beside: psycopg.Connection[Any]
) -> None:
    pids = [*some_pids(database.relay, 2), *await some_pids_aio(2)]
    assert living(relay_beside, pids) == set(pids)
    connections.close_pools()
    await aio.close_pools()
    until(lambda: not living(relay_beside, pids))
    await aio.close_pools()
    assert not {*some_pids(database.relay, 1), *await some_pids_aio(1)} & set(pids)


def named(beside: psycopg.Connection[Any], application: str) -> int:
    row = beside.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", (application,))
    return int((row.fetchone() or (0,))[0])


async def test_no_more_connections_are_made_than_somebody_uses(
    fresh: None, relay_beside: psycopg.Connection[Any]
) -> None:
    before = named(relay_beside, "bridge-keys"), named(relay_beside, "bridge-relay")
    some_pids(database.keys, 1)
    await some_pids_aio(1)
    await asyncio.sleep(0.1)
    after = named(relay_beside, "bridge-keys"), named(relay_beside, "bridge-relay")
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1]


async def door(port: int, to: int) -> asyncio.Server:
    """What comes to one port goes on to another."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", to)
        await asyncio.gather(pump(reader, back), pump(there, writer), return_exceptions=True)

    return await asyncio.start_server(handle, "127.0.0.1", port)


async def test_who_waits_for_a_server_is_served_within_a_second_of_its_coming(
    fresh: None, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    url = connections.role_url("relay").replace(f":{settings.database_port}/", f":{port}/")
    for module in (connections, aio):
        monkeypatch.setattr(module, "role_url", lambda role, settings=None: url)
        monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 3.5)
    began = time.monotonic()
    waiting = [
        asyncio.create_task(some_pids_aio(1)),
        asyncio.create_task(asyncio.to_thread(some_pids, database.relay, 1)),
    ]
    await asyncio.sleep(1.3)
    server = await door(port, settings.database_port)
    try:
        await asyncio.gather(*waiting)
        assert time.monotonic() - began < 2.7
    finally:
        await aio.close_pools()
        connections.close_pools()
        server.close()


def test_data_keys_are_read_on_connections_that_nothing_else_uses(impatient: None) -> None:
    who = "SELECT current_user::text, current_setting('application_name')"
    with database.keys() as first, database.keys():
        assert first.execute(who).fetchone() == ("bridge_platform", "bridge-keys")
        with pytest.raises(Unavailable), database.keys():
            pass
        assert len(set(some_pids(database.platform, 4))) == 4


def test_where_each_role_has_one_connection_the_keys_have_one_too(one_connection: None) -> None:
    with database.platform() as platform, database.keys() as keys:
        assert pid_of(platform) != pid_of(keys)
        for door in (database.platform, database.keys):
            with pytest.raises(Unavailable), door():
                pass


async def test_a_peer_that_vanished_is_noticed_after_a_minute(impatient: None) -> None:
    async with aio.relay() as of_coroutine:
        with database.relay() as connection:
            for each in (connection, of_coroutine):
                with socket.fromfd(each.fileno(), socket.AF_INET, socket.SOCK_STREAM) as wire:
                    options = [
                        wire.getsockopt(socket.IPPROTO_TCP, option)
                        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                    ]
                assert options == [30, 10, 3]


async def test_steady_plans_go_by_keys_whatever_a_table_holds() -> None:
    connection = await aio.connect("relay", options=aio.STEADY_PLANS)
    for name, value in {
        "jit": "off",
        "plan_cache_mode": "force_generic_plan",
        "enable_seqscan": "off",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
    }.items():
        assert await (await connection.execute(f"SHOW {name}")).fetchone() == (value,)  # type: ignore[call-overload]
    await connection.close()


def test_a_child_process_has_connections_of_its_own_and_leaves_its_parents_alone(one_connection: None) -> None:
    [first] = some_pids(database.relay, 1)
    with connections._lock:  # as another thread may, at that moment
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if some_pids(database.relay, 1) != [first] else 2
            finally:
                os._exit(code)
    deadline = time.monotonic() + 10
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert ended == (child, 0)
    assert some_pids(database.relay, 1) == [first]


def listeners(beside: psycopg.Connection[Any]) -> set[int]:
    rows = beside.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'bridge-listen'")
    return {pid for (pid,) in rows}


async def test_who_listens_is_told_that_the_connection_broke(
    relay_beside: psycopg.Connection[Any],
) -> None:
    before = listeners(relay_beside)
    told: list[Unavailable] = []

    def hear() -> None:
        try:
            for _ in connections.listen(["trial_broken"]):
                pass
        except Unavailable as error:
            told.append(error)

    async def hear_aio() -> None:
        try:
            async for _ in aio.listen(["trial_broken"]):
                pass
        except Unavailable as error:
            told.append(error)

    thread = threading.Thread(target=hear, daemon=True)
    thread.start()
    listening = asyncio.create_task(hear_aio())
    async with asyncio.timeout(10):
        while len(listeners(relay_beside) - before) < 2:  # noqa: ASYNC110  (the database's)
            await asyncio.sleep(0.01)
        for pid in listeners(relay_beside) - before:
            relay_beside.execute("SELECT pg_terminate_backend(%s)", (pid,))
        await listening
        await asyncio.to_thread(thread.join)
    assert len(told) == 2


async def test_who_wants_a_connection_of_his_own_is_told_that_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (connections, aio):
        monkeypatch.setattr(module, "role_url", lambda role: "postgresql://127.0.0.1:1/nothing")
    with pytest.raises(Unavailable, match="does not answer"):
        await aio.connect("relay")
    with pytest.raises(Unavailable, match="does not answer"):
        next(connections.listen(["trial"]))


@pytest.mark.usefixtures("fresh")
def test_no_more_than_two_connections_read_keys_and_who_comes_third_waits_for_one() -> None:
    third: list[int] = []
    waiting = threading.Thread(target=lambda: third.extend(some_pids(connections.keys, 1)))
    with ExitStack() as stack:
        two = {pid_of(stack.enter_context(connections.keys())) for _ in range(2)}
        waiting.start()
        waiting.join(0.3)
        assert not third
    waiting.join(10)
    assert third
    assert two >= set(third)


@pytest.mark.usefixtures("impatient")
def test_pools_are_closed_in_time_while_a_server_takes_connections_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://127.0.0.1:{silent.getsockname()[1]}/nothing"
        monkeypatch.setattr(connections, "role_url", lambda role: url)
        with pytest.raises(Unavailable, match="no database connection"):
            some_pids(connections.relay, 1)
        began = time.monotonic()
        connections.close_pools()
        # A try to connect alone takes ten seconds.
        assert time.monotonic() - began < 6
