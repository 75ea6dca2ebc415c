"""What changes something and bears a cookie must come from the platform's own pages, at Airflow's addresses too.

Ours are behind a gate that asks the same. Airflow's API and forms take the session's cookie from wherever a
request comes; that browsers send it with few cross-site requests (SameSite=Lax) is one wall, this is the other.
Bearer tokens and API keys are sent by nobody's browser on its own. Imports little: every Airflow process loads it
with the plugin.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from continuitybridge.errors import NotAllowed
from continuitybridge.origins import SAFE, is_anothers, is_ours
from continuitybridge.request_paths import path_of

_NOT_HERE = ("/bridge/", "/api/webhook/")


class SameOriginMiddleware:
    """ASGI middleware of the whole api-server; costs webhooks and requests that only read a comparison."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in SAFE and _is_forged(scope):
            from continuitybridge.api.gate import answer

            await answer(
                NotAllowed("a request that changes something must come from the platform's own pages"), send
            )
            return
        await self.app(scope, receive, send)


def _is_forged(scope: Scope) -> bool:
    if path_of(scope).startswith(_NOT_HERE):
        return False
    headers = dict(scope["headers"])
    if b"x-api-key" in headers or headers.get(b"authorization", b"")[:7].lower() == b"bearer ":
        return False
    if b"cookie" in headers:
        return not is_ours(headers)
    # Without a cookie a foreign page can still sign a person in under a name of its own.
    return is_anothers(headers)
