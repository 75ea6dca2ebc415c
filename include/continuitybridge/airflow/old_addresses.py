"""Addresses of the predecessor that nothing can be mounted at, because a mount answers only below its prefix.

Imports little: every Airflow process loads it with the plugin.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from continuitybridge import problems
from continuitybridge.errors import MethodNotAllowed
from continuitybridge.request_paths import path_of

HEALTH = "/api/health"
_ALIVE = b'{"status":"ok"}'


class OldAddressesMiddleware:
    """ASGI middleware of the whole api-server: `GET /api/health` is liveness, and public. Costs other requests
    one comparison."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith(HEALTH) or not _is_health(scope):
            await self.app(scope, receive, send)
        elif scope["method"] in ("GET", "HEAD"):
            await _answer(send, 200, "application/json", _ALIVE, scope["method"] == "HEAD")
        else:
            problem = problems.of(MethodNotAllowed("the address does not take this method", allow=("GET", "HEAD")))
            await _answer(send, problem.status, problems.MEDIA_TYPE, problem.body(), False, problem.headers)


def _is_health(scope: Scope) -> bool:
    return path_of(scope) == HEALTH


async def _answer(
    send: Send, status: int, kind: str, body: bytes, bare: bool, more: dict[str, str] | None = None
) -> None:
    headers = {"content-type": kind, "content-length": str(len(body)), "cache-control": "no-store", **(more or {})}
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": b"" if bare else body})
