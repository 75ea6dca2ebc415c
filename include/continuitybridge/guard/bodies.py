"""Bounds of a body, seen before anything parses it: its bytes, and how deep its JSON is nested."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from itertools import accumulate
from typing import Any

from continuitybridge.errors import BridgeError, PayloadTooLarge, UnreadableContent

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

_STEP = bytes.maketrans(b"[{]}", b"\x02\x02\x00\x00")
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))
_PIECE = 64 * 1024


def check_depth(body: bytes, deepest: int) -> None:
    """Raise `UnreadableContent` for JSON that is nested deeper. A body with few brackets costs counting them; one
    that is no JSON is judged by its brackets outside of double quotes."""
    if body.count(b"[") + body.count(b"{") > deepest and _is_deeper(body, deepest):
        raise UnreadableContent(f"the JSON is nested deeper than {deepest} levels", allowed=deepest)


def _is_deeper(body: bytes, deepest: int) -> bool:
    # A backslash stands only in strings, so what is escaped can go; then every other part is outside of them.
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = b"".join(plain.split(b'"')[::2]).translate(_STEP, _OTHERS)
    depth = 0
    for start in range(0, len(brackets), _PIECE):
        depths = [*accumulate((step - 1 for step in brackets[start : start + _PIECE]), initial=depth)]
        if max(depths) > deepest:
            return True
        depth = depths[-1]
    return False


class BoundedBody:
    """`receive` of a request whose body is bounded. `deepest` None: it is not JSON. It raises `PayloadTooLarge` or
    `UnreadableContent` into whoever reads, before the last piece is handed over, and keeps it as `refusal`."""

    def __init__(self, receive: Receive, max_bytes: int, deepest: int | None) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._deepest = deepest
        self._bytes = 0
        self._pieces: list[bytes] = []
        self.refusal: BridgeError | None = None

    async def __call__(self) -> Message:
        if self.refusal is not None:
            raise self.refusal
        message = await self._receive()
        if message["type"] == "http.request":
            try:
                self._look(message.get("body", b""), more=message.get("more_body", False))
            except BridgeError as error:
                self.refusal = error
                raise
        return message

    def _look(self, piece: bytes, *, more: bool) -> None:
        self._bytes += len(piece)
        if self._bytes > self._max_bytes:
            raise too_large(self._max_bytes)
        if self._deepest is None:
            return
        # Whoever reads the body keeps these pieces too.
        self._pieces.append(piece)
        if not more:
            pieces, self._pieces = self._pieces, []
            check_depth(pieces[0] if len(pieces) == 1 else b"".join(pieces), self._deepest)


def too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"a body has at most {max_bytes} bytes here", allowed=max_bytes)
