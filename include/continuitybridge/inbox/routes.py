"""Messages over HTTP, for the people they belong to."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from continuitybridge import audit, database
from continuitybridge.errors import BridgeError, ConfigurationError, NotAuthenticated, NotFound, class_of
from continuitybridge.inbox import listing, replay, status, tracking
from continuitybridge.inbox.accept.ids import MAX_ID_LENGTH
from continuitybridge.inbox.replies.stored import stored
from continuitybridge.organizations.access import Caller, CallerDep, Place, current_caller
from continuitybridge.organizations.matrix import Action, needs
from continuitybridge.vault.keyring import Keyring

router = APIRouter(prefix="/messages", tags=["messages"])

MessageId = Annotated[str, Path(max_length=MAX_ID_LENGTH, pattern=r"^[!-~]+$", description="Id of the message")]
OrganizationQuery = Annotated[
    str | None, Query(max_length=64, description="Slug; where the caller belongs to several, it saves looking")
]
State = Literal["accepted", "claimed", "handed_over", "waiting", "dead", "done", "skipped", "discarded"]
Source = Literal["webhook", "api", "schedule", "manual", "poller", "flow"]


class _Summary(BaseModel):
    id: str
    organization: str
    environment: str
    flow: str
    version: str
    source: str
    endpoint: str | None
    state: str
    attempts: int
    size_bytes: int
    keys: dict[str, Any]
    accepted_at: datetime
    ended_at: datetime | None


class ListedMessage(_Summary):
    """A message in a listing. `state`: accepted, claimed, handed_over and waiting are under way, dead stands in
    triage, done, skipped and discarded are settled."""


class MessagePage(BaseModel):
    """Newest first. `cursor` asks for the next page; null on the last."""

    messages: list[ListedMessage]
    cursor: str | None


class OpenPart(BaseModel):
    """A part of the message that is not done: the node it goes on at, and when it may. `waits_for`: the
    destination that turned it back, or, in state waiting, a `group` of messages, a `person` or a `flow`; then
    `until` when at most, and `called` is the message that was called."""

    id: str
    node: str
    state: str
    attempts: int
    available_at: datetime
    waits_for: str | None
    until: datetime | None
    called: str | None


class FailedTry(BaseModel):
    """One failure. `final` when it was not tried again by itself."""

    failure_id: UUID
    id: str
    node: str | None
    node_type: str | None
    code: str
    verdict: str
    final: bool
    attempt: int
    at: datetime


class LastFailure(BaseModel):
    """Why the message failed last, or is a dead letter."""

    code: str
    title: str


class Result(BaseModel):
    """What the flow answered, for a caller who waits (`reply: result`). `body` is JSON data or text; what is
    neither is in `body_base64`. Kept for `BRIDGE_REPLY_KEPT_HOURS`."""

    status: int
    headers: dict[str, str]
    body: Any
    body_base64: str | None
    written_at: datetime


class SentMessage(BaseModel):
    """Where a message is, for its sender, who has its `status_url` and no account. `state`: accepted, claimed,
    handed_over and waiting are under way; dead failed and waits for a person's decision; done, skipped and
    discarded are over. `available_at`: when it goes on."""

    id: str
    state: State
    attempts: int
    accepted_at: datetime
    available_at: datetime | None
    ended_at: datetime | None
    failure: LastFailure | None
    result: Result | None


class Message(_Summary):
    """Where a message is and what happened to it. `trace` holds each node's counts and microseconds."""

    failure: LastFailure | None
    result: Result | None

    generation: int
    replays: int
    run_id: str | None
    available_at: datetime | None
    waits_for: str | None
    trace: list[dict[str, Any]]
    parts: list[OpenPart]
    failures: list[FailedTry]


class ReplayRequest(BaseModel):
    """`start`: from the `beginning`, or where it failed (`failure`, of a dead letter). `version`: the `original`
    one, the `newest` deployed, or one by number."""

    model_config = ConfigDict(extra="forbid")

    start: Literal["beginning", "failure"] = "beginning"
    version: str = Field(default=replay.ORIGINAL, min_length=1, max_length=256)


class Replayed(BaseModel):
    """The message will run again under its own id."""

    id: str
    version: str
    generation: int


