"""Which task asks: the task token of a request to `/execution`, for whoever answers deeper down.

Airflow hands a secrets backend nothing about the asker. This middleware leaves the request's ASGI scope in a
context variable; Airflow's own authentication writes the token there after it has verified signature, audience and
expiry. So an unverified token never counts as an identity.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any
from uuid import UUID

from starlette.types import ASGIApp, Receive, Scope, Send

EXECUTION_PREFIX = "/execution/"

_scope: ContextVar[Scope | None] = ContextVar("bridge_execution_scope", default=None)


class TaskIdentityMiddleware:
    """ASGI middleware of the whole api-server; costs requests outside `/execution` one comparison."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or EXECUTION_PREFIX not in scope["path"]:
            await self.app(scope, receive, send)
            return
        token = _scope.set(scope)
        try:
            await self.app(scope, receive, send)
        finally:
            _scope.reset(token)


def asking_task() -> UUID | None:
    """Id of the task instance whose verified token the current request bears; None outside such a request."""
    scope = _scope.get()
    token: Any = scope.get("ti_token") if scope is not None else None
    return UUID(str(token.id)) if token is not None else None
