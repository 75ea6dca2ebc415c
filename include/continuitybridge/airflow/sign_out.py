"""Signing out ends what was signed in: the token and the session, not only the browser's copies of them.

Airflow revokes tokens at one of its two addresses and leaves FAB's session in the database, from which whoever
kept its cookie gets new tokens. Imports little: every Airflow process loads it with the plugin.
"""

from __future__ import annotations

import logging

from starlette.types import ASGIApp, Receive, Scope, Send

from continuitybridge.request_paths import path_of

PATHS = frozenset({"/auth/logout", "/api/v2/auth/logout"})

log = logging.getLogger(__name__)


class SignOutMiddleware:
    """ASGI middleware of the whole api-server; costs other requests a comparison."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] != "HEAD" and _path(scope) in PATHS:
            from anyio import to_thread

            await to_thread.run_sync(_end, dict(scope["headers"]))
        await self.app(scope, receive, send)


def _path(scope: Scope) -> str:
    return path_of(scope).rstrip("/")


def _end(headers: dict[bytes, bytes]) -> None:
    """End the session and the tokens that the request bears. What is none, or is over, is left alone."""
    from http.cookies import CookieError, SimpleCookie

    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.base_auth_manager import COOKIE_NAME_JWT_TOKEN
    from jwt import InvalidTokenError

    given = headers.get(b"cookie", b"").decode("latin-1")
    try:
        cookies = SimpleCookie(given)
    except CookieError:
        cookies = SimpleCookie()
    tokens = {cookies[COOKIE_NAME_JWT_TOKEN].value} if COOKIE_NAME_JWT_TOKEN in cookies else set()
    scheme, _, credentials = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() == "bearer":
        tokens.add(credentials.strip())
    for token in filter(None, tokens):
        try:
            get_auth_manager().revoke_token(token)
        except InvalidTokenError as error:
            log.debug("a token that was signed out of holds no more: %s", error)
    if "session" in cookies:
        _end_session(given)


def _end_session(cookie: str) -> None:
    import flask

    from continuitybridge.airflow.accounts import flask_app

    app = flask_app()
    with app.test_request_context("/auth/logout", headers={"cookie": cookie}):
        flask.session.clear()
        flask.session.modified = True
        app.session_interface.save_session(app, flask.session, app.make_response(""))
