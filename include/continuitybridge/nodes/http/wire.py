"""One connection to a destination: HTTP/1.1 (RFC 9112) over asyncio, parsed by llhttp (httptools).

A general client takes a quarter to two milliseconds of a processor for each request, most of a message's way;
this takes some tens of microseconds. It knows what delivering needs and no more: one request at a time, whole
bodies, no upgrades, no cookies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import httptools

MAX_HEAD_BYTES = 128 * 1024
"""Longest head of an answer."""
_TOO_LONG = f"the head of the destination's answer has more than {MAX_HEAD_BYTES} bytes"

Reading = Callable[[int, dict[str, str]], tuple[int, bool]]
"""Given status and headers of an answer: how many bytes of its body to read at most, and whether to keep them."""


class ExchangeFailed(Exception):
    """There is no whole answer. `unheard`: the connection had served before and ended without a byte of this one,
    so that the destination may just have closed it while nothing was under way."""

    def __init__(self, reason: str, *, unheard: bool = False) -> None:
        super().__init__(reason)
        self.unheard = unheard


@dataclass(slots=True)
class RawAnswer:
    """An answer as it came. Header names are in lower case; what came several times is joined by
    commas, cookies by line ends. `cut`: the body has more bytes than were to be read."""

    status: int
    headers: dict[str, str]
    content: bytes
    cut: bool


class Connection(asyncio.Protocol):
    """Sends one request after another. `usable` until the destination, a broken answer or `close` ends it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.usable = False
        self.served = 0
        self.idle_since = 0.0
        self._parser: Any = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[RawAnswer] | None = None
        self._reading: Reading
        self._without_body = False
        self._heard_bytes = 0
        self._reset()

    def _reset(self) -> None:
        self._names: list[tuple[bytes, bytes]] = []
        self._status = 0
        self._headers: dict[str, str] | None = None
        self._body: list[bytes] = []
        self._size = 0
        self._most = 0
        self._keep = False

    async def exchange(self, request: bytes, content: bytes, reading: Reading, *, without_body: bool) -> RawAnswer:
        """Send a request and read its answer; `without_body` for methods whose answers have none (HEAD). Raises
        `ExchangeFailed`. A cancelled exchange ends the connection."""
        answer: asyncio.Future[RawAnswer] = asyncio.get_running_loop().create_future()
        self._answer = answer
        self._reading = reading
        self._without_body = without_body
        self._heard_bytes = 0
        self._reset()
        # A small body goes in one piece with its head: one packet, one system call.
        if len(content) > 64 * 1024:
            self.transport.write(request)
            self.transport.write(content)
        else:
            self.transport.write(request + content)
        try:
            return await answer
        finally:
            if self._answer is not None:
                self._answer = None
                self.close()

    def close(self) -> None:
        """End the connection at once."""
        self.usable = False
        self.transport.abort()

    # -- asyncio.Protocol ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.usable = True

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            self.close()  # nobody asked
            return
        self._heard_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("the destination switched to another protocol")
        except httptools.HttpParserError as error:
            self._fail(f"the destination's answer is no HTTP: {error}")
        else:
            if self._headers is None and self._answer is not None and self._heard_bytes > MAX_HEAD_BYTES:
                self._fail(_TOO_LONG)

    def connection_lost(self, error: Exception | None) -> None:
        self.usable = False
        self._parser = None  # it holds this object
        if self._answer is None:
            return
        if self._headers is not None and error is None and self._ends_with_connection(self._headers):
            self._finish(cut=False)
        elif not self._heard_bytes:
            reason = str(error) if error is not None else "the destination ended the connection without an answer"
            self._fail(reason, unheard=self.served > 0)
        else:
            self._fail("the destination ended the connection within its answer")

    @staticmethod
    def _ends_with_connection(headers: dict[str, str]) -> bool:
        """Whether the answer's body has no other end (RFC 9112, 6.3)."""
        return "content-length" not in headers and "transfer-encoding" not in headers

    # -- httptools ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._answer is None:
            self.close()  # something follows the answer: it must not be taken for the next one
        else:
            self._reset()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._names.append((name, value))

    def on_headers_complete(self) -> None:
        if self._answer is None:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            return  # an interim answer; the real one follows
        if sum(len(name) + len(value) for name, value in self._names) > MAX_HEAD_BYTES:
            self._fail(_TOO_LONG)
            return
        headers: dict[str, str] = {}
        for raw_name, raw_value in self._names:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            # Cookies hold commas: they alone cannot be joined by them (RFC 9110, 5.3).
            between = "\n" if name == "set-cookie" else ", "
            headers[name] = f"{headers[name]}{between}{value}" if name in headers else value
        self._status, self._headers = status, headers
        if self._without_body:
            self._finish(cut=False)
        else:
            self._most, self._keep = self._reading(status, headers)

    def on_body(self, data: bytes) -> None:
        if self._answer is None:
            return
        self._size += len(data)
        if self._keep:
            self._body.append(data)
        if self._size > self._most:
            self._finish(cut=True)

    def on_message_complete(self) -> None:
        if self._answer is None or self._headers is None:
            return
        # What is still being written belongs to this request, not in front of the next one.
        again = self._parser.should_keep_alive() and not self.transport.get_write_buffer_size()
        self._finish(cut=False, again=again)

    def _finish(self, *, cut: bool, again: bool = False) -> None:
        answer, self._answer = self._answer, None
        self.served += 1
        if not again:
            self.close()
        if answer is not None and not answer.done():
            answer.set_result(RawAnswer(self._status, self._headers or {}, b"".join(self._body), cut))

    def _fail(self, reason: str, *, unheard: bool = False) -> None:
        answer, self._answer = self._answer, None
        self.close()
        if answer is not None and not answer.done():
            answer.set_exception(ExchangeFailed(reason, unheard=unheard))
