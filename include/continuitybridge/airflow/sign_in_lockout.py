"""Guessing passwords: after some failures no more tries, at every way in alike (see `sign_in.failures`).

Whoever failed too often is told 429 and when to come back before the password is looked at, so that a right guess
tells nothing. What became of a try is told by who judged it (`sign_in.attempt`); a success forgets the failures of
the account that was signed in to, and of no other. A body is read here as it is read behind, or refused, so that
no try is counted under another name than the one it guesses at. Imports little: every process of Airflow loads it
with the plugin.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl
from weakref import WeakValueDictionary

from anyio import Lock, to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from continuitybridge.airflow.bodies import replayed
from continuitybridge.errors import (
    BridgeError,
    ConfigurationError,
    PayloadTooLarge,
    TooManyRequests,
    UnsupportedContent,
)
from continuitybridge.request_paths import path_of

if TYPE_CHECKING:
    from continuitybridge.sign_in.failures import Failures

MAX_BODY_BYTES = 16 * 1024

_JSON = "application/json"
_FORM = "application/x-www-form-urlencoded"
WAYS_IN = {"/auth/token": _JSON, "/auth/token/cli": _JSON, "/auth/login": _FORM}
"""Addresses that take a name and a password, and as what."""
COME_BACK = "/auth/oauth-authorized/"
"""Where browsers come back from identity providers."""
OWN_PASSWORD = "/auth/resetmypassword/form"  # noqa: S105  (no secret)
"""Where one's password is asked for once more, to change it."""


class SignInLockoutMiddleware:
    """ASGI middleware of the whole api-server; costs other requests a comparison."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._failures: Failures | None = None
        self._turns: WeakValueDictionary[str, Lock] = WeakValueDictionary()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and ((path := _path(scope)).startswith(COME_BACK) or path == OWN_PASSWORD):
            from continuitybridge.actor import Actor, acting

            # Counted by who judges it; from where it comes is told here.
            with acting(Actor("platform", address=_address(scope))):
                await self.app(scope, receive, send)
            return
        if scope["type"] != "http" or scope["method"] != "POST" or _path(scope) not in WAYS_IN:
            await self.app(scope, receive, send)
            return
        from continuitybridge.actor import Actor, acting
        from continuitybridge.airflow.people import find
        from continuitybridge.api.gate import answer
        from continuitybridge.sign_in import events
        from continuitybridge.sign_in.attempt import attempting
        from continuitybridge.sign_in.failures import TOLD, Failures

        try:
            body = await _read(receive)
            given = _name(scope, body)
        except BridgeError as error:
            await answer(error, send)
            return
        if self._failures is None:
            self._failures = Failures.open()
        name = (await to_thread.run_sync(find, given)) or given
        account, address = name.casefold(), _address(scope)
        # Tries for one account take turns: many at once are judged as if they had come one after the other.
        async with self._turns.setdefault(account, Lock()):
            who = account, address
            wait_s = await to_thread.run_sync(self._failures.begin, *who)
            if wait_s:
                if not await to_thread.run_sync(self._failures.take, TOLD, account):
                    with acting(Actor("platform", address=address)):
                        await to_thread.run_sync(events.tell, name, "sign_in.locked")
                locked = TooManyRequests("too many sign-ins failed: try again later", retry_after_s=wait_s)
                await answer(locked, send)
                return
            status = 500

            async def watched(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            with acting(Actor("platform", address=address)), attempting() as attempt:
                try:
                    await self.app(scope, replayed(body, receive), watched)
                finally:
                    if (attempt.signed_in or "").casefold() == account and status < 500:
                        await to_thread.run_sync(self._failures.succeeded, *who)
                    elif attempt.signed_in is not None or attempt.undecided or status >= 500:
                        await to_thread.run_sync(self._failures.failed_not, *who)


def _path(scope: Scope) -> str:
    # Flask takes several slashes for one.
    return re.sub("/+", "/", path_of(scope)).rstrip("/")


async def _read(receive: Receive) -> bytes:
    """The body. Raises `PayloadTooLarge`."""
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if len(body) > MAX_BODY_BYTES:
            raise PayloadTooLarge(f"a sign-in has at most {MAX_BODY_BYTES} bytes", allowed=MAX_BODY_BYTES)
        if message["type"] != "http.request" or not message.get("more_body"):
            return body


def _name(scope: Scope, body: bytes) -> str:
    """Whom the sign-in names; "" for nobody. Raises `UnsupportedContent`, `ConfigurationError`."""
    taken = WAYS_IN[_path(scope)]
    kinds = [value.decode("latin-1") for name, value in scope["headers"] if name == b"content-type"]
    if [each.partition(";")[0].strip().lower() for each in kinds] != [taken]:
        raise UnsupportedContent(f"a sign-in is sent here as {taken}", valid=[taken])
    try:
        given = _json(body) if taken == _JSON else dict(reversed(parse_qsl(body.decode(), keep_blank_values=True)))
    except (ValueError, RecursionError):
        raise ConfigurationError("the sign-in cannot be read") from None
    for field, value in given.items():
        if isinstance(value, str) and not _is_text(value):
            raise ConfigurationError(
                "the sign-in holds what is no text: a NUL character or half of one", field=field
            )
    found = given.get("username")
    # As it came: its spellings are told apart, or not, by the database alone, which finds the account.
    return str(found or "").strip()[:256]


def _json(body: bytes) -> Mapping[str, object]:
    # As FastAPI reads it, which takes more for JSON than RFC 8259 does.
    given = json.loads(body)
    if not isinstance(given, dict):
        raise ValueError("no object")
    return given


def _is_text(value: str) -> bool:
    """Whether the database takes it."""
    return "\0" not in value and not any("\ud800" <= sign <= "\udfff" for sign in value)


def _address(scope: Scope) -> str:
    from continuitybridge.guard.network import sender_of
    from continuitybridge.settings import get_settings

    return str(sender_of(scope, get_settings().trusted_networks))
