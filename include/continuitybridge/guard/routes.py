"""The guard over HTTP: blocked addresses, and an organization's settings."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from continuitybridge.guard import verbs
from continuitybridge.organizations.access import CallerDep
from continuitybridge.organizations.matrix import Action, needs

router = APIRouter(prefix="/guard", tags=["guard"])

Organization = Annotated[
    str | None,
    Query(
        max_length=64, description="Slug; needed unless one has exactly one. Superadmins: the platform without it"
    ),
]


class GuardBlock(BaseModel):
    """An address that is refused until then; null: until it is lifted. `times` counts blocks that came one after
    the other. A block that is over is remembered for a week."""

    address: str
    reason: str
    times: int
    blocked_at: datetime
    until: datetime | None
    blocked_by: str


class BlockWanted(BaseModel):
    """An address to be refused; `seconds` null: until it is lifted."""

    model_config = ConfigDict(extra="forbid")

    address: str = Field(max_length=64)
    reason: str = Field(default="", max_length=200)
    seconds: int | None = Field(default=None, ge=1, le=verbs.MAX_BLOCK_DAYS * 86_400)


class BlockLifted(BaseModel):
    """The address to be let in again."""

    model_config = ConfigDict(extra="forbid")

    address: str = Field(max_length=64)


class PolicyWanted(BaseModel):
    """How the guard stands before an organization's webhooks; null: as the platform's settings say. `allowed`:
    addresses and networks that may always send."""

    model_config = ConfigDict(extra="forbid")

    mode: Literal["enforce", "detect", "off"] | None = None
    block_bots: bool | None = None
    allowed: list[Annotated[str, Field(max_length=64)]] = Field(default=[], max_length=verbs.MAX_ALLOWED)


class GuardPolicy(PolicyWanted):
    """An organization's settings. The limits are the platform's to set."""

    webhooks_limit: str | None
    api_limit: str | None


class LimitsWanted(BaseModel):
    """An organization's own limits (`200/minute; 10000/hour`); null: those of the platform's settings."""

    model_config = ConfigDict(extra="forbid")

    webhooks: str | None = Field(default=None, max_length=200)
    api: str | None = Field(default=None, max_length=200)


@router.get(
    "/blocks", summary="Addresses blocked at an organization's webhooks", openapi_extra=needs(Action.GUARD_READ)
)
def list_blocks(caller: CallerDep, organization: Organization = None) -> list[GuardBlock]:
    return _blocks(caller.chosen(organization).organization_id)


@router.post(
    "/blocks",
    summary="Block an address at an organization's webhooks",
    status_code=201,
    openapi_extra=needs(Action.GUARD_CHANGE),
)
def block(caller: CallerDep, wanted: BlockWanted, organization: Organization = None) -> GuardBlock:
    return _block(caller.chosen(organization).organization_id, wanted, caller.user_name)


@router.post(
    "/blocks/lift",
    summary="Let an address in again that was blocked there",
    status_code=204,
    openapi_extra=needs(Action.GUARD_CHANGE),
)
def lift(caller: CallerDep, lifted: BlockLifted, organization: Organization = None) -> None:
    verbs.lift(caller.chosen(organization).organization_id, lifted.address, by=caller.user_name)


@router.get("/platform/blocks", summary="Addresses blocked everywhere", openapi_extra=needs(Action.GUARD_PLATFORM))
def list_platform_blocks(caller: CallerDep) -> list[GuardBlock]:
    caller.on_platform()
    return _blocks(None)


@router.post(
    "/platform/blocks",
    summary="Block an address everywhere",
    status_code=201,
    openapi_extra=needs(Action.GUARD_PLATFORM),
)
def block_on_platform(caller: CallerDep, wanted: BlockWanted) -> GuardBlock:
    caller.on_platform()
    return _block(None, wanted, caller.user_name)


@router.post(
    "/platform/blocks/lift",
    summary="Let an address in again that was blocked everywhere",
    status_code=204,
    openapi_extra=needs(Action.GUARD_PLATFORM),
)
def lift_on_platform(caller: CallerDep, lifted: BlockLifted) -> None:
    caller.on_platform()
    verbs.lift(None, lifted.address, by=caller.user_name)


@router.get("/policy", summary="An organization's settings of the guard", openapi_extra=needs(Action.GUARD_READ))
def policy(caller: CallerDep, organization: Organization = None) -> GuardPolicy:
    place = caller.chosen(organization)
    return GuardPolicy.model_validate(verbs.policy(place.organization_id), from_attributes=True)


@router.put(
    "/policy", summary="Change an organization's settings of the guard", openapi_extra=needs(Action.GUARD_CHANGE)
)
def set_policy(caller: CallerDep, wanted: PolicyWanted, organization: Organization = None) -> GuardPolicy:
    place = caller.chosen(organization)
    changed = verbs.set_policy(
        place.organization_id,
        mode=wanted.mode,
        block_bots=wanted.block_bots,
        allowed=wanted.allowed,
        by=caller.user_name,
    )
    return GuardPolicy.model_validate(changed, from_attributes=True)


@router.put(
    "/limits", summary="Give an organization rate limits of its own", openapi_extra=needs(Action.GUARD_LIMIT)
)
def set_limits(caller: CallerDep, wanted: LimitsWanted, organization: Organization = None) -> GuardPolicy:
    place = caller.chosen(organization)
    changed = verbs.set_limits(
        place.organization_id, webhooks=wanted.webhooks, api=wanted.api, by=caller.user_name
    )
    return GuardPolicy.model_validate(changed, from_attributes=True)


def _blocks(organization_id: UUID | None) -> list[GuardBlock]:
    found = verbs.list_blocks(organization_id)
    return [GuardBlock.model_validate(each, from_attributes=True) for each in found]


def _block(organization_id: UUID | None, wanted: BlockWanted, by: str) -> GuardBlock:
    for_ = None if wanted.seconds is None else timedelta(seconds=wanted.seconds)
    made = verbs.block(organization_id, wanted.address, reason=wanted.reason, for_=for_, by=by)
    return GuardBlock.model_validate(made, from_attributes=True)
