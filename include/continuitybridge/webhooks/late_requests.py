"""uvicorn's stop without cutting a request that was sent before it.

uvicorn closes its listening socket and each connection on which it has read no request. But one may be on the
wire, and on a busy machine connections wait at the socket that nobody has taken yet, requests on them. Here they
are taken before the socket is closed, each connection is listened to for `LAST_CHANCE_S` more, what comes is
answered with `connection: close`, and then it is closed. Where it stops: who connects in the microseconds between
the last look at the socket and its end is reset, and so is whom the process has no descriptor for.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.supervisors import Multiprocess

LAST_CHANCE_S = 0.5
SPARE_DESCRIPTORS = 16
"""Left for the requests under way where the process's descriptors are used up."""

_stop = uvicorn.Server.shutdown
_connection_made = HttpToolsProtocol.connection_made
_shutdown = HttpToolsProtocol.shutdown
_on_headers_complete = HttpToolsProtocol.on_headers_complete
_terminate_all = Multiprocess.terminate_all


def install() -> None:
    """Have every server of this process stop so. Harmless when done before; no connection may exist yet."""
    uvicorn.Server.shutdown = stop  # type: ignore[method-assign, assignment]
    HttpToolsProtocol.connection_made = connection_made  # type: ignore[method-assign, assignment]
    HttpToolsProtocol.shutdown = shutdown  # type: ignore[method-assign, assignment]
    HttpToolsProtocol.on_headers_complete = on_headers_complete  # type: ignore[method-assign, assignment]


def install_above() -> None:
    """Have the process above several servers close its own copy of their socket when it stops them. Harmless when
    done before. An api-server of several workers that is not started by `bridge up` goes without: who connects
    while it stops waits until the last worker has ended, and is reset."""
    Multiprocess.terminate_all = terminate_all  # type: ignore[method-assign, assignment]


async def stop(server: Any, sockets: list[socket.socket] | None = None) -> None:
    """In place of `Server.shutdown`."""
    server.server_state.is_stopping = True
    taken = [
        connection
        for listener in server.servers
        for each in listener.sockets
        for connection in _waiting(each, server.config.backlog)
    ]
    for each in (*server.servers, *(sockets or ())):
        each.close()
    if taken:
        opening = [asyncio.create_task(_open(server, connection)) for connection in taken]
        await asyncio.wait(opening, timeout=LAST_CHANCE_S)
    await _stop(server, sockets)


def terminate_all(above: Any) -> None:
    """In place of `Multiprocess.terminate_all`."""
    # While this process held it too, who connects now would wait for nobody until the last server has ended.
    for each in above.sockets:
        each.close()
    _terminate_all(above)


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


def _waiting(listener: Any, most: int) -> list[socket.socket]:
    """The connections that wait at a socket to be taken; no more than can wait at once (`most`), as others may
    come as fast as they are taken."""
    try:
        listening = socket.socket(fileno=os.dup(listener.fileno()))
    except OSError:
        # No descriptor is left for one.
        return []
    taken: list[socket.socket] = []
    with listening:
        listening.setblocking(False)
        for _ in range(most):
            try:
                connection, _ = listening.accept()
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    for connection in taken[-SPARE_DESCRIPTORS:]:
                        connection.close()
                    del taken[-SPARE_DESCRIPTORS:]
                break
            connection.setblocking(False)
            taken.append(connection)
    return taken


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
