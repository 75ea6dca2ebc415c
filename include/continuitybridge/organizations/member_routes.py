"""Members of an organization over HTTP."""

from __future__ import annotations

from typing import Annotated, Protocol

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict

from continuitybridge.errors import NotAllowed, NotFound, Unavailable
from continuitybridge.organizations import membership
from continuitybridge.organizations.access import CallerDep, Place
from continuitybridge.organizations.matrix import Action, needs
from continuitybridge.organizations.roles import Role

router = APIRouter(prefix="/organizations/{organization}/members", tags=["members"])
rule_router = APIRouter(prefix="/organizations/{organization}/second-factor", tags=["members"])

Slug = Annotated[str, Path(max_length=64, description="Slug of the organization")]
User = Annotated[str, Path(max_length=256, description="Name of the user")]


class People(Protocol):
    """Who there is: of `sign_in.Accounts`."""

    def named(self, name: str) -> str | None:
        """The user name of whoever is known by this name, however it is spelled; None for nobody."""


class Member(BaseModel):
    """A member, and as what."""

    user_name: str
    role: Role


class RoleWanted(BaseModel):
    """What the member is to be."""

    model_config = ConfigDict(extra="forbid")

    role: Role


class SecondFactorRule(BaseModel):
    """Whether members sign in with a second factor only."""

    model_config = ConfigDict(extra="forbid")

    required: bool


@rule_router.get("", summary="Whether members need a second factor", openapi_extra=needs(Action.MEMBER_READ))
def get_second_factor_rule(caller: CallerDep, organization: Slug) -> SecondFactorRule:
    place = caller.organization(organization)
    return SecondFactorRule(required=membership.requires_second_factor(place.organization_id))


@rule_router.put(
    "",
    summary="Say whether members need a second factor; those who have none are signed out",
    openapi_extra=needs(Action.MEMBER_PROTECT),
)
def set_second_factor_rule(caller: CallerDep, organization: Slug, wanted: SecondFactorRule) -> SecondFactorRule:
    place = caller.organization(organization)
    if caller.by_api_key:
        raise NotAllowed("how people sign in is ruled by a person: sign in as a user")
    membership.require_second_factor(place.organization_id, wanted.required, by=caller.user_name)
    return wanted


@router.get("", summary="Members of an organization", openapi_extra=needs(Action.MEMBER_READ))
def list_members(caller: CallerDep, organization: Slug) -> list[Member]:
    place = caller.organization(organization)
    return [
        Member.model_validate(each, from_attributes=True) for each in membership.members(place.organization_id)
    ]


@router.put(
    "/{user}",
    summary="Change a member's role; a superadmin also adds a user that there is, as a consultant's assignment",
    openapi_extra=needs(Action.MEMBER_MANAGE),
)
def set_role(request: Request, caller: CallerDep, organization: Slug, user: User, wanted: RoleWanted) -> Member:
    place = caller.organization(organization)
    caller.grants(place, wanted.role)
    if caller.superadmin:
        if all(each.user_name != user for each in membership.members(place.organization_id)):
            user = _known(request, user)
        membership.add_member(place.organization_id, user, wanted.role, by=caller.user_name)
        return Member(user_name=user, role=wanted.role)
    before = _role(place, user)
    # Whoever gives up what he is himself gives nobody anything.
    if user != caller.user_name or before is not Role.CUSTOMER_ADMIN:
        caller.grants(place, before)
    membership.change_role(place.organization_id, user, wanted.role, by=caller.user_name)
    return Member(user_name=user, role=wanted.role)


@router.delete("/{user}", summary="End a membership", openapi_extra=needs(Action.MEMBER_MANAGE))
def remove_member(caller: CallerDep, organization: Slug, user: User) -> Member:
    place = caller.organization(organization)
    role = _role(place, user)
    # Everybody may leave.
    if user != caller.user_name or caller.by_api_key:
        caller.grants(place, role)
    membership.remove_member(
        place.organization_id, user, by=caller.user_name, keep_an_administrator=not caller.superadmin
    )
    return Member(user_name=user, role=role)


def _known(request: Request, name: str) -> str:
    """The user name of whoever is called so. Raises `NotFound`: rights under a name that nobody has would be those
    of whoever takes it."""
    people: People | None = getattr(request.app.state, "accounts", None)
    if people is None:
        raise Unavailable("there are no accounts here")
    found = people.named(name)
    if found is None:
        raise NotFound(f"nobody signs in as {name!r}: invite the person", field="user", value=name)
    return found


def _role(place: Place, user: str) -> Role:
    for member in membership.members(place.organization_id):
        if member.user_name == user:
            return member.role
    raise NotFound(f"{user!r} is not a member", field="user", value=user)
