"""The audit trail over HTTP. Who may only read in an organization does not read its trail."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from continuitybridge import audit, database
from continuitybridge.audit import chain, checkpoints, exporting, reading
from continuitybridge.organizations.access import Caller, CallerDep, Place
from continuitybridge.organizations.matrix import Action, needs
from continuitybridge.vault.keyring import Keyring

router = APIRouter(prefix="/audit", tags=["audit"])

Organization = Annotated[str | None, Query(max_length=64, description="Slug; needed unless one has exactly one")]
ActionQuery = Annotated[
    str | None, Query(max_length=100, description="`connection.changed`, or all of `connection`")
]
Target = Annotated[str | None, Query(max_length=300, description="What it was done to")]
Environment = Annotated[str | None, Query(max_length=16, description="dev, test, staging or prod")]
ActorName = Annotated[str | None, Query(max_length=200, description="Name of the user who acted")]
Since = Annotated[datetime | None, Query(description="From this time on")]
Until = Annotated[datetime | None, Query(description="Before this time")]


MAX_TOLD = 100
"""Most problems of the file of checkpoints in one answer."""


class AuditEvent(BaseModel):
    """An event. `actor` and `address` are null where the platform acted by itself (`actor_kind`), and where the
    person was erased from the trail. `seq` counts from 1, `hash` is SHA-256 in hexadecimal, over the event and the
    hash before it."""

    seq: int
    event_id: UUID
    at: datetime
    action: str
    target: str
    environment: str | None
    actor_kind: str
    actor: str | None
    address: str | None
    erased: bool
    details: dict[str, Any]
    hash: str


class AuditPage(BaseModel):
    """Newest first. `before` asks for the next page; null on the last."""

    events: list[AuditEvent]
    before: int | None


class AuditVerified(BaseModel):
    """Whether the trail holds: `events` of it do, the last of which has `hash`. `problem` is what is wrong with
    event `seq`, the first that is; both null when nothing is. `checkpoints`: what is wrong with the platform's
    file of signed checkpoints, against which it is held; a line that is not ours counts for nothing."""

    organization: str
    events: int
    hash: str
    seq: int | None
    problem: str | None
    checkpoints: list[str]


@router.get("", summary="Who did what in an organization", openapi_extra=needs(Action.AUDIT_READ))
def search_audit(
    caller: CallerDep,
    organization: Organization = None,
    action: ActionQuery = None,
    target: Target = None,
    environment: Environment = None,
    actor: ActorName = None,
    since: Since = None,
    until: Until = None,
    before: Annotated[int | None, Query(ge=1, description="`before` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=reading.MAX_PAGE)] = 100,
) -> AuditPage:
    place = _place(caller, organization)
    wanted = reading.Filter(action, target, environment, actor, since, until)
    found = reading.search(place.organization_id, wanted, keys=Keyring.open(), before=before, limit=limit)
    events = [AuditEvent.model_validate(each, from_attributes=True) for each in found]
    return AuditPage(events=events, before=found[-1].seq if len(found) == limit else None)


@router.get(
    "/export",
    summary="The trail as a file",
    response_class=StreamingResponse,
    openapi_extra=needs(Action.AUDIT_READ),
)
def export_audit(
    caller: CallerDep,
    organization: Organization = None,
    format: Annotated[Literal["csv", "jsonl"], Query(description="CSV (RFC 4180) or JSON lines")] = "csv",
    action: ActionQuery = None,
    target: Target = None,
    environment: Environment = None,
    actor: ActorName = None,
    since: Since = None,
    until: Until = None,
) -> StreamingResponse:
    place = _place(caller, organization)
    wanted = reading.Filter(action, target, environment, actor, since, until)
    # A trail that was tampered with takes no event, and is what somebody needs to see then.
    with suppress(audit.TrailDamaged), database.tenant(place.organization_id) as connection:
        audit.record(connection, place.organization_id, "audit.exported", place.slug, details={"format": format})
    events = reading.every(place.organization_id, wanted, keys=Keyring.open())
    return StreamingResponse(
        exporting.written(events, format),
        media_type=exporting.MEDIA_TYPES[format],
        headers={"content-disposition": f'attachment; filename="audit-{place.slug}.{format}"'},
    )


@router.get("/verification", summary="Does the trail hold?", openapi_extra=needs(Action.AUDIT_READ))
def verify_audit(caller: CallerDep, organization: Organization = None) -> AuditVerified:
    place = _place(caller, organization)
    known = checkpoints.read()
    done = chain.verify(place.organization_id, known.marks.get(place.organization_id, ()))
    return AuditVerified(
        organization=place.slug,
        events=done.events,
        hash=done.hash.hex(),
        seq=None if done.fault is None else done.fault.seq,
        problem=None if done.fault is None else done.fault.problem,
        checkpoints=list(known.problems.values())[:MAX_TOLD],
    )


def _place(caller: Caller, organization: str | None) -> Place:
    return caller.chosen(organization)
