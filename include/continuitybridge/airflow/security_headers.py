"""Every answer of the api-server tells browsers how careful to be (`browser_headers`)."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from continuitybridge.browser_headers import AIRFLOWS, DATA, HSTS, PAGES, Headers
from continuitybridge.request_paths import path_of
from continuitybridge.settings import get_settings

_OUR_ADDRESSES = ("/bridge/", "/api/")
"""The old addresses among them."""


class SecurityHeadersMiddleware:
    """ASGI middleware of the whole api-server. What an answer says itself is kept."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._by_https: bool | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = path_of(scope)
        ours = path.startswith(_OUR_ADDRESSES) and not path.startswith("/api/v2/")
        if self._by_https is None:
            self._by_https = get_settings().external_url.startswith("https://")
        secure = self._by_https or scope.get("scheme") == "https"

        async def careful(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = list(message.get("headers", ()))
                wanted = _of(given) if ours else AIRFLOWS
                message = {**message, "headers": _joined(given, (*wanted, *HSTS) if secure else wanted)}
            await send(message)

        await self.app(scope, receive, careful)


def _of(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    kind = next((value for name, value in headers if name.lower() == b"content-type"), b"")
    return PAGES if kind.startswith(b"text/html") else DATA


def _joined(given: list[tuple[bytes, bytes]], wanted: Headers) -> list[tuple[bytes, bytes]]:
    there = {name.lower() for name, _ in given}
    return [*given, *(each for each in wanted if each[0] not in there)]
