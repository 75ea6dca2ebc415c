"""uvicorn's stop without cutting a request that was sent before it.

uvicorn closes each connection on which it has read no request; but one may be on the wire. Here such a
connection is listened to for `LAST_CHANCE_S` more, what comes is answered with `connection: close`, and then it
is closed.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LAST_CHANCE_S = 0.5

_shutdown = HttpToolsProtocol.shutdown
_on_headers_complete = HttpToolsProtocol.on_headers_complete


def install() -> None:
    """Have every server of this process stop so. For a server whose protocol class is not ours to choose; its
    connections must not exist yet."""
    HttpToolsProtocol.shutdown = shutdown  # type: ignore[method-assign, assignment]
    HttpToolsProtocol.on_headers_complete = on_headers_complete  # type: ignore[method-assign, assignment]


def shutdown(protocol: Any) -> None:
    """In place of `HttpToolsProtocol.shutdown`."""
    protocol.is_stopping = True
    if _is_idle(protocol):
        protocol.loop.call_later(LAST_CHANCE_S, _close_if_idle, protocol)
    else:
        _shutdown(protocol)


def on_headers_complete(protocol: Any) -> None:
    """In place of `HttpToolsProtocol.on_headers_complete`."""
    _on_headers_complete(protocol)
    if getattr(protocol, "is_stopping", False) and protocol.cycle is not None:
        protocol.cycle.keep_alive = False


def _is_idle(protocol: Any) -> bool:
    return protocol.cycle is None or protocol.cycle.response_complete


def _close_if_idle(protocol: Any) -> None:
    if _is_idle(protocol):
        protocol.transport.close()
