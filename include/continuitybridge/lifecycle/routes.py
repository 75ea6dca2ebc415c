"""Organizations over HTTP: what there are, their beginning, standstill and end."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from continuitybridge import deployments, lifecycle, organizations
from continuitybridge.organizations.access import CallerDep
from continuitybridge.organizations.matrix import Action, needs
from continuitybridge.organizations.tiers import Tier

router = APIRouter(tags=["organizations"])

Slug = Annotated[str, Path(max_length=64, description="Slug of the organization")]
Environment = Literal["dev", "test", "staging", "prod"]


class Organization(BaseModel):
    """An organization and what the caller is there."""

    organization_id: UUID
    slug: str
    name: str
    status: Literal["active", "suspended", "deleting"]
    tier: Tier
    environments: list[Environment]
    role: str


class Suspended(BaseModel):
    """Why; it stands in the audit trail."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(default="", max_length=1_000)


class DeletionWanted(BaseModel):
    """`confirm` repeats the slug. `export`: whether an archive is written first."""

    model_config = ConfigDict(extra="forbid")

    confirm: str = Field(max_length=64)
    export: bool


class Deletion(BaseModel):
    """A deletion; it is under way until `finished_at`. `export_file` stands on the platform's machine."""

    organization_id: UUID
    slug: str
    requested_at: datetime
    requested_by: str
    with_export: bool
    export_file: str | None
    export_sha256: str | None
    finished_at: datetime | None


@router.get(
    "/organizations/{organization}", summary="An organization", openapi_extra=needs(Action.ORGANIZATION_READ)
)
def read(caller: CallerDep, organization: Slug) -> Organization:
    place = caller.organization(organization)
    return _shown(organizations.by_slug(organization), place.role)


@router.post(
    "/organizations/{organization}/suspend",
    summary="Have an organization take no messages and run nothing",
    openapi_extra=needs(Action.ORGANIZATION_CHANGE),
)
def suspend(caller: CallerDep, organization: Slug, wanted: Suspended) -> Organization:
    place = caller.organization(organization)
    deployments.suspend(place.organization_id, by=caller.user_name, reason=wanted.reason)
    return _shown(organizations.by_slug(organization), "superadmin")


@router.post(
    "/organizations/{organization}/resume",
    summary="End an organization's suspension",
    openapi_extra=needs(Action.ORGANIZATION_CHANGE),
)
def resume(caller: CallerDep, organization: Slug) -> Organization:
    place = caller.organization(organization)
    deployments.resume(place.organization_id, by=caller.user_name)
    return _shown(organizations.by_slug(organization), "superadmin")


@router.put(
    "/organizations/{organization}/environments/{environment}",
    summary="Give an organization an environment",
    openapi_extra=needs(Action.ORGANIZATION_CHANGE),
)
def add_environment(caller: CallerDep, organization: Slug, environment: Environment) -> Organization:
    place = caller.organization(organization)
    organizations.add_environment(place.organization_id, environment, by=caller.user_name)
    return _shown(organizations.by_slug(organization), "superadmin")


@router.post(
    "/organizations/{organization}/deletion",
    summary="Delete an organization and everything of it; the platform goes on with it by itself",
    status_code=202,
    openapi_extra=needs(Action.ORGANIZATION_CHANGE),
)
def delete(caller: CallerDep, organization: Slug, wanted: DeletionWanted) -> Deletion:
    caller.organization(organization)
    found = lifecycle.request_deletion(
        organization, confirm=wanted.confirm, with_export=wanted.export, by=caller.user_name
    )
    return Deletion.model_validate(found, from_attributes=True)


@router.get(
    "/deletions",
    summary="Organizations that were, or are being, deleted",
    openapi_extra=needs(Action.ORGANIZATION_MANAGE),
)
def list_deletions(caller: CallerDep) -> list[Deletion]:
    caller.on_platform()
    return [Deletion.model_validate(each, from_attributes=True) for each in lifecycle.deletions()]


def _shown(found: organizations.Organization, role: str) -> Organization:
    return Organization.model_validate(
        {
            "organization_id": found.organization_id,
            "slug": found.slug,
            "name": found.name,
            "status": found.status,
            "tier": found.tier,
            "environments": organizations.environments(found.organization_id),
            "role": role,
        }
    )
