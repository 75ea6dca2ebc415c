"""uvicorn's HTTP/1.1 for requests that offer another protocol beside (`Upgrade: h2c`), as Java's HttpClient and
`curl --http2` do with all that they send in clear.

A server may pass such an offer over (RFC 9110, 7.8): the request is one like any other. uvicorn's parser takes
none of its body, as though the other protocol began there, so that the message seems empty, and what comes of its
body later seems to be another request. Here the body is read, and what is behind it too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_FRAMING = (b"content-length", b"transfer-encoding")


def install() -> None:
    """Have every server of this process read so. Harmless when done before; no connection may exist yet."""
    HttpToolsProtocol.data_received = data_received  # type: ignore[method-assign, assignment]


def data_received(protocol: Any, data: bytes) -> None:
    """In place of `HttpToolsProtocol.data_received`."""
    protocol._unset_keepalive_if_required()
    try:
        while data:
            try:
                protocol.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                if protocol._should_upgrade():
                    protocol.handle_websocket_upgrade()
                    return
                data = data[offer.args[0] :]
                _pass_over(protocol)
    except httptools.HttpParserError:
        reason = "Invalid HTTP request received."
        protocol.logger.warning(reason)
        protocol.send_400_response(reason)


def _pass_over(protocol: Any) -> None:
    """Go on behind the head of a request whose body was skipped, if it has one."""
    framing = [(name, value) for name, value in protocol.headers if name in _FRAMING]
    if all(value.strip(b" \t0") == b"" for _, value in framing):
        return
    lines = [b"%b: %b\r\n" % each for each in framing]
    behind = _BehindHead(protocol)
    protocol.parser = httptools.HttpRequestParser(behind)
    protocol.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
    protocol.parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(lines) + b"\r\n")
    behind.is_there = True
    if not protocol.cycle.response_complete:
        protocol.cycle.more_body = True


class _BehindHead:
    """A protocol for a parser that is to read on behind a head: of the head it is told nothing."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self.is_there = False

    def __getattr__(self, name: str) -> Callable[..., None]:
        told: Callable[..., None] = getattr(self._protocol, name)

        def tell(*what: bytes) -> None:
            if self.is_there:
                told(*what)

        return tell
