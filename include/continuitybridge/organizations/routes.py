"""What an organization may have, over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from continuitybridge.organizations import quotas
from continuitybridge.organizations.access import CallerDep
from continuitybridge.organizations.limits import MOST
from continuitybridge.organizations.matrix import Action, needs
from continuitybridge.organizations.tiers import Resource, Tier

router = APIRouter(prefix="/organizations", tags=["organizations"])

Slug = Annotated[str, Path(max_length=64, description="Slug of the organization")]


class Quota(BaseModel):
    """`allowed` null: unlimited. `agreed`: it was agreed upon for this organization, and is not its tier's."""

    resource: str
    meaning: str
    allowed: int | None
    used: int
    agreed: bool


class TierWanted(BaseModel):
    """The tier to change to."""

    model_config = ConfigDict(extra="forbid")

    tier: Tier


class QuotaAgreed(BaseModel):
    """A limit that is not the tier's; null: unlimited."""

    model_config = ConfigDict(extra="forbid")

    allowed: int | None = Field(ge=0, le=MOST)


@router.get(
    "/{organization}/quotas",
    summary="What an organization may have, and has",
    openapi_extra=needs(Action.QUOTA_READ),
)
def list_quotas(caller: CallerDep, organization: Slug) -> list[Quota]:
    place = caller.organization(organization)
    return [Quota.model_validate(each, from_attributes=True) for each in quotas.quotas(place.organization_id)]


@router.put(
    "/{organization}/tier", summary="Give an organization another tier", openapi_extra=needs(Action.QUOTA_CHANGE)
)
def set_tier(caller: CallerDep, organization: Slug, wanted: TierWanted) -> list[Quota]:
    quotas.set_tier(caller.organization(organization).organization_id, wanted.tier)
    return list_quotas(caller, organization)


@router.put(
    "/{organization}/quotas/{resource}",
    summary="Agree on a limit of its own for an organization",
    openapi_extra=needs(Action.QUOTA_CHANGE),
)
def agree_quota(caller: CallerDep, organization: Slug, resource: Resource, wanted: QuotaAgreed) -> list[Quota]:
    quotas.agree(caller.organization(organization).organization_id, resource, wanted.allowed)
    return list_quotas(caller, organization)
