"""Approvals over HTTP: who may see a message may see what waits for a decision; deciding needs more."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from continuitybridge.errors import NotFound
from continuitybridge.inbox.waits import people
from continuitybridge.organizations.access import Caller, CallerDep, Place
from continuitybridge.organizations.matrix import Action, needs
from continuitybridge.vault.keyring import Keyring

router = APIRouter(prefix="/approvals", tags=["approvals"])

ApprovalId = Annotated[UUID, Path(description="Its id")]
OrganizationQuery = Annotated[
    str | None, Query(max_length=64, description="Slug; where the caller belongs to several, it saves looking")
]


class Approval(BaseModel):
    """A message that waits for a decision at a step. `part` is the part of the message that waits (its own id, or
    a child's). `title` and `details` are what the step shows of it; `may_decide` whether the caller may."""

    id: UUID
    organization: str
    environment: str
    flow: str
    version: str
    step: str
    message: str
    part: str
    title: str
    details: Any
    keys: dict[str, Any]
    accepted_at: datetime
    waits_since: datetime
    until: datetime | None
    may_decide: bool


class Decision(BaseModel):
    """What somebody decides."""

    model_config = ConfigDict(extra="forbid")

    decision: Literal["approved", "rejected"]
    comment: str = Field(default="", max_length=people.MAX_COMMENT_CHARACTERS)


class Decided(BaseModel):
    """The message goes on as decided."""

    id: UUID
    message: str
    decision: Literal["approved", "rejected"]


@router.get("", summary="What waits for a decision, the longest first", openapi_extra=needs(Action.APPROVAL_READ))
def list_approvals(
    caller: CallerDep,
    organization: Annotated[str | None, Query(description="Slug; needed unless one has exactly one")] = None,
    environment: Annotated[str | None, Query(max_length=16)] = None,
    flow: Annotated[str | None, Query(max_length=64)] = None,
    after: Annotated[UUID | None, Query(description="`id` of the last one of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> list[Approval]:
    place = caller.chosen(organization)
    found = people.list_approvals(
        place.organization_id,
        keys=Keyring.open(),
        environment=environment,
        flow=flow,
        after=after,
        limit=limit,
    )
    return [_shown(each, caller, place) for each in found]


@router.get("/{approval}", summary="One of them", openapi_extra=needs(Action.APPROVAL_READ))
def show_approval(caller: CallerDep, approval: ApprovalId, organization: OrganizationQuery = None) -> Approval:
    place, found = _find(caller, approval, organization)
    return _shown(found, caller, place)


@router.post("/{approval}/decision", summary="Approve or reject", openapi_extra=needs(Action.APPROVAL_DECIDE))
def decide(
    caller: CallerDep, approval: ApprovalId, request: Decision, organization: OrganizationQuery = None
) -> Decided:
    place, _ = _find(caller, approval, organization)
    message_id = people.decide(
        place.organization_id, approval, request.decision, by=caller.user_name, comment=request.comment
    )
    return Decided(id=approval, message=message_id, decision=request.decision)


def _find(caller: Caller, approval_id: UUID, organization: str | None) -> tuple[Place, people.Approval]:
    """The approval and whose it is. Each of the caller's organizations is asked by itself: the database shows one
    at a time."""
    keys = Keyring.open()
    for place in [caller.organization(organization)] if organization is not None else caller.organizations():
        try:
            found = people.get_approval(place.organization_id, approval_id, keys=keys)
        except NotFound:
            continue
        caller.check(place)
        return place, found
    raise NotFound(f"nothing waits for a decision under {approval_id} (any more)", field="approval")


def _shown(found: people.Approval, caller: Caller, place: Place) -> Approval:
    return Approval(
        id=found.approval_id,
        organization=place.slug,
        environment=found.environment,
        flow=found.flow,
        version=found.version,
        step=found.node_id,
        message=found.message_id,
        part=found.part_id,
        title=found.title,
        details=found.details,
        keys=found.keys,
        accepted_at=found.accepted_at,
        waits_since=found.waits_since,
        until=found.until,
        may_decide=caller.allows(place, Action.APPROVAL_DECIDE),
    )
