"""What every answer tells a browser about how careful to be (OWASP Secure Headers, HTTP Headers Cheat Sheet).

Our own pages run no script and no style that stands in the page itself. Airflow's pages need both, so that their
policy says only who may frame them and that they embed no plug-ins. Pages of the platform may frame each other.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from continuitybridge.settings import get_settings

HSTS_S = 365 * 24 * 3600
"""For how long a browser that saw the platform by HTTPS does not ask for it otherwise."""

_Headers = tuple[tuple[bytes, bytes], ...]

_ALL: _Headers = (
    (b"x-content-type-options", b"nosniff"),
    # Not `no-referrer`: browsers then leave out the Origin that tells our forms from others'.
    (b"referrer-policy", b"same-origin"),
    # For browsers that do not know frame-ancestors.
    (b"x-frame-options", b"SAMEORIGIN"),
)
_AIRFLOWS: _Headers = (*_ALL, (b"content-security-policy", b"frame-ancestors 'self'; object-src 'none'"))
_OURS: _Headers = (*_ALL, (b"cross-origin-resource-policy", b"same-origin"))
_DATA: _Headers = (
    *_OURS,
    (
        b"content-security-policy",
        b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    ),
)
_PAGES: _Headers = (
    *_OURS,
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        b"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'",
    ),
)
_OUR_ADDRESSES = ("/bridge/", "/api/")
"""The old addresses among them."""
_HSTS: _Headers = ((b"strict-transport-security", f"max-age={HSTS_S}".encode()),)


class SecurityHeadersMiddleware:
    """ASGI middleware of the whole api-server. What an answer says itself is kept."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._by_https: bool | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        ours = path.startswith(_OUR_ADDRESSES) and not path.startswith("/api/v2/")
        if self._by_https is None:
            self._by_https = get_settings().external_url.startswith("https://")
        secure = self._by_https or scope.get("scheme") == "https"

        async def careful(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = list(message.get("headers", ()))
                wanted = _of(given) if ours else _AIRFLOWS
                message = {**message, "headers": _joined(given, (*wanted, *_HSTS) if secure else wanted)}
            await send(message)

        await self.app(scope, receive, careful)


def _of(headers: Iterable[tuple[bytes, bytes]]) -> _Headers:
    kind = next((value for name, value in headers if name.lower() == b"content-type"), b"")
    return _PAGES if kind.startswith(b"text/html") else _DATA


def _joined(given: list[tuple[bytes, bytes]], wanted: _Headers) -> list[tuple[bytes, bytes]]:
    there = {name.lower() for name, _ in given}
    return [*given, *(each for each in wanted if each[0] not in there)]
