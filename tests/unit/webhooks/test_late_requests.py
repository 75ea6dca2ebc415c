"""A server's stop while connections wait at its socket: how many are taken, and what happens without any
descriptor for them."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from continuitybridge.webhooks import late_requests

REQUEST = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n"


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """For this test only."""
    for place, names in {
        uvicorn.Server: ("shutdown",),
        HttpToolsProtocol: ("connection_made", "shutdown", "on_headers_complete"),
    }.items():
        for name in names:
            monkeypatch.setattr(place, name, getattr(place, name))
    late_requests.install()


async def application(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


def answers_of_a_stop(
    count: int, *, before_the_stop: Callable[[uvicorn.Server], None]
) -> tuple[bytes, list[bytes]]:
    """Stop a server that has taken one connection, at whose socket `count` others wait, a request on each: how the
    answer to the one begins, and those to the others."""

    def answer(connection: socket.socket) -> bytes:
        try:
            return connection.recv(1000)[:15]
        except ConnectionResetError:
            return b""

    async def run(closing: ExitStack) -> tuple[bytes, list[bytes]]:
        listener = closing.enter_context(socket.create_server(("127.0.0.1", 0)))
        config = uvicorn.Config(application, http="httptools", lifespan="off", log_config=None, backlog=100)
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[listener])

        def connect() -> socket.socket:
            made = closing.enter_context(socket.create_connection(listener.getsockname()[:2], timeout=5))
            made.sendall(REQUEST)
            return made

        taken = connect()
        while not server.server_state.connections:  # noqa: ASYNC110  (uvicorn tells nobody)
            await asyncio.sleep(0.001)
        # From here on the loop does not run until the stop: nobody takes them.
        waiting = [connect() for _ in range(count)]
        before_the_stop(server)
        await server.shutdown(sockets=[listener])
        return answer(taken), [answer(each) for each in waiting]

    with ExitStack() as closing:
        return asyncio.run(run(closing))


OK = b"HTTP/1.1 200 OK"


def test_no_more_are_taken_than_can_wait_at_once() -> None:
    def lower(server: uvicorn.Server) -> None:
        server.config.backlog = 3

    assert answers_of_a_stop(8, before_the_stop=lower) == (OK, [OK] * 3 + [b""] * 5)


@pytest.mark.parametrize("left", [0, 6])
def test_without_descriptors_for_those_that_wait_the_others_are_answered(left: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    filling: list[int] = []

    def use_up(_: uvicorn.Server) -> None:
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + left, hard))
        with suppress(OSError):
            while True:
                filling.append(os.dup(0))
        for each in filling[len(filling) - left :]:
            os.close(each)
        del filling[len(filling) - left :]

    try:
        assert answers_of_a_stop(20, before_the_stop=use_up) == (OK, [b""] * 20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in filling:
            os.close(each)
