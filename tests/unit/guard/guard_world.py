"""A guard before an application, and requests as a server hands them on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from clock import Clock
from continuitybridge.guard import limiter
from continuitybridge.guard.middleware import GuardMiddleware
from continuitybridge.settings import get_settings

Message = dict[str, Any]
Headers = Sequence[tuple[bytes, bytes]]
HOOK = "/bridge/hooks/acme/prod/orders"
SCANNER = ((b"user-agent", b"sqlmap/1.8"),)
CRAWLER = ((b"user-agent", b"GPTBot/1.2"),)
ADDRESS = "198.51.100.7"


@dataclass
class Answer:
    """What was sent to the client."""

    messages: list[Message] = field(default_factory=list)

    @property
    def status(self) -> int:
        [start] = [each for each in self.messages if each["type"] == "http.response.start"]
        return int(start["status"])

    @property
    def headers(self) -> dict[str, str]:
        pairs = self.messages[0].get("headers", ())
        assert len({name for name, _ in pairs}) == len(pairs), "each header stands there once"
        return {name.decode(): value.decode() for name, value in pairs}

    @property
    def body(self) -> bytes:
        return b"".join(each["body"] for each in self.messages if each["type"] == "http.response.body")


async def asked(
    app: Any,
    path: str = "/",
    *,
    address: str | None = ADDRESS,
    headers: Headers = (),
    query: bytes = b"",
    pieces: Sequence[bytes] = (b"",),
    **more: Any,
) -> Answer:
    """A request as a server hands it on."""
    answer, coming = Answer(), list(pieces)

    async def receive() -> Message:
        return {"type": "http.request", "body": coming.pop(0), "more_body": bool(coming)}

    async def send(message: Message) -> None:
        answer.messages.append(dict(message))

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": query,
        "headers": list(headers),
        "client": None if address is None else (address, 4711),
        **more,
    }
    await app(scope, receive, send)
    return answer


async def behind(scope: Any, receive: Any, send: Any) -> None:
    """Reads what it is sent, and says how much that was."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
    await send({"type": "http.response.body", "body": str(size).encode()})


Guarded = Callable[..., GuardMiddleware]


@pytest.fixture
def guarded(told: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Guarded:
    """Puts a guard with other settings before an application."""
    monkeypatch.setattr(limiter, "_limiters", {})
    settings = get_settings().model_copy(update={"redis_url": None})

    def make(app: Any = behind, **changed: Any) -> GuardMiddleware:
        return GuardMiddleware(app, settings.model_copy(update=changed))

    return make


async def count(app: Any, path: str = "/", headers: Headers = (), **more: Any) -> tuple[int, str]:
    """How often one is answered before he is refused, and by which policy."""
    for number in range(12):
        answer = await asked(app, path, headers=headers, **more)
        if answer.status == 429:
            return number, answer.headers["ratelimit-policy"].partition(";")[0]
        assert answer.status == 200
    return 12, ""