@router.get("", summary="Messages of an organization", openapi_extra=needs(Action.MESSAGE_READ))
def list_messages(
    caller: CallerDep,
    organization: Annotated[str | None, Query(description="Slug; needed unless one has exactly one")] = None,
    environment: Annotated[str | None, Query(max_length=16)] = None,
    flow: Annotated[str | None, Query(max_length=64)] = None,
    state: State | None = None,
    source: Source | None = None,
    since: Annotated[datetime | None, Query(description="Accepted at or after (RFC 3339)")] = None,
    until: Annotated[datetime | None, Query(description="Accepted before (RFC 3339)")] = None,
    key: Annotated[
        list[str] | None, Query(max_length=4, description="`name=value` of a search key; all must be equal")
    ] = None,
    cursor: Annotated[str | None, Query(max_length=400, description="From the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=listing.MAX_LIMIT)] = 50,
) -> MessagePage:
    place = caller.chosen(organization)
    page = listing.list_messages(
        place.organization_id,
        environment=environment,
        flow=flow,
        state=state,
        source=source,
        since=since,
        until=until,
        keys=dict(map(_key, key or ())),
        cursor=cursor,
        limit=limit,
    )
    return MessagePage(
        messages=[
            ListedMessage(
                id=m.message_id,
                organization=place.slug,
                environment=m.environment,
                flow=m.flow,
                version=m.version,
                source=m.source,
                endpoint=m.endpoint,
                state=m.state,
                attempts=m.attempts,
                size_bytes=m.size_bytes,
                keys=m.keys,
                accepted_at=m.accepted_at,
                ended_at=m.ended_at,
            )
            for m in page.messages
        ],
        cursor=page.cursor,
    )


@router.get("/{id}", summary="Where a message is", openapi_extra=needs(Action.MESSAGE_READ))
def show_message(
    request: Request,
    id: MessageId,
    organization: OrganizationQuery = None,
    token: Annotated[
        str | None,
        Query(
            max_length=tracking.MAX_TOKEN_CHARACTERS,
            description="From `status_url`: for senders, without an account",
        ),
    ] = None,
) -> Message | SentMessage:
    try:
        return _for_user(current_caller(request), id, organization)
    except (NotAuthenticated, NotFound):
        if token is None:
            raise
    keys = Keyring.open()
    organization_id = tracking.organization_of(keys, token, id)
    if organization_id is None:
        raise NotFound(f"no message {id}", field="id", value=id)
    m = status.status(organization_id, id)
    return SentMessage(
        id=m.message_id,
        state=m.state,
        attempts=m.attempts,
        accepted_at=m.accepted_at,
        available_at=m.available_at if m.ended_at is None else None,
        ended_at=m.ended_at,
        failure=_last_failure(m),
        result=_result(organization_id, id, keys),
    )


def _for_user(caller: Caller, id: str, organization: str | None) -> Message:
    place, m = _find(caller, id, organization)
    result = _result(place.organization_id, id, Keyring.open())
    if result is not None:
        _tell_of_reading(place, m)
    return Message(
        id=m.message_id,
        organization=place.slug,
        environment=m.environment,
        flow=m.flow,
        version=m.version,
        source=m.source,
        endpoint=m.endpoint,
        state=m.state,
        attempts=m.attempts,
        size_bytes=m.size_bytes,
        keys=m.keys,
        accepted_at=m.accepted_at,
        ended_at=m.ended_at,
        failure=_last_failure(m),
        result=result,
        generation=m.generation,
        replays=m.replays,
        run_id=m.run_id,
        available_at=m.available_at,
        waits_for=m.waits_for,
        trace=m.trace,
        parts=[
            OpenPart(
                id=part.child_id,
                node=part.node_id,
                state=part.state,
                attempts=part.attempts,
                available_at=part.available_at,
                waits_for=part.waits_for,
                until=part.until,
                called=part.called_id,
            )
            for part in m.parts
        ],
        failures=[
            FailedTry(
                failure_id=f.failure_id,
                id=f.child_id,
                node=f.node_id,
                node_type=f.node_type,
                code=f.code,
                verdict=f.verdict,
                final=f.final,
                attempt=f.attempt,
                at=f.at,
            )
            for f in m.failures
        ],
    )


def _tell_of_reading(place: Place, m: status.MessageStatus) -> None:
    """Who reads what a message became reads a tenant's data: it stands in the trail."""
    # A trail that was tampered with takes no event, and keeps nobody from looking after messages.
    with suppress(audit.TrailDamaged), database.tenant(place.organization_id) as connection:
        audit.record(
            connection, place.organization_id, "message.result_read", m.message_id, environment=m.environment
        )


def _last_failure(m: status.MessageStatus) -> LastFailure | None:
    """None for a message that is done, whatever happened on its way."""
    if not m.failures or m.state in ("done", "skipped"):
        return None
    last = next((failure for failure in reversed(m.failures) if failure.final), m.failures[-1])
    return LastFailure(code=last.code, title=(class_of(last.code) or BridgeError).title)


def _result(organization_id: UUID, message_id: str, keys: Keyring) -> Result | None:
    found = stored(organization_id, message_id, keys)
    if found is None:
        return None
    return Result(
        status=found.status,
        headers=found.headers,
        body=found.body,
        body_base64=found.body_base64,
        written_at=found.written_at,
    )


@router.post(
    "/{id}/replay",
    summary="Run a dead letter or a settled message again",
    status_code=202,
    openapi_extra=needs(Action.MESSAGE_REPLAY),
)
def replay_message(
    caller: CallerDep,
    id: MessageId,
    request: ReplayRequest | None = None,
    organization: OrganizationQuery = None,
) -> Replayed:
    request = request or ReplayRequest()
    place, _ = _find(caller, id, organization)
    [done] = replay.replay(
        place.organization_id, [id], by=caller.user_name, start=request.start, version=request.version
    )
    if done.refused is not None:
        raise done.refused
    return Replayed(id=id, version=done.version or "", generation=done.generation or 0)


def _find(caller: Caller, message_id: str, organization: str | None) -> tuple[Place, status.MessageStatus]:
    """The message and whose it is. Each of the caller's organizations is asked by itself: the database shows one
    at a time."""
    places = [caller.organization(organization)] if organization is not None else caller.organizations()
    for place in places:
        try:
            found = status.status(place.organization_id, message_id)
        except NotFound:
            continue
        caller.check(place)
        return place, found
    raise NotFound(f"no message {message_id}", field="id", value=message_id)


def _key(text: str) -> tuple[str, str]:
    # As the command line has it, or with a colon: no name of a key holds either.
    found = re.fullmatch(r"([^:=\0]+)[:=]([^\0]*)", text)
    if found is None:
        raise ConfigurationError(f"{text!r} is not name=value", field="key", value=text)
    return found[1], found[2]
