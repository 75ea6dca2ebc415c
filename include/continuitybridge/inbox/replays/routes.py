"""Replays of many messages over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from continuitybridge.errors import NotFound
from continuitybridge.inbox import replay
from continuitybridge.inbox.accept.ids import MAX_ID_LENGTH
from continuitybridge.inbox.replays import jobs
from continuitybridge.inbox.replays.preview import preview
from continuitybridge.inbox.replays.query import MAX_IDS
from continuitybridge.inbox.replays.query import Query as MessageQuery
from continuitybridge.organizations.access import Caller, CallerDep, Place
from continuitybridge.organizations.matrix import Action, needs

router = APIRouter(prefix="/replays", tags=["replays"])

OrganizationQuery = Annotated[
    str | None, Query(max_length=64, description="Slug; needed unless one has exactly one")
]
Name = Annotated[str, Field(min_length=1, max_length=200)]
MessageName = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)]


class ReplayQuery(BaseModel):
    """Which messages: all that is given must hold. Dead letters unless `states` names others; what is settled is
    found only when it is asked for by state with environment and flow, or by id. `node` and `code` are those of
    the last failure, `since` and `until` bound the time of acceptance, `keys` are search keys."""

    model_config = ConfigDict(extra="forbid")

    environment: Name | None = None
    flow: Name | None = None
    states: list[Literal["dead", "done", "skipped", "discarded"]] = Field(
        default=["dead"], min_length=1, max_length=4
    )
    node: Name | None = None
    code: Name | None = None
    since: datetime | None = None
    until: datetime | None = None
    keys: dict[str, str] = Field(default_factory=dict, max_length=4)
    messages: list[MessageName] = Field(default_factory=list, max_length=MAX_IDS, description="Only these ids")

    def read(self) -> MessageQuery:
        return MessageQuery(
            environment=self.environment,
            flow=self.flow,
            states=tuple(self.states),
            node=self.node,
            code=self.code,
            since=self.since,
            until=self.until,
            keys=self.keys,
            message_ids=tuple(self.messages),
        )


class PreviewRequest(BaseModel):
    """`start`: from the `beginning`, or where each failed (`failure`, of dead letters). `version`: the
    `original` one of each, the `newest` deployed, or one by number."""

    model_config = ConfigDict(extra="forbid")

    query: ReplayQuery
    start: Literal["beginning", "failure"] = "beginning"
    version: str = Field(default=replay.ORIGINAL, min_length=1, max_length=256)


class StartRequest(PreviewRequest):
    """As a preview, with the rate in messages a second."""

    rate_per_s: float = Field(default=jobs.DEFAULT_RATE_PER_S, ge=0.001, le=jobs.MAX_RATE_PER_S)


class PreviewedMessage(BaseModel):
    """What would become of one message. `starts_at`: the nodes it would go on at; none for the beginning.
    `new_generation`: its deliveries would bear other Idempotency-Keys than before. `repeats`: the nodes that have
    delivered and would again. `refused`: why it would be left as it is."""

    id: str
    environment: str
    flow: str
    state: str
    from_version: str
    version: str | None
    starts_at: list[str]
    generation: int | None
    new_generation: bool
    repeats: list[str]
    refused: str | None


class PreviewGroup(BaseModel):
    """How many messages began on `from_version`, and the version they would run on."""

    environment: str
    flow: str
    from_version: str
    version: str | None
    messages: int


class ReplayPreview(BaseModel):
    """What a replay would do; nothing was changed. `capped`: there are more messages than were counted."""

    matched: int
    capped: bool
    groups: list[PreviewGroup]
    sample: list[PreviewedMessage]


class Refusal(BaseModel):
    """A message that was left as it is, and why."""

    id: str
    code: str
    detail: str


class ReplayJob(BaseModel):
    """A replay of many messages. `status`: queued, running, done, cancelled, failed. `matched`: messages that
    its query found when it was made; `replayed` run again, `refused` were left as they are, the first of them
    with their reasons in `refusals`."""

    id: UUID
    organization: str
    query: ReplayQuery
    start: str
    version: str
    rate_per_s: float
    status: str
    matched: int
    replayed: int
    refused: int
    refusals: list[Refusal]
    error: str | None
    created_at: datetime
    created_by: str
    started_at: datetime | None
    ended_at: datetime | None
    ended_by: str | None


@router.post(
    "/preview", summary="What a replay would do; changes nothing", openapi_extra=needs(Action.MESSAGE_REPLAY)
)
def preview_replay(
    caller: CallerDep, request: PreviewRequest, organization: OrganizationQuery = None
) -> ReplayPreview:
    place = caller.chosen(organization)
    found = preview(place.organization_id, request.query.read(), start=request.start, version=request.version)
    return ReplayPreview(
        matched=found.matched,
        capped=found.capped,
        groups=[
            PreviewGroup(
                environment=g.environment,
                flow=g.flow,
                from_version=g.from_version,
                version=g.version,
                messages=g.messages,
            )
            for g in found.groups
        ],
        sample=[
            PreviewedMessage(
                id=m.message_id,
                environment=m.environment,
                flow=m.flow,
                state=m.state,
                from_version=m.from_version,
                version=m.version,
                starts_at=m.starts_at,
                generation=m.generation,
                new_generation=m.new_generation,
                repeats=m.repeats,
                refused=m.refused,
            )
            for m in found.sample
        ],
    )


@router.post(
    "", summary="Replay many messages, at a rate", status_code=202, openapi_extra=needs(Action.MESSAGE_REPLAY)
)
def start_replay(caller: CallerDep, request: StartRequest, organization: OrganizationQuery = None) -> ReplayJob:
    place = caller.chosen(organization)
    job = jobs.start(
        place.organization_id,
        request.query.read(),
        by=caller.user_name,
        start=request.start,
        version=request.version,
        rate_per_s=request.rate_per_s,
    )
    return _shown(place, job)


@router.get("", summary="Replays, newest first", openapi_extra=needs(Action.MESSAGE_READ))
def list_replays(
    caller: CallerDep,
    organization: OrganizationQuery = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> list[ReplayJob]:
    place = caller.chosen(organization)
    return [_shown(place, job) for job in jobs.list_jobs(place.organization_id, limit=limit)]


@router.get("/{job}", summary="How far a replay is", openapi_extra=needs(Action.MESSAGE_READ))
def show_replay(caller: CallerDep, job: UUID, organization: OrganizationQuery = None) -> ReplayJob:
    return _shown(*_find(caller, job, organization))


@router.post("/{job}/cancel", summary="End a replay before its end", openapi_extra=needs(Action.MESSAGE_REPLAY))
def cancel_replay(caller: CallerDep, job: UUID, organization: OrganizationQuery = None) -> ReplayJob:
    place, _ = _find(caller, job, organization)
    return _shown(place, jobs.cancel(place.organization_id, job, by=caller.user_name))


def _find(caller: Caller, job_id: UUID, organization: str | None) -> tuple[Place, jobs.Job]:
    places = [caller.organization(organization)] if organization is not None else caller.organizations()
    for place in places:
        try:
            found = jobs.show(place.organization_id, job_id)
        except NotFound:
            continue
        caller.check(place)
        return place, found
    raise NotFound(f"no replay job {job_id}", field="job", value=str(job_id))


def _shown(place: Place, job: jobs.Job) -> ReplayJob:
    given = dict(job.query)
    given["messages"] = given.pop("message_ids")
    return ReplayJob(
        id=job.job_id,
        organization=place.slug,
        query=ReplayQuery.model_validate(given),
        start=job.start,
        version=job.version,
        rate_per_s=job.rate_per_s,
        status=job.status,
        matched=job.matched,
        replayed=job.replayed,
        refused=job.refused,
        refusals=[Refusal.model_validate(each) for each in job.refusals],
        error=job.error,
        created_at=job.created_at,
        created_by=job.created_by,
        started_at=job.started_at,
        ended_at=job.ended_at,
        ended_by=job.ended_by,
    )
