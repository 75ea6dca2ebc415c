"""Invitations over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from continuitybridge import invitations
from continuitybridge.invitations import verbs
from continuitybridge.organizations import Role
from continuitybridge.organizations.access import CallerDep
from continuitybridge.organizations.matrix import Action, needs

router = APIRouter(prefix="/organizations/{organization}/invitations", tags=["invitations"])

Slug = Annotated[str, Path(max_length=64, description="Slug of the organization")]


class Invitation(BaseModel):
    """An invitation, without its token."""

    invitation_id: UUID
    email: str
    role: Role
    state: Literal["open", "accepted", "revoked", "expired"]
    created_at: datetime
    created_by: str
    expires_at: datetime
    accepted_at: datetime | None
    accepted_by: str | None
    revoked_at: datetime | None


class InvitationWanted(BaseModel):
    """Whom to invite as what, for so many `days`."""

    model_config = ConfigDict(extra="forbid")

    email: str = Field(min_length=3, max_length=254)
    role: Role = Role.CUSTOMER_USER
    days: int = Field(default=verbs.DAYS, ge=1, le=verbs.MAX_DAYS)


class InvitationMade(Invitation):
    """The token, shown this once: whoever holds it may become a member."""

    token: str


@router.get("", summary="Invitations of an organization", openapi_extra=needs(Action.MEMBER_READ))
def list_invitations(caller: CallerDep, organization: Slug) -> list[Invitation]:
    found = invitations.list_invitations(caller.organization(organization).organization_id)
    return [Invitation.model_validate(each, from_attributes=True) for each in found]


@router.post(
    "",
    summary="Invite somebody into an organization",
    status_code=201,
    openapi_extra=needs(Action.MEMBER_MANAGE),
)
def invite(caller: CallerDep, organization: Slug, wanted: InvitationWanted) -> InvitationMade:
    place = caller.organization(organization)
    caller.grants(place, wanted.role)
    made = invitations.invite(
        place.organization_id, wanted.email, wanted.role, by=caller.user_name, days=wanted.days
    )
    shown = Invitation.model_validate(made.shown, from_attributes=True)
    return InvitationMade(token=made.token, **shown.model_dump())


@router.delete(
    "/{invitation}", summary="Revoke an invitation that is open", openapi_extra=needs(Action.MEMBER_MANAGE)
)
def revoke(caller: CallerDep, organization: Slug, invitation: UUID) -> Invitation:
    place = caller.organization(organization)
    found = invitations.get(place.organization_id, invitation)
    caller.grants(place, found.role)
    ended = invitations.revoke(place.organization_id, invitation, by=caller.user_name)
    return Invitation.model_validate(ended, from_attributes=True)
