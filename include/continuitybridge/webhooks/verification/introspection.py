"""Opaque tokens that an authorization server is asked about (RFC 7662)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, urlencode

import orjson
from pydantic import Field

from continuitybridge.errors import Unavailable
from continuitybridge.nodes.base import hints
from continuitybridge.webhooks.verification._credential import bearer
from continuitybridge.webhooks.verification._signing import Signing
from continuitybridge.webhooks.verification.base import Example, Received, VerificationSettings, text_key
from continuitybridge.webhooks.verification.web_token import LOOPBACK, MAX_TOKEN_BYTES

TIMEOUT_S = 5.0
REFUSED_S = 10.0
"""So long a token that is not active is refused without asking again."""
RETRY_S = 1.0
MAX_KEPT = 10_000
MAX_AT_ONCE = 32
"""Questions of one endpoint that are under way at once, in one process; more are answered with 503."""
MAX_BYTES = 64 * 1024

log = logging.getLogger(__name__)


class IntrospectionSettings(VerificationSettings):
    type: Literal["introspection"] = Field(default="introspection", description="The way's name.")
    url: str = Field(
        pattern=rf"^(https://[^\s/@]+/|{LOOPBACK})\S*$",
        description="Address of the authorization server's introspection endpoint, by HTTPS; plain HTTP on this "
        "machine only.",
        json_schema_extra=hints(placeholder="https://login.example.com/oauth2/introspect"),
    )
    client_id: str = Field(
        min_length=1, description="Who asks there; the endpoint's secret is this client's secret."
    )
    client_auth: Literal["basic", "post"] = Field(
        default="basic", description="Whether client and secret are shown in `Authorization` or in the body."
    )
    issuer: str | None = Field(default=None, description="What `iss` must be.")
    audience: str | None = Field(default=None, description="What `aud` must be or contain.")
    scopes: list[str] = Field(default=[], description="Scopes that the token must all have.")
    cache_s: int = Field(
        default=60,
        ge=1,
        le=600,
        description="How long an answer holds, in seconds, at most until the token ends: so long a token that was "
        "revoked goes on being taken.",
    )

    def addresses(self) -> Iterable[tuple[str, str]]:
        return (("url", self.url),)


class _Known(NamedTuple):
    until: float
    claims: Mapping[str, Any] | None


class Introspection(Signing[IntrospectionSettings]):
    """`Authorization: Bearer <token>` with a token that only its authorization server can read: it is asked (RFC
    7662), as a client whose secret is given with `bridge endpoint rotate-secret SLUG --secret-file`.

    A token is taken that the server says is `active`, whose `exp` lies ahead, and which has `iss`, `aud` and
    `scope` as configured. The answer is kept under the token's hash for `cache_s`, never longer than the token
    holds. When the server does not answer, or does not know the client, nothing is taken: senders get 503 and come
    again.

    Nothing binds the token to the body: send it over TLS only.
    """

    name = "introspection"
    label = "Token introspection"
    summary = "An opaque token that its authorization server is asked about (RFC 7662)."
    Settings = IntrospectionSettings
    headers = ("authorization",)
    scheme = 'Bearer error="invalid_token"'
    origin = "given"
    prepares = True
    asks = True
    examples = (
        Example(
            "A token for orders",
            settings={
                "url": "https://login.example.com/oauth2/introspect",
                "client_id": "bridge",
                "audience": "orders",
                "scopes": ["orders:write"],
            },
            secret="the-secret-of-the-client-bridge",  # noqa: S106
            headers={b"authorization": b"Bearer 2YotnFZFEjr1zCsicMWpAA"},
        ),
    )

    def __init__(self, settings: IntrospectionSettings) -> None:
        super().__init__(settings)
        self._known: dict[bytes, _Known] = {}
        self._asking: dict[bytes, asyncio.Task[None]] = {}

    def takes_get(self) -> bool:
        return True

    def key(self, secret: str) -> Any:
        return text_key(secret.strip(), "a client's secret")

    async def prepare(self, received: Received, keys: Sequence[Any]) -> None:
        token = self._token(received)
        digest = hashlib.sha256(token).digest()
        known = self._known.get(digest)
        if known is not None and time.monotonic() < known.until:
            return
        asking = self._asking.get(digest)
        if asking is None:
            if len(self._asking) >= MAX_AT_ONCE:
                raise self._nobody_can_say("is asked about too many tokens at once")
            asking = asyncio.create_task(self._ask(digest, token, keys), name="introspection")
            self._asking[digest] = asking
            asking.add_done_callback(lambda task: self._asked(digest, task))
        await asyncio.shield(asking)

    def verify(self, received: Received, keys: Sequence[Any], now: float) -> None:
        known = self._known.get(hashlib.sha256(self._token(received)).digest())
        claims = None if known is None or time.monotonic() >= known.until else known.claims
        if not keys or claims is None:
            raise self.refused("the token is not active")
        wanted = self.settings
        ends = claims.get("exp")
        if ends is not None and not (isinstance(ends, int | float) and now < ends):
            raise self.refused("the token has ended")
        begins = claims.get("nbf")
        if begins is not None and not (isinstance(begins, int | float) and begins <= now):
            raise self.refused("the token does not hold yet")
        if wanted.issuer is not None and claims.get("iss") != wanted.issuer:
            raise self.refused("the token is another issuer's")
        meant = claims.get("aud")
        if wanted.audience is not None and wanted.audience not in (meant if isinstance(meant, list) else [meant]):
            raise self.refused("the token is for another audience")
        scope = claims.get("scope")
        if not set(wanted.scopes) <= set(scope.split(" ") if isinstance(scope, str) else ()):
            raise self.refused("the token's scope is not enough")

    def _token(self, received: Received) -> bytes:
        token = bearer(received.headers.get(b"authorization", b""))
        if not token or len(token) > MAX_TOKEN_BYTES or not token.isascii() or not token.decode().isprintable():
            raise self.refused("a token is needed as Authorization: Bearer")
        return token

    async def _ask(self, digest: bytes, token: bytes, keys: Sequence[Any]) -> None:
        for key in keys:
            status, answer = await self._post(token, key.decode())
            if status not in (401, 403):
                break
        else:
            raise self._nobody_can_say("does not take the endpoint's secret")
        if status != 200 or not isinstance(answer, dict):
            raise self._nobody_can_say(f"answered {status}")
        is_active = answer.get("active") is True
        kept_s = float(self.settings.cache_s) if is_active else REFUSED_S
        ends = answer.get("exp")
        if is_active and isinstance(ends, int | float):
            kept_s = min(kept_s, max(0.0, ends - time.time()))
        while len(self._known) >= MAX_KEPT:
            del self._known[next(iter(self._known))]
        # At least for the request that asked.
        self._known.pop(digest, None)
        self._known[digest] = _Known(time.monotonic() + max(kept_s, 1.0), answer if is_active else None)

    async def _post(self, token: bytes, secret: str) -> tuple[int, Any]:
        from continuitybridge.errors import EgressRefused
        from continuitybridge.nodes.http.address import parse
        from continuitybridge.nodes.http.client import Client
        from continuitybridge.nodes.http.wire import ExchangeFailed

        form = {"token": token.decode(), "token_type_hint": "access_token"}
        head = "user-agent: ContinuityBridge\r\naccept: application/json\r\naccept-encoding: identity\r\n"
        head += "content-type: application/x-www-form-urlencoded\r\n"
        if self.settings.client_auth == "basic":
            pair = f"{quote(self.settings.client_id, safe='')}:{quote(secret, safe='')}".encode()
            head += f"authorization: Basic {base64.b64encode(pair).decode()}\r\n"
        else:
            form |= {"client_id": self.settings.client_id, "client_secret": secret}
        client = Client(verify=True)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await client.send(
                    "POST",
                    parse(self.settings.url),
                    head,
                    urlencode(form).encode(),
                    lambda status, headers: (MAX_BYTES, True),
                )
            return answer.status, orjson.loads(answer.content) if answer.status == 200 and not answer.cut else None
        except (TimeoutError, OSError, ExchangeFailed, EgressRefused, ValueError) as error:
            raise self._nobody_can_say(f"cannot be asked ({type(error).__name__})") from None
        finally:
            await client.aclose()

    def _asked(self, digest: bytes, task: asyncio.Task[None]) -> None:
        self._asking.pop(digest, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("introspection: %s", getattr(error, "detail", type(error).__name__))

    def _nobody_can_say(self, why: str) -> Unavailable:
        return Unavailable(f"the authorization server at {self.settings.url} {why}", retry_after_s=RETRY_S)
