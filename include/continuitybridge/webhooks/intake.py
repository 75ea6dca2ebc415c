"""Intake: the bare ASGI application behind `/bridge/hooks/{organization}/{environment}/{slug}`.

Guarantee: a 202 is sent after the message is committed, never before. Where it stops: a crash, or a lost
connection, between commit and answer leaves the sender without an answer; sending again with the same idempotency
key gives the same message id (`duplicate: true`), without a key a second message.

Where a trigger says `reply: result`, the request is held after the commit until the flow has dealt with the
message (`held`), and answered with 202 when that takes too long, when too many are held, or when this process is
to end.

Memory is bounded: so many requests under way, so many bytes of bodies, a bounded queue of messages to commit, a
bounded time per body. Beyond each bound the answer is 503 with Retry-After (or 408 for the time). Of requests and
bytes no organization gets all, so that its flood is refused before the others' messages are. Held requests have a
bound of their own, shared likewise, and hold no body.

It speaks ASGI directly and not through a framework, whose share of a request is larger than the commit's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from continuitybridge.errors import (
    BridgeError,
    Gone,
    MethodNotAllowed,
    NotAllowed,
    NotFound,
    OrganizationSuspended,
    Unavailable,
)
from continuitybridge.guard.bodies import check_depth
from continuitybridge.inbox import holds, tracking
from continuitybridge.inbox.accept import Acceptance, Accepted
from continuitybridge.inbox.accept.aio import GroupCommit
from continuitybridge.inbox.replies import Notice
from continuitybridge.settings import Settings, get_settings
from continuitybridge.vault.keyring import Keyring
from continuitybridge.webhooks import answers, challenges, content, held, network
from continuitybridge.webhooks.addresses import Addresses
from continuitybridge.webhooks.admission import Admission, OrganizationLimits, TokenBucket
from continuitybridge.webhooks.answers import Answered
from continuitybridge.webhooks.deadlines import Deadlines
from continuitybridge.webhooks.direct import Direct, MakeDirect, Reservation
from continuitybridge.webhooks.directory import Directory
from continuitybridge.webhooks.refusals import Refusals
from continuitybridge.webhooks.refusing import Refuser
from continuitybridge.webhooks.request import Receive, Request, Scope, Send, SenderGone
from continuitybridge.webhooks.rooms import Rooms
from continuitybridge.webhooks.target import Target

ACCEPT_WITHIN_S = 20.0
"""How long accepting may take beside reading the body. Each step has a bound of its own; this one is for the step
whose bound was forgotten, because a sender that hears nothing does not even know that it should come again."""
START_TIMEOUT_S = 5.0
THREAD_BYTES = 256 * 1024
"""Bodies above this are hashed and read in a thread: it would hold up the others."""

_FORM = "application/x-www-form-urlencoded"

log = logging.getLogger(__name__)


class IntakeApp:
    """The application. Mounted in an api-server (whose lifespan calls `start` and `stop`; the first request starts
    it otherwise) or served alone, where its own lifespan does."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        admission: Admission | None = None,
        commits: Callable[[Keyring], GroupCommit] = GroupCommit,
        direct: MakeDirect | None = None,
    ) -> None:
        """`direct` makes what runs messages here whose callers wait for the result; None: stream workers do."""
        self._settings = settings or get_settings()
        self._make_commits = commits
        self._make_direct = direct if self._settings.intake_lanes else None
        self._direct: Direct | None = None
        self._admission: Admission = admission or TokenBucket(self._settings.intake_rate_per_s)
        self._limits = OrganizationLimits(self._settings.limit_webhooks_per_organization)
        self._status_url = f"{self._settings.external_url}/bridge/messages/"
        self._addresses = Addresses(self._settings)
        self._starting: asyncio.Lock | None = None
        self._started = False
        self._stopping = False
        self._under_way = 0
        self._idle = asyncio.Event()
        self._rooms = Rooms(self._settings)
        self._accepting = Deadlines(self._settings.intake_body_timeout_s + ACCEPT_WITHIN_S)
        self._directory: Directory
        self._refusals = Refusals()
        self._refuser = Refuser(self._refusals)
        self._commits: GroupCommit
        self._keyring: Keyring
        self._held = held.HeldRequests(self._settings.intake_max_held)
        self._signals = contextlib.ExitStack()

    @property
    def ready(self) -> bool:
        """Whether it takes messages now, as far as is known."""
        return self._started and not self._stopping and self._directory.current

    async def start(self) -> None:
        """Begin to follow the endpoints and to commit; returns when they are known, or after 5 s without the
        database (requests get 503 until it answers). Harmless when running."""
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if self._started:
                return
            self._keyring = await asyncio.to_thread(Keyring.open)
            self._directory = Directory(self._keyring)
            self._commits = self._make_commits(self._keyring)
            self._signals.enter_context(self._held.closing_at_signals())
            self._directory.start()
            self._refusals.start()
            await self._commits.start()
            await self._directory.wait_loaded(START_TIMEOUT_S)
            self._started = True

    async def stop(self) -> None:
        """Refuse what is new (503), answer what is under way (for `intake_drain_s` at most; held requests at once,
        with 202), commit what is queued, end. A stopped intake stays stopped."""
        if self._stopping:
            return
        self._stopping = True
        if not self._started:
            return
        self._held.close()
        if self._under_way:
            self._idle.clear()
            try:
                async with asyncio.timeout(self._settings.intake_drain_s):
                    await self._idle.wait()
            except TimeoutError:
                log.warning("intake: %d requests were still under way when it stopped", self._under_way)
        await self._held.stop()
        if self._direct is not None:
            await self._direct.aclose()
        self._signals.close()
        await self._commits.stop()
        await self._refusals.stop()
        await self._directory.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            event = await receive()
            if event["type"] == "lifespan.startup":
                try:
                    await self.start()
                except Exception as error:
                    log.exception("intake: cannot start")
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _start_late(self) -> None:
        if self._stopping:
            return
        try:
            await self.start()
        except BridgeError as error:
            # A wrong setting or key here is nothing the sender could mend.
            raise Unavailable(f"intake cannot start: {error.detail}") from error

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._under_way += 1
        request = Request(scope, receive, self._addresses)
        try:
            status, headers, body = await self._answer(request)
        except (SenderGone, held.Gone):
            return
        except asyncio.CancelledError:
            raise
        except Exception as error:
            await self._refuser.refuse(request, error, send)
        else:
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        finally:
            self._rooms.leave(request)
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def _answer(self, request: Request) -> Answered:
        if not self._started:
            await self._start_late()
        if self._stopping or self._under_way - self._held.count > self._settings.intake_max_requests:
            raise Unavailable("intake is stopping" if self._stopping else "too many requests are under way")
        place = self._addresses.place(request.scope)
        if place is None:
            raise NotFound("no endpoint has this address")
        target = self._directory.find(place)
        if target is None or not target.active or target.later:
            target = await self._confirm(place, request)
        self._rooms.enter(request, target)
        if target.suspended:
            raise OrganizationSuspended("the organization is suspended and takes no messages")
        if not target.active:
            raise Gone("the endpoint is disabled")
        if target.draining is not None:
            raise holds.Draining(
                f"{target.draining}: it takes no new messages", flow=target.flow, retry_after_s=holds.DRAIN_RETRY_S
            )
        if target.networks is not None:
            sender = network.sender(network.peer(request.scope), request.headers, self._addresses.proxies)
            if not network.within(sender, target.networks):
                raise NotAllowed("this address may not send here")
        self._limits.refuse_used_up(target, request.scope)
        if target.challenge is not None:
            answer = challenges.answer(
                target.challenge,
                request.method,
                request.scope["query_string"],
                request.headers,
                target.valid_keys(time.time()),
            )
            if answer is not None:
                await self._admit(target, request)
                return answers.challenge(answer)
        if request.method not in target.methods:
            allow = target.allow
            raise MethodNotAllowed(f"messages are sent with {' or '.join(sorted(target.methods))}", allow=allow)
        began = asyncio.get_running_loop().time()
        try:
            with self._accepting:
                accepted = await self._accept(request, target)
        except TimeoutError as error:
            log.exception("intake: a message was not accepted within %g s", self._accepting.limit_s)
            raise Unavailable("the message was not accepted in time") from error
        if not isinstance(accepted, Accepted):
            return accepted
        return await self._accepted(request, target, accepted, began)

    async def _accept(self, request: Request, target: Target) -> Accepted | Answered:
        """The message, committed; or the answer to a provider that only asked."""
        if request.method == "GET":
            kind, charset = _FORM, None
        else:
            kind, charset = content.media_type(request.headers, target.content_types)
        request.body = body = await self._rooms.read(request, target)
        way, now = target.verifier, time.time()
        keys = self._keys(target, now)
        if way.prepares:
            await way.prepare(request, keys)
        is_large = len(body) > THREAD_BYTES
        if is_large:
            await asyncio.to_thread(way.verify, request, keys, now)
        else:
            way.verify(request, keys, now)
        challenge = way.answer(request)
        if challenge is not None:
            return answers.challenge(challenge)
        if request.method == "GET":
            body = request.scope["query_string"]
        else:
            content.check_readable(body, kind, charset)
            if content.is_json(kind):
                if is_large:
                    await asyncio.to_thread(check_depth, body, self._settings.max_nesting_depth)
                else:
                    check_depth(body, self._settings.max_nesting_depth)
        source = target.idempotency
        if is_large and source.reads_body:
            key = await asyncio.to_thread(source.key, request.headers, body)
        else:
            key = source.key(request.headers, body)
        await self._admit(target, request)
        until = None if target.hold_s is None else datetime.now(UTC) + timedelta(seconds=target.hold_s)
        acceptance = Acceptance(
            organization_id=target.organization_id,
            environment=target.environment,
            flow=target.flow,
            version=target.version,
            source="webhook",
            body=body,
            content_type=request.headers.get(b"content-type", _FORM.encode()).decode("latin-1")[:255],
            headers=target.kept_headers(request.headers),
            endpoint=target.slug,
            idempotency_key=key,
            idempotency_window_days=source.window_days,
            changed_body="same" if source.same else "refuse",
            trigger=target.trigger_id,
            mode=target.mode,
            ordering=target.ordering,
            reply_until=until,
        )
        reservation = self._reserve(acceptance, target) if until is not None else None
        if reservation is None:
            return await self._commits.submit(acceptance)
        try:
            return await self._commits.submit(acceptance, reservation)
        finally:
            reservation.end()

    def _reserve(self, acceptance: Acceptance, target: Target) -> Reservation | None:
        """Room to run it here; the first of them only begins to make some."""
        if self._direct is None:
            if self._make_direct is not None:
                self._direct = self._make_direct(self._keyring, self._settings, self._held.hear)
                self._direct.start()
            return None
        return self._direct.reserve(acceptance, target.organization)

    async def _admit(self, target: Target, request: Request) -> None:
        self._admission.admit(target)
        await self._limits.admit(target, request.scope)

    async def _accepted(self, request: Request, target: Target, accepted: Accepted, began: float) -> Answered:
        """The answer to a request whose message is on disk: at once, or when the flow has dealt with it."""
        answer: Notice | None = None
        if target.hold_s is not None:
            # What is held, is held without its body, and has a bound of its own.
            self._rooms.leave(request)
            request.body = b""
            preferred_s = answers.preference(request.headers)
            hold_s = target.hold_s if preferred_s is None else min(target.hold_s, preferred_s)
            answer = await self._held.answer(
                target.organization_id,
                accepted.message_id,
                until=began + hold_s,
                repeated=accepted.duplicate,
                gone=request.wait_gone,
            )
        await self._keyring.ready(target.organization_id)

        def status_url() -> str:
            token = tracking.token(self._keyring, target.organization_id, accepted.message_id)
            return f"{self._status_url}{accepted.message_id}?token={token}"

        if answer is None:
            return answers.accepted(accepted.message_id, status_url(), duplicate=accepted.duplicate)
        return answers.result(
            target, self._keyring, accepted.message_id, answer, status_url, duplicate=accepted.duplicate
        )

    def _keys(self, target: Target, now: float) -> list[Any]:
        """The keys that are valid now; raises `Unavailable` where there should be some."""
        keys = target.valid_keys(now)
        if not keys and target.verifier.origin != "none":
            raise Unavailable(
                "the endpoint's secrets cannot be opened"
                if target.sealed
                else f"the endpoint has no secret yet: bridge endpoint rotate-secret {target.slug}"
            )
        return keys

    async def _confirm(self, place: str, request: Request) -> Target:
        """The endpoint that is not known here, or not as one that answers, after the tables were asked."""
        target = await self._directory.confirm(place)
        if target is None:
            parts = place.split("/")
            if len(parts) == 3 and (owner := self._directory.organization_id(parts[0])):
                request.stranger = (owner, parts[1])
            raise NotFound("no endpoint has this address")
        return target
