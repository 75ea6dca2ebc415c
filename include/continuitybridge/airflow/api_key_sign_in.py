"""API keys at every door of the api-server.

A key that holds is exchanged for a token of its user that lives a minute, so that Airflow's own routes know who
asks; that it was a key, and of which organization, stands beside it (`api_keys.held`), where whoever decides what
the user may see looks too. A key that does not hold is refused at once. Webhooks have keys of their own, which are
not looked at here.
"""

from __future__ import annotations

import logging

from anyio import to_thread
from starlette.types import ASGIApp, Receive, Scope, Send

from continuitybridge.errors import NotAuthenticated
from continuitybridge.request_paths import path_of

PREFIX = "cb_"
TOKEN_S = 60
_HOOKS = ("/bridge/hooks/", "/api/webhook/")

log = logging.getLogger(__name__)


class ApiKeyMiddleware:
    """ASGI middleware of the whole api-server; costs requests without a key a look at their headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = _key(scope) if scope["type"] in ("http", "websocket") else None
        if key is None:
            await self.app(scope, receive, send)
            return
        from continuitybridge.api.gate import answer
        from continuitybridge.api_keys import held, verify
        from continuitybridge.errors import BridgeError

        try:
            holder = await to_thread.run_sync(verify, key)
            token = await to_thread.run_sync(_token_of, holder.user_name)
        except BridgeError as error:
            await answer(error, send)
            return
        headers = [each for each in scope["headers"] if each[0] not in (b"authorization", b"x-api-key", b"cookie")]
        headers.append((b"authorization", f"Bearer {token}".encode()))
        with held(holder):
            await self.app({**scope, "headers": headers}, receive, send)


def _key(scope: Scope) -> str | None:
    if path_of(scope).startswith(_HOOKS):
        return None
    for name, value in scope["headers"]:
        text = str(value, "latin-1")
        if name == b"x-api-key" and text.startswith(PREFIX):
            return text
        if name == b"authorization":
            scheme, _, credentials = text.partition(" ")
            if scheme.lower() == "bearer" and credentials.strip().startswith(PREFIX):
                return credentials.strip()
    return None


def _token_of(user_name: str) -> str:
    """Raises `NotAuthenticated` for a user who is gone or not active."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.providers.fab.auth_manager.models import User
    from airflow.utils.session import create_session
    from sqlalchemy import func, select

    # Not FAB's search for a user: it takes a lost connection for a user who is not there, and leaves its
    # transaction open in this thread for whoever comes next.
    with create_session() as session:
        user = session.scalar(select(User).where(func.lower(User.username) == user_name.lower()))
        if user is None or not user.is_active:
            raise NotAuthenticated("the API key's user is not active")
        return str(get_auth_manager().generate_jwt(user, expiration_time_in_seconds=TOKEN_S))
