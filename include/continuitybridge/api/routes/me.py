"""Who the caller is."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from continuitybridge.organizations.access import CallerDep
from continuitybridge.organizations.matrix import Action, needs

router = APIRouter(tags=["me"])


class MyOrganization(BaseModel):
    """An organization the caller may see, and as what."""

    slug: str
    role: str


class Me(BaseModel):
    """The signed-in user."""

    user_name: str
    superadmin: bool
    organizations: list[MyOrganization]


@router.get(
    "/me", summary="The signed-in user and the organizations he sees", openapi_extra=needs(Action.SELF_READ)
)
def me(caller: CallerDep) -> Me:
    places = [MyOrganization(slug=place.slug, role=place.role) for place in caller.organizations()]
    return Me(user_name=caller.user_name, superadmin=caller.superadmin, organizations=places)
