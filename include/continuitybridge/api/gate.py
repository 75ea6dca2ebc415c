"""The gate in front of every route: authenticates, bounds the body, and turns whatever goes wrong into a problem.

It stands outside the framework's routing, so that an address which is forgotten, unknown or wrongly called is
refused like any other, and nothing of a stranger's body is read. What is public says so by its path in `PUBLIC`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from anyio import to_thread
from psycopg import DataError, OperationalError
from starlette.requests import Request

from continuitybridge import origins, problems
from continuitybridge.actor import PLATFORM, Actor, acting
from continuitybridge.api_keys import Holder
from continuitybridge.errors import ConfigurationError, NotAllowed, NotAuthenticated, PayloadTooLarge, Unavailable
from continuitybridge.guard import admission
from continuitybridge.guard.network import sender_of
from continuitybridge.organizations.access import Caller
from continuitybridge.request_paths import path_in_mount
from continuitybridge.settings import get_settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PUBLIC = frozenset({"/health/live", "/sign-in"})
"""Paths below the mount that need no user."""
TRACKED = re.compile(r"/messages/[^/]+")
"""Paths that need no user when they are read with a `token`, which the route checks (`inbox.tracking`)."""
MAX_BODY_BYTES = 8 * 1024 * 1024
"""Largest body of a request to the API (a flow with its side files)."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Who a credential belongs to. `by_cookie`: the browser sent it by itself, so that a request which changes
    something must come from our own pages. `api_key`: the key that it is, if it is one."""

    user_name: str
    superadmin: bool = False
    by_cookie: bool = False
    api_key: Holder | None = None


Authenticate = Callable[[Request], Awaitable[SignedIn | None]]
"""Gives the request's user, or None: no credential, or none that holds."""


class Gate:
    """ASGI middleware around the API."""

    def __init__(self, app: App, authenticate: Authenticate) -> None:
        self._app = app
        self._authenticate = authenticate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            if path_in_mount(scope) not in PUBLIC:
                await self._admit(scope, receive, needed=not _is_tracked(scope))
            with acting(_actor(scope)):
                await self._app(scope, _bounded(scope, receive), watched)
        except Exception as error:
            if started:
                raise
            await answer(error, send)

    async def _admit(self, scope: Scope, receive: Receive, *, needed: bool) -> None:
        request = Request(scope, receive)
        user = await self._authenticate(request)
        if user is None and not needed:
            return
        if user is None:
            raise NotAuthenticated("sign in first: a bearer token (POST /auth/token) or the session's cookie")
        if user.by_cookie and scope["method"] not in origins.SAFE and not origins.is_ours(dict(scope["headers"])):
            raise NotAllowed("a request by cookie that changes something must come from the platform's own pages")
        caller = Caller(user.user_name, superadmin=user.superadmin, api_key=user.api_key)
        await _count(scope, user, caller)
        scope.setdefault("state", {})["caller"] = caller


async def answer(error: Exception, send: Send) -> None:
    """Send the problem that an error is; the log gets its id and its cause when the platform is at fault."""
    if isinstance(error, OperationalError):
        error = Unavailable(f"the database does not answer: {error}")
    elif isinstance(error, DataError) and error.sqlstate is None and "NUL" in str(error):
        # psycopg's own refusal, before anything is sent: PostgreSQL's text holds every character but this.
        error = ConfigurationError("no text in a request may hold the character U+0000")
    problem = problems.of(error)
    if problem.status >= 500:
        log.error("%s", problem.instance, exc_info=error)
    body = problem.body()
    headers = {
        "content-type": problems.MEDIA_TYPE,
        "content-length": str(len(body)),
        "cache-control": "no-store",
        **problem.headers,
    }
    await send(
        {
            "type": "http.response.start",
            "status": problem.status,
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def _count(scope: Scope, user: SignedIn, caller: Caller) -> None:
    named = parse_qs(scope["query_string"].decode("latin-1")).get("organization", [None])
    try:
        organization = await to_thread.run_sync(caller.account, named[0])
    except Unavailable:
        # The route says so, if it needs the database.
        organization = None
    key = None if user.api_key is None else user.api_key.key_id
    await admission.admit_caller(scope, user.user_name, api_key=key, organization=organization)


def _actor(scope: Scope) -> Actor:
    caller = scope.get("state", {}).get("caller")
    if not isinstance(caller, Caller):
        return PLATFORM
    found = sender_of(scope, get_settings().trusted_networks)
    return Actor("user", caller.user_name, None if found is None else str(found))


def _is_tracked(scope: Scope) -> bool:
    if scope["method"] not in ("GET", "HEAD") or not TRACKED.fullmatch(path_in_mount(scope)):
        return False
    return "token" in parse_qs(scope["query_string"].decode("latin-1"))


def _bounded(scope: Scope, receive: Receive) -> Receive:
    declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise PayloadTooLarge(f"a body has at most {MAX_BODY_BYTES} bytes here", allowed=MAX_BODY_BYTES)
    seen = 0

    async def bounded() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > MAX_BODY_BYTES:
            raise PayloadTooLarge(f"a body has at most {MAX_BODY_BYTES} bytes here", allowed=MAX_BODY_BYTES)
        return message

    return bounded
