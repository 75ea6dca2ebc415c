"""Guessing passwords: after some failures no more tries, at every way in alike (see `sign_in.failures`).

Whoever failed too often is told 429 and when to come back before the password is looked at, so that a right guess
tells nothing. Imports little: every Airflow process loads it with the plugin.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit
from weakref import WeakValueDictionary

import orjson
from anyio import Lock, to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from continuitybridge.errors import PayloadTooLarge, TooManyRequests

if TYPE_CHECKING:
    from continuitybridge.sign_in.failures import Failures

MAX_BODY_BYTES = 16 * 1024

WAYS_IN = ("/auth/token", "/auth/token/cli", "/auth/login")
"""Addresses that take a name and a password, as JSON or as a form."""


class SignInLockoutMiddleware:
    """ASGI middleware of the whole api-server; costs other requests a comparison."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._failures: Failures | None = None
        self._turns: WeakValueDictionary[str, Lock] = WeakValueDictionary()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or _path(scope) not in WAYS_IN:
            await self.app(scope, receive, send)
            return
        from continuitybridge.actor import Actor, acting
        from continuitybridge.airflow.accounts import account_of
        from continuitybridge.api.gate import answer
        from continuitybridge.sign_in import events
        from continuitybridge.sign_in.failures import TOLD, Failures

        body = await _read(receive)
        if body is None:
            await answer(PayloadTooLarge(f"a sign-in has at most {MAX_BODY_BYTES} bytes"), send)
            return
        if self._failures is None:
            self._failures = Failures.open()
        name = await to_thread.run_sync(account_of, _name(scope, body))
        account, address = name.casefold(), _address(scope)
        # Tries for one account take turns: many at once are judged as if they had come one after the other.
        async with self._turns.setdefault(account, Lock()):
            who = account, address
            wait_s = await to_thread.run_sync(self._failures.begin, *who)
            if wait_s:
                if not await to_thread.run_sync(self._failures.take, TOLD, account):
                    with acting(Actor("platform", address=address)):
                        await to_thread.run_sync(events.tell, name, "sign_in.locked")
                error = TooManyRequests("too many sign-ins failed: try again later", retry_after_s=wait_s)
                await answer(error, send)
                return
            start: Message | None = None

            async def watched(message: Message) -> None:
                nonlocal start
                if message["type"] == "http.response.start":
                    start = message
                await send(message)

            try:
                with acting(Actor("platform", address=address)):
                    await self.app(scope, _again(body, receive), watched)
            finally:
                if start is None or start["status"] >= 500:
                    await to_thread.run_sync(self._failures.failed_not, *who)
                elif _is_success(start):
                    await to_thread.run_sync(self._failures.succeeded, *who)


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    # Flask takes several slashes for one.
    return re.sub("/+", "/", path.removeprefix(scope.get("root_path", ""))).rstrip("/")


async def _read(receive: Receive) -> bytes | None:
    """The body; None when it is too long."""
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if len(body) > MAX_BODY_BYTES:
            return None
        if message["type"] != "http.request" or not message.get("more_body"):
            return body


def _again(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _name(scope: Scope, body: bytes) -> str:
    kind = dict(scope["headers"]).get(b"content-type", b"").lower()
    found: object = None
    if b"json" in kind:
        try:
            given = orjson.loads(body)
        except orjson.JSONDecodeError:
            given = None
        found = given.get("username") if isinstance(given, Mapping) else None
    else:
        found = next(iter(parse_qs(body.decode("latin-1")).get("username", ())), None)
    return str(found or "").strip().casefold()[:256]


def _address(scope: Scope) -> str:
    from continuitybridge.settings import get_settings
    from continuitybridge.webhooks.network import peer, sender

    return str(sender(peer(scope), dict(scope["headers"]), get_settings().trusted_networks))


def _is_success(start: Message) -> bool:
    """A token is made (201), or the form leads on; a form that failed comes again, or leads back to itself."""
    status: int = start["status"]
    if status == 201:
        return True
    if status not in (302, 303, 307):
        return False
    location = dict(start["headers"]).get(b"location", b"").decode("latin-1")
    return not urlsplit(location).path.rstrip("/").endswith("/login")
