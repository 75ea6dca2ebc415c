"""uvicorn's stop without cutting a request that was sent before it.

uvicorn closes its listening socket and each connection on which it has read no request. But one may be on the
wire, and on a busy machine connections wait at the socket that nobody has taken yet, requests on them. Here they
are taken before the socket is closed, each connection is listened to for `LAST_CHANCE_S` more, what comes is
answered with `connection: close`, and then it is closed. Where it stops: who connects in the microseconds between
the last look at the socket and its end is reset.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LAST_CHANCE_S = 0.5

_stop = uvicorn.Server.shutdown
_connection_made = HttpToolsProtocol.connection_made
_shutdown = HttpToolsProtocol.shutdown
_on_headers_complete = HttpToolsProtocol.on_headers_complete


def install() -> None:
    """Have every server of this process stop so. Harmless when done before; no connection may exist yet."""
    uvicorn.Server.shutdown = stop  # type: ignore[method-assign, assignment]
    HttpToolsProtocol.connection_made = connection_made  # type: ignore[method-assign, assignment]
    HttpToolsProtocol.shutdown = shutdown  # type: ignore[method-assign, assignment]
    HttpToolsProtocol.on_headers_complete = on_headers_complete  # type: ignore[method-assign, assignment]


async def stop(server: Any, sockets: list[socket.socket] | None = None) -> None:
    """In place of `Server.shutdown`."""
    server.server_state.is_stopping = True
    taken = [connection for listener in server.servers for connection in _waiting(listener)]
    for each in (*server.servers, *(sockets or ())):
        each.close()
    if taken:
        opening = [asyncio.create_task(_open(server, connection)) for connection in taken]
        await asyncio.wait(opening, timeout=LAST_CHANCE_S)
    await _stop(server, sockets)


def connection_made(protocol: Any, transport: Any) -> None:
    """In place of `HttpToolsProtocol.connection_made`."""
    _connection_made(protocol, transport)
    if _is_stopping(protocol):
        protocol.shutdown()


def shutdown(protocol: Any) -> None:
    """In place of `HttpToolsProtocol.shutdown`."""
    if _is_idle(protocol):
        protocol.loop.call_later(LAST_CHANCE_S, _close_if_idle, protocol)
    else:
        _shutdown(protocol)


def on_headers_complete(protocol: Any) -> None:
    """In place of `HttpToolsProtocol.on_headers_complete`."""
    _on_headers_complete(protocol)
    if _is_stopping(protocol) and protocol.cycle is not None:
        protocol.cycle.keep_alive = False


def _waiting(listener: Any) -> Iterator[socket.socket]:
    """The connections that wait to be taken."""
    for each in listener.sockets:
        with socket.socket(fileno=os.dup(each.fileno())) as listening:
            listening.setblocking(False)
            while True:
                try:
                    connection, _ = listening.accept()
                except ConnectionAbortedError:
                    continue
                except OSError:
                    # There is none, or no room for more.
                    break
                connection.setblocking(False)
                yield connection


async def _open(server: Any, connection: socket.socket) -> None:
    config = server.config

    def protocol() -> asyncio.Protocol:
        made: asyncio.Protocol = config.http_protocol_class(
            config=config, server_state=server.server_state, app_state=server.lifespan.state
        )
        return made

    try:
        await asyncio.get_running_loop().connect_accepted_socket(protocol, connection, ssl=config.ssl)
    except OSError:
        # It went meanwhile.
        connection.close()


def _is_stopping(protocol: Any) -> bool:
    return getattr(protocol.server_state, "is_stopping", False)


def _is_idle(protocol: Any) -> bool:
    return protocol.cycle is None or protocol.cycle.response_complete


def _close_if_idle(protocol: Any) -> None:
    if _is_idle(protocol):
        protocol.transport.close()
