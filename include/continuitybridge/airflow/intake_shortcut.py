"""Webhooks on the shortest way through Airflow's api-server.

Intake is mounted like every application of a plugin, behind Airflow's token refresh, which takes ten times as long
as intake itself and hands bodies and hang-ups on in its own way. This middleware stands before it (the auth
manager's do) and gives webhooks to the mounted intake at once. When the server starts it also takes them around
what stands before the auth manager's middlewares, compression and a line in the access log for each, which is as
much work as intake's own. Without it they arrive all the same.
"""

from __future__ import annotations

import gc
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from continuitybridge.airflow.security_headers import SecurityHeadersMiddleware
from continuitybridge.request_paths import path_of
from continuitybridge.webhooks import late_requests, upgrades
from continuitybridge.webhooks.addresses import LEGACY_PREFIX, PREFIX
from continuitybridge.webhooks.intake import IntakeApp


class IntakeShortcutMiddleware:
    """ASGI middleware; costs other requests a comparison. Where it is in place the server stops without cutting
    requests that were sent before, and reads those that offer another protocol."""

    def __init__(self, app: ASGIApp) -> None:
        late_requests.install()
        upgrades.install()
        self.app = app
        self._intake: IntakeApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" and self._mounted(scope) is not None:
            _shorten(scope["app"])
            # Airflow's modules stay: looking through them for garbage holds up everybody for a tenth of a second.
            gc.collect()
            gc.freeze()
        if scope["type"] == "http" and _is_webhook(scope) and (intake := self._mounted(scope)) is not None:
            await intake(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _mounted(self, scope: Scope) -> IntakeApp | None:
        """The intake that the server has mounted and whose lifespan it runs."""
        if self._intake is None:
            routes: list[Any] = getattr(scope.get("app"), "routes", [])
            mounted = (getattr(route, "app", None) for route in routes)
            self._intake = next((app for app in mounted if isinstance(app, IntakeApp)), None)
        return self._intake


class _Fork:
    """In place of an application's stack of middlewares: webhooks go to the guard's door at once."""

    def __init__(self, door: ASGIApp, stack: ASGIApp) -> None:
        self._door = door
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _is_webhook(scope):
            await self._door(scope, receive, send)
        else:
            await self._stack(scope, receive, send)


def _shorten(app: Any) -> None:
    """The outermost of the auth manager's middlewares is the door; intake behind it answers its own errors."""
    stack = each = app.middleware_stack
    while each is not None and not isinstance(each, SecurityHeadersMiddleware):
        each = getattr(each, "app", None)
    if each is not None:
        app.middleware_stack = _Fork(each, stack)


def _is_webhook(scope: Scope) -> bool:
    return path_of(scope).startswith((PREFIX, LEGACY_PREFIX))
