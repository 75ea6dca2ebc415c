"""Addresses of the predecessor that callers have configured."""

from __future__ import annotations

from continuitybridge.api.gate import Receive, Scope, Send, answer
from continuitybridge.errors import MethodNotAllowed, NotFound

_BODY = b'{"status":"ok"}'


class LegacyHealth:
    """`GET /api/health`: liveness at its old address."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        if path.removeprefix(scope.get("root_path", "")) not in ("", "/", "/api/health"):
            await answer(NotFound("no such address"), send)
        elif scope["method"] not in ("GET", "HEAD"):
            await answer(MethodNotAllowed("the address does not take this method", allow=("GET", "HEAD")), send)
        else:
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(_BODY)).encode()),
                (b"cache-control", b"no-store"),
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else _BODY})
