"""Destinations over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from continuitybridge.destinations import verbs
from continuitybridge.organizations.access import CallerDep
from continuitybridge.organizations.matrix import Action, needs

router = APIRouter(prefix="/destinations", tags=["destinations"])

Slug = Annotated[str, Path(max_length=64, description="Slug of the organization")]
Environment = Annotated[str, Path(max_length=16, description="dev, test, staging or prod")]
Name = Annotated[str, Path(max_length=253, description="A connection's name, or the host of an address")]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Destination(BaseModel):
    """`status`: active, paused (nothing is sent there) or draining (the flows that deliver there take nothing
    new). `circuit`: closed; open, until `opened_until` nothing is sent; half_open, one call probes. The numbers
    are those in force. `waiting`: parts of messages that it turned back. `connection`: whether a connection has
    the name."""

    organization: str
    environment: str
    name: str
    connection: bool
    status: str
    reason: str
    status_since: datetime | None
    status_by: str
    max_concurrency: int
    circuit_failures: int
    circuit_wait_s: float
    circuit_max_wait_s: float
    circuit: str
    failures: int
    opened_until: datetime | None
    waiting: int


class DestinationReason(_In):
    """`reason` is shown with the destination."""

    reason: str = Field(default="", max_length=verbs.MAX_REASON_LENGTH)


class DestinationNumbers(_In):
    """What holds for this destination alone; null goes back to the platform's setting, what is absent stays."""

    max_concurrency: int | None = Field(
        default=None, ge=1, le=10_000, description="Most calls at once per process"
    )
    circuit_failures: int | None = Field(
        default=None, ge=0, le=1_000_000, description="Failures in a row that open the circuit; 0: never"
    )
    circuit_wait_s: float | None = Field(default=None, ge=0.1, le=86_400, description="First wait in seconds")
    circuit_max_wait_s: float | None = Field(
        default=None, ge=0.1, le=86_400, description="Longest wait in seconds"
    )


class CancelledParts(BaseModel):
    """How many parts of messages were settled as skipped."""

    cancelled: int


@router.get("", summary="Destinations of an organization", openapi_extra=needs(Action.DESTINATION_READ))
def list_destinations(
    caller: CallerDep,
    organization: Annotated[str | None, Query(description="Slug; needed unless one has exactly one")] = None,
    environment: Annotated[str | None, Query(description="Only this environment")] = None,
) -> list[Destination]:
    place = caller.chosen(organization)
    return [_shown(place.slug, each) for each in verbs.list_destinations(place.organization_id, environment)]


@router.get(
    "/{organization}/{environment}/{name}",
    summary="What holds for a destination",
    openapi_extra=needs(Action.DESTINATION_READ),
)
def show_destination(caller: CallerDep, organization: Slug, environment: Environment, name: Name) -> Destination:
    place = caller.organization(organization)
    return _shown(organization, verbs.show(place.organization_id, environment, name))


@router.put(
    "/{organization}/{environment}/{name}",
    summary="Calls at once and circuit of a destination",
    openapi_extra=needs(Action.DESTINATION_CHANGE),
)
def configure_destination(
    caller: CallerDep, organization: Slug, environment: Environment, name: Name, request: DestinationNumbers
) -> Destination:
    place = caller.organization(organization)
    changes = request.model_dump(include=request.model_fields_set)
    return _shown(organization, verbs.configure(place.organization_id, environment, name, changes))


@router.post(
    "/{organization}/{environment}/{name}/pause",
    summary="Send nothing there; messages wait",
    openapi_extra=needs(Action.DESTINATION_CHANGE),
)
def pause_destination(
    caller: CallerDep,
    organization: Slug,
    environment: Environment,
    name: Name,
    request: DestinationReason | None = None,
) -> Destination:
    place = caller.organization(organization)
    reason = request.reason if request else ""
    done = verbs.pause(place.organization_id, environment, name, by=caller.user_name, reason=reason)
    return _shown(organization, done)


@router.post(
    "/{organization}/{environment}/{name}/drain",
    summary="Deliver what is there, take nothing new",
    openapi_extra=needs(Action.DESTINATION_CHANGE),
)
def drain_destination(
    caller: CallerDep,
    organization: Slug,
    environment: Environment,
    name: Name,
    request: DestinationReason | None = None,
) -> Destination:
    place = caller.organization(organization)
    reason = request.reason if request else ""
    done = verbs.drain(place.organization_id, environment, name, by=caller.user_name, reason=reason)
    return _shown(organization, done)


@router.post(
    "/{organization}/{environment}/{name}/resume",
    summary="Go on, with the circuit closed",
    openapi_extra=needs(Action.DESTINATION_CHANGE),
)
def resume_destination(caller: CallerDep, organization: Slug, environment: Environment, name: Name) -> Destination:
    place = caller.organization(organization)
    return _shown(organization, verbs.resume(place.organization_id, environment, name, by=caller.user_name))


@router.post(
    "/{organization}/{environment}/{name}/cancel",
    summary="Settle as skipped what waits for it",
    openapi_extra=needs(Action.DESTINATION_CHANGE),
)
def cancel_destination(
    caller: CallerDep,
    organization: Slug,
    environment: Environment,
    name: Name,
    request: DestinationReason | None = None,
) -> CancelledParts:
    place = caller.organization(organization)
    reason = request.reason if request else ""
    done = verbs.cancel(place.organization_id, environment, name, by=caller.user_name, reason=reason)
    return CancelledParts(cancelled=done)


def _shown(organization: str, each: verbs.Destination) -> Destination:
    return Destination(
        organization=organization,
        environment=each.environment,
        name=each.name,
        connection=each.connection,
        status=each.status,
        reason=each.reason,
        status_since=each.status_since,
        status_by=each.status_by,
        max_concurrency=each.max_concurrency,
        circuit_failures=each.circuit_failures,
        circuit_wait_s=each.circuit_wait_s,
        circuit_max_wait_s=each.circuit_max_wait_s,
        circuit=each.circuit,
        failures=each.failures,
        opened_until=each.opened_until,
        waiting=each.waiting,
    )
