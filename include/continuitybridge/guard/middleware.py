"""The guard: ASGI middleware in front of everything that a server answers.

In this order: bounds of the request's head; its address, blocked or not; scanners and crawlers; the rate limit of
the address; bounds of the body, while it is read. Limits of users, keys and organizations are counted further in,
by whoever knows them (`admission`); what they leave is added to the answer here.

Addresses of the loopback interface, of trusted proxies and of `WAF_WHITELIST` are neither counted nor judged:
behind a proxy that nobody declared, everybody would bear its address.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from continuitybridge import problems
from continuitybridge.errors import (
    Blocked,
    BridgeError,
    HeadTooLarge,
    NotAllowed,
    NotFound,
    TooManyRequests,
    Unavailable,
)
from continuitybridge.guard import limiter, network, scanners
from continuitybridge.guard.admission import STANDINGS
from continuitybridge.guard.bodies import BoundedBody, too_large
from continuitybridge.guard.known import Policy, known
from continuitybridge.guard.limiter import Claim, Limiter, Standing
from continuitybridge.guard.offences import Offences
from continuitybridge.guard.places import Place, organization_of, place_of
from continuitybridge.request_paths import path_of
from continuitybridge.settings import Settings, get_settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_TASK_BODY_BYTES = 256 * 1024 * 1024
"""Largest body that a task sends to Airflow (XComs)."""
TELL_EVERY_S = 60.0
"""How often at most the log tells of one address and rule."""
_JUDGED = frozenset({Place.API, Place.SIGN_IN, Place.PAGES})
"""Where crawlers have nothing to look for."""
_SEARCHED = frozenset({Place.PAGES, Place.STATIC})
"""Where scanners look for holes; what is below our own prefixes is judged by whoever answers there."""
_CREDENTIALS = (b"authorization", b"x-api-key")
_COOKIES = (b"_token=", b"session=")

log = logging.getLogger(__name__)


class GuardMiddleware:
    """The outermost middleware. Reads the settings at the first request."""

    def __init__(self, app: App, settings: Settings | None = None) -> None:
        self.app = app
        self._settings = settings
        self._guard: Guard | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        guard = self._guard
        if guard is None:
            guard = self._guard = Guard(self._settings or get_settings())
        standings: list[Standing] = []
        scope[STANDINGS] = standings

        started = False

        async def answering(message: Message) -> None:
            nonlocal started
            started = True
            if standings and message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *limiter.headers(standings)]}
            await send(message)

        try:
            path = path_of(scope)
            place = place_of(path)
            await guard.admit(scope, path, place, standings)
            if place is Place.WEBHOOKS:
                # Intake bounds bodies by its endpoints' own settings.
                await self.app(scope, receive, answering)
                return
            body = guard.bounded(scope, place, receive)
        except BridgeError as error:
            await refuse(error, answering)
            return
        try:
            if body is None:
                await self.app(scope, receive, answering)
            else:
                await _with_body(self.app, scope, body, answering)
        except Unavailable as error:
            # Airflow asks who somebody is in front of its routes, where nothing of its own makes it an answer.
            if started:
                raise
            log.error("%s could not be answered", path, exc_info=error)
            await refuse(error, answering)


async def _with_body(app: App, scope: Scope, body: BoundedBody, send: Send) -> None:
    """Run the application; when its body is refused, that is the answer, whatever the application makes of it."""
    started = False

    async def sending(message: Message) -> None:
        nonlocal started
        if body.refusal is not None and not started:
            return
        started = True
        await send(message)

    try:
        await app(scope, body, sending)
    except Exception:
        if body.refusal is None or started:
            raise
    if body.refusal is not None and not started:
        await refuse(body.refusal, send)


async def refuse(error: BridgeError, send: Send) -> None:
    """Answer with the problem that an error is (RFC 9457)."""
    problem = problems.of(error)
    body = problem.body()
    headers = {
        "content-type": problems.MEDIA_TYPE,
        "content-length": str(len(body)),
        "cache-control": "no-store",
        **problem.headers,
    }
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


class Guard:
    """What is decided about a request before anybody else sees it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._proxies = settings.trusted_networks
        self._spared = (
            *network.networks(("127.0.0.0/8", "::1/128")),
            *self._proxies,
            *settings.waf_whitelisted_networks,
        )
        self._told: dict[tuple[str, str], float] = {}
        self._offences = Offences(settings.waf_rate_limit_block_duration_ms / 1000)
        known.start()
        self._webhook_limits = limiter.parsed(settings.limit_webhooks_per_address)
        self._limits = limiter.parsed(settings.limit_per_address)
        self._stranger_limits = settings.waf_rate_limits
        self._limiter: Limiter | None = None

    async def admit(self, scope: Scope, path: str, place: Place, standings: list[Standing]) -> None:
        """Return, or raise what is answered instead."""
        agent, forwarded, is_known = self._head(scope)
        if place is Place.HEALTH or not self._settings.waf_enabled:
            return
        found = peer = network.peer(scope)
        if forwarded is not None and self._proxies:
            found = network.sender(peer, {b"x-forwarded-for": forwarded}, self._proxies)
        if found is None and peer is not None:
            # A proxy that says of whom in no way that can be read: all such requests are one sender's.
            found = peer
        elif found is None or network.within(found, self._spared):
            return
        organization = organization_of(path, self._settings.legacy_organization) if place is Place.WEBHOOKS else ""
        policy = known.policy(organization)
        if policy.mode == "off" or (policy.allowed and network.within(found, policy.allowed)):
            return
        address = network.account(found)
        try:
            self._look_up(address, organization)
            self._judge(path, scope["query_string"], place, agent, policy)
            await self._count(place, address, is_known, standings)
        except (Blocked, NotFound, NotAllowed, TooManyRequests) as error:
            detects = self._settings.waf_detect_only if policy.mode is None else policy.mode == "detect"
            self._tell(address, error, detects=detects)
            if not detects:
                self._offences.note(address, error)
                raise
            standings.clear()

    def bounded(self, scope: Scope, place: Place, receive: Receive) -> BoundedBody | None:
        """The body to read instead; None for a request without one. Raises `PayloadTooLarge`."""
        kind, declared, has_body = b"", None, False
        for name, value in scope["headers"]:
            if name == b"content-length":
                declared, has_body = value, value != b"0"
            elif name == b"transfer-encoding":
                has_body = True
            elif name == b"content-type":
                kind = value
        if not has_body:
            return None
        is_task = place is Place.TASKS
        max_bytes = MAX_TASK_BODY_BYTES if is_task else self._settings.waf_max_body_bytes
        if declared is not None and declared.isdigit() and int(declared) > max_bytes:
            raise too_large(max_bytes)
        is_json = not is_task and b"json" in kind.lower()
        return BoundedBody(receive, max_bytes, self._settings.max_nesting_depth if is_json else None)

    def _head(self, scope: Scope) -> tuple[bytes, bytes | None, bool]:
        """User agent, `X-Forwarded-For`, and whether there is a credential, of whatever worth. Raises
        `HeadTooLarge`."""
        pairs = scope["headers"]
        size = len(scope["query_string"]) + len(scope.get("raw_path") or scope["path"])
        agent, forwarded, is_known = b"", None, False
        for name, value in pairs:
            size += len(name) + len(value)
            if name == b"user-agent":
                agent = value
            elif name == b"x-forwarded-for":
                forwarded = value if forwarded is None else forwarded + b", " + value
            elif name in _CREDENTIALS or (name == b"cookie" and any(each in value for each in _COOKIES)):
                is_known = True
        if len(pairs) > self._settings.waf_max_headers or size > self._settings.waf_max_head_bytes:
            raise HeadTooLarge(
                f"a request's address and headers have at most {self._settings.waf_max_head_bytes} bytes and"
                f" {self._settings.waf_max_headers} headers here",
                allowed=self._settings.waf_max_head_bytes,
            )
        return agent, forwarded, is_known

    @staticmethod
    def _look_up(address: str, organization: str) -> None:
        until = known.blocked_until(address, organization)
        if until is None:
            return
        facts: dict[str, Any] = {} if until == math.inf else {"retry_after_s": max(1.0, until - time.time())}
        raise Blocked("requests from this address are refused for now", rule="block", **facts)

    def _judge(self, path: str, query: bytes, place: Place, agent: bytes, policy: Policy) -> None:
        settings = self._settings
        if settings.waf_block_suspicious and place in _SEARCHED:
            if scanners.looks_for_holes(path):
                raise NotFound("no such address", rule="path")
            if scanners.carries_attack(query):
                raise NotFound("no such address", rule="query")
        if settings.waf_block_bots if policy.block_bots is None else policy.block_bots:
            kind = scanners.kind_of(agent)
            if kind == "scanner" or (kind == "crawler" and place in _JUDGED):
                raise NotAllowed("this client is not served here", rule=kind)

    async def _count(self, place: Place, address: str, is_known: bool, standings: list[Standing]) -> None:
        if not self._settings.waf_rate_limit_enabled or place in (Place.STATIC, Place.TASKS):
            return
        if place is Place.WEBHOOKS:
            name, limits = "webhooks-address", self._webhook_limits
        elif is_known:
            name, limits = "address", self._limits
        else:
            name, limits = "stranger", self._stranger_limits
        if not limits:
            return
        if self._limiter is None:
            self._limiter = limiter.current()
        try:
            found = await self._limiter.admit([Claim(name, limit, address) for limit in limits])
        except TooManyRequests as error:
            standings.extend(error.facts["standings"])
            raise
        if place is not Place.WEBHOOKS:
            standings.extend(found)

    def _tell(self, address: str, error: BridgeError, *, detects: bool) -> None:
        rule = str(error.facts.get("rule", "rate"))
        now = time.monotonic()
        if now - self._told.get((address, rule), -TELL_EVERY_S) < TELL_EVERY_S:
            return
        if len(self._told) > 10_000:
            self._told.clear()
        self._told[address, rule] = now
        verb = "would be refused" if detects else "is refused"
        log.warning("guard: %s %s by the rule %r", address, verb, rule)
