"""Holding flows over HTTP: pause, drain, resume, cancel."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from continuitybridge.inbox import holds
from continuitybridge.organizations.access import CallerDep
from continuitybridge.organizations.matrix import Action, needs

router = APIRouter(tags=["flows"])

Slug = Annotated[str, Path(max_length=64, description="Slug of the organization")]
Environment = Annotated[str, Path(max_length=16, description="dev, test, staging or prod")]
FlowName = Annotated[str, Path(max_length=64, description="Name of the flow")]


class Hold(BaseModel):
    """That a flow is held. `kind`: pause (nothing of it runs) or drain (it takes nothing new). `origin`: `bridge`
    for a person's, `airflow` for its DAG's pause button. `unsettled`: its messages that are neither settled nor in
    triage."""

    organization: str
    environment: str
    flow: str
    kind: str
    origin: str
    by: str
    reason: str
    since: datetime
    unsettled: int


class HoldReason(BaseModel):
    """`reason` is shown with the hold, and kept with what is cancelled."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(default="", max_length=holds.MAX_REASON_LENGTH)


class CancelledMessages(BaseModel):
    """How many messages were settled as skipped; `left` when there were more than one request takes: repeat it."""

    cancelled: int
    left: bool


@router.get("/holds", summary="Flows that are paused or draining", openapi_extra=needs(Action.FLOW_READ))
def list_holds(
    caller: CallerDep,
    organization: Annotated[str | None, Query(description="Slug; needed unless one has exactly one")] = None,
    environment: Annotated[str | None, Query(description="Only this environment")] = None,
) -> list[Hold]:
    place = caller.chosen(organization)
    return [_shown(place.slug, each) for each in holds.list_holds(place.organization_id, environment)]


@router.post(
    "/flows/{organization}/{environment}/{flow}/pause",
    summary="Run nothing of a flow; go on accepting",
    openapi_extra=needs(Action.FLOW_HOLD),
)
def pause_flow(
    caller: CallerDep,
    organization: Slug,
    environment: Environment,
    flow: FlowName,
    request: HoldReason | None = None,
) -> list[Hold]:
    return _hold(caller, organization, environment, flow, "pause", request)


@router.post(
    "/flows/{organization}/{environment}/{flow}/drain",
    summary="Take nothing new, finish what is there",
    openapi_extra=needs(Action.FLOW_HOLD),
)
def drain_flow(
    caller: CallerDep,
    organization: Slug,
    environment: Environment,
    flow: FlowName,
    request: HoldReason | None = None,
) -> list[Hold]:
    return _hold(caller, organization, environment, flow, "drain", request)


@router.post(
    "/flows/{organization}/{environment}/{flow}/resume",
    summary="End a pause or drain",
    openapi_extra=needs(Action.FLOW_HOLD),
)
def resume_flow(caller: CallerDep, organization: Slug, environment: Environment, flow: FlowName) -> list[Hold]:
    place = caller.organization(organization)
    return [_shown(organization, each) for each in holds.resume(place.organization_id, environment, flow)]


@router.post(
    "/flows/{organization}/{environment}/{flow}/cancel",
    summary="Settle as skipped what is unsettled",
    openapi_extra=needs(Action.FLOW_HOLD),
)
def cancel_flow(
    caller: CallerDep,
    organization: Slug,
    environment: Environment,
    flow: FlowName,
    request: HoldReason | None = None,
) -> CancelledMessages:
    place = caller.organization(organization)
    reason = request.reason if request else ""
    done = holds.cancel(place.organization_id, environment, flow, by=caller.user_name, reason=reason)
    return CancelledMessages(cancelled=done.messages, left=done.left)


def _hold(
    caller: CallerDep, organization: str, environment: str, flow: str, kind: holds.Kind, request: HoldReason | None
) -> list[Hold]:
    place = caller.organization(organization)
    reason = request.reason if request else ""
    done = holds.hold(place.organization_id, environment, flow, kind, by=caller.user_name, reason=reason)
    return [_shown(organization, each) for each in done]


def _shown(organization: str, each: holds.Hold) -> Hold:
    return Hold(
        organization=organization,
        environment=each.environment,
        flow=each.flow,
        kind=each.kind,
        origin=each.origin,
        by=each.by,
        reason=each.reason,
        since=each.since,
        unsettled=each.unsettled,
    )
