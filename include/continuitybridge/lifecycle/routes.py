"""Organizations over HTTP: what there are, their beginning, standstill and end."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, get_args
from uuid import UUID

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from continuitybridge import deployments, lifecycle, organizations
from continuitybridge.organizations.access import CallerDep
from continuitybridge.organizations.matrix import Action, needs
from continuitybridge.organizations.tiers import DEFAULT_TIER, Tier

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


class OrganizationListed(BaseModel):
    """An organization that the caller may see, and what he is there."""

    organization_id: UUID
    slug: str
    status: Literal["active", "suspended", "deleting"]
    role: str


class OrganizationWanted(BaseModel):
    """An organization to be made. `admin_email`: who is invited as its first administrator."""

    model_config = ConfigDict(extra="forbid")

    slug: str = Field(min_length=1, max_length=40)
    name: str = Field(min_length=1, max_length=200)
    admin_email: str = Field(min_length=3, max_length=254)
    tier: Tier = DEFAULT_TIER
    environments: list[Environment] = Field(default=list(get_args(Environment)), min_length=1, max_length=4)


class Onboarded(BaseModel):
    """What was made. `invitation` is the token, shown this once: whoever holds it may become administrator."""

    organization: Organization
    storage_prefix: str
    invitation: str
    invitation_id: UUID
    expires_at: datetime


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
    "/organizations",
    summary="The organizations that one may see",
    openapi_extra=needs(Action.SELF_READ),
)
def list_organizations(caller: CallerDep) -> list[OrganizationListed]:
    return [OrganizationListed.model_validate(each, from_attributes=True) for each in caller.organizations()]


@router.post(
    "/organizations",
    summary="Onboard an organization, with the invitation of its first administrator",
    status_code=201,
    openapi_extra=needs(Action.ORGANIZATION_MANAGE),
)
def onboard(caller: CallerDep, wanted: OrganizationWanted) -> Onboarded:
    caller.on_platform()
    done = lifecycle.onboard(
        wanted.slug,
        wanted.name,
        admin_email=wanted.admin_email,
        environments=wanted.environments,
        tier=wanted.tier,
        by=caller.user_name,
    )
    return Onboarded(
        organization=_shown(done.organization, "superadmin"),
        storage_prefix=done.storage_prefix,
        invitation=done.invitation.token,
        invitation_id=done.invitation.shown.invitation_id,
        expires_at=done.invitation.shown.expires_at,
    )


@router.put(
    "/session/organization/{organization}",
    summary="Work in one of one's organizations: what names none is this one's",
    openapi_extra=needs(Action.ORGANIZATION_READ),
)
def choose(caller: CallerDep, organization: Slug) -> OrganizationListed:
    place = caller.organization(organization)
    caller.choose(place)
    return OrganizationListed.model_validate(place, from_attributes=True)


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
