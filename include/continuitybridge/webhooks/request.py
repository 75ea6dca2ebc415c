"""A request while it is being judged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol

from continuitybridge.webhooks import network

if TYPE_CHECKING:
    from continuitybridge.webhooks.target import Target
    from continuitybridge.webhooks.verification import Headers

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

LINGER_BYTES = 64 * 1024 * 1024
"""How much of a refused body is read at most, so that its sender reads the answer."""


class SenderGone(Exception):
    """The sender closed the connection before its request was complete: nobody is there to answer."""


class Surroundings(Protocol):
    """What a request's meaning depends on beside itself."""

    def url(self, scope: Scope) -> str:
        """The address that a request was sent to, as its sender knows it."""

    def is_proxy(self, address: network.Address | None) -> bool:
        """Whether the headers that come from there are a trusted proxy's."""


class Request:
    """One request; also what verification sees of it (`Received`). `target` is its endpoint once that is found,
    `stranger` the organization and environment that an address without an endpoint names, if they exist."""

    __slots__ = (
        "_around",
        "_receive",
        "body",
        "buffered",
        "headers",
        "is_counted",
        "method",
        "more_body",
        "scope",
        "stranger",
        "target",
    )

    def __init__(self, scope: Scope, receive: Receive, around: Surroundings) -> None:
        self.scope = scope
        self._receive = receive
        self._around = around
        self.method: str = scope["method"]
        self.headers: Headers = _headers(scope["headers"])
        self.body = b""
        self.target: Target | None = None
        self.stranger: Any = None
        self.buffered = 0
        self.is_counted = False
        self.more_body = True

    @property
    def url(self) -> str:
        return self._around.url(self.scope)

    @property
    def proxied(self) -> bool:
        return self._around.is_proxy(network.peer(self.scope))

    @property
    def awaits_continue(self) -> bool:
        """Whether the sender holds its body back until it is asked for it (nothing of it was read)."""
        return not self.buffered and self.headers.get(b"expect", b"").lower() == b"100-continue"

    @property
    def is_small(self) -> bool:
        """Whether what is left of the body is likely here already, so that the connection can be kept."""
        declared = self.headers.get(b"content-length", b"")
        return self.more_body and declared.isdigit() and len(declared) < 6 and not self.awaits_continue

    async def read(self) -> bytes:
        """The next piece of the body; raises `SenderGone`."""
        event = await self._receive()
        if event["type"] == "http.disconnect":
            self.more_body = False
            raise SenderGone
        self.more_body = event.get("more_body", False)
        chunk: bytes = event.get("body", b"")
        return chunk

    async def wait_gone(self) -> None:
        """Wait until the sender closes the connection; its body was read before."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def discard(self, timeout_s: float) -> None:
        """Read what is left of the body for a while, keeping nothing."""
        left = LINGER_BYTES
        try:
            async with asyncio.timeout(timeout_s):
                while self.more_body and left > 0:
                    left -= len(await self.read())
        except TimeoutError:
            return
        except SenderGone:
            self.more_body = False


def _headers(pairs: Any) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = dict(pairs)
    if len(headers) == len(pairs):
        return headers
    headers = {}
    for name, value in pairs:
        headers[name] = value if name not in headers else headers[name] + b", " + value
    return headers
