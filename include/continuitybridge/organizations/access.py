"""Who is asking, and whose things he may see: what every route of a person starts from.

The application's gate authenticates each request before any route sees it and leaves a `Caller` in the request's
state; a route takes it as `CallerDep`. Without one, nothing is answered. The caller knows which action the route
is (`matrix.needs`), and gives an organization only to whoever may do that there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request

from continuitybridge.api_keys.holder import Holder
from continuitybridge.errors import (
    ConfigurationError,
    Conflict,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    OrganizationSuspended,
)
from continuitybridge.organizations import membership, verbs, visits
from continuitybridge.organizations.matrix import EXTENSION, GRANTABLE, MATRIX, SUPERADMIN, Action, Scope, may
from continuitybridge.organizations.membership import Membership
from continuitybridge.organizations.roles import Role


@dataclass(frozen=True, slots=True)
class Place:
    """An organization that the caller may see, and as what: a `Role`'s value or `superadmin`. `status` is the
    organization's."""

    organization_id: UUID
    slug: str
    role: str
    status: str


class Caller:
    """A signed-in user. Reads the memberships when they are first needed, once per request. `action` is what the
    request's route does; without one nothing is allowed."""

    def __init__(
        self,
        user_name: str,
        *,
        superadmin: bool = False,
        api_key: Holder | None = None,
        action: Action | None = None,
    ) -> None:
        self.user_name = user_name
        self.superadmin = superadmin and api_key is None
        self.action = action
        self._api_key = api_key
        self._as_superadmin = superadmin

    @property
    def by_api_key(self) -> bool:
        """Whether it is a program that asks, by a key."""
        return self._api_key is not None

    @cached_property
    def _memberships(self) -> Mapping[str, Membership]:
        found = {each.slug: each for each in membership.memberships(self.user_name)}
        return found if self._api_key is None else self._within(self._api_key, found)

    def _within(self, key: Holder, memberships: Mapping[str, Membership]) -> Mapping[str, Membership]:
        """What is left of the user's rights by his key: its organization, as far as its scope goes."""
        slug = key.organization
        member = memberships.get(slug)
        if member is None and self._as_superadmin:
            found = verbs.by_slug(slug)
            member = Membership(found.organization_id, slug, self.user_name, Role.CUSTOMER_ADMIN, found.status)
        if member is None:
            return {}
        return {slug: replace(member, role=Role.CUSTOMER_USER) if key.scope == "read" else member}

    def organizations(self) -> list[Place]:
        """Every organization the caller may see, by slug. What is done in one of them is for `check` to allow."""
        if self.superadmin:
            return [Place(each.organization_id, each.slug, SUPERADMIN, each.status) for each in verbs.list_all()]
        return [_place(membership) for membership in self._memberships.values()]

    def organization(self, slug: str) -> Place:
        """The organization of that slug. Raises `NotFound` alike when it does not exist and when it is not the
        caller's; as `check` when it is, and he may not do there what he asks for."""
        if self.superadmin:
            found = verbs.by_slug(slug)
            place = Place(found.organization_id, slug, SUPERADMIN, found.status)
        elif (mine := self._memberships.get(slug)) is not None:
            place = _place(mine)
        else:
            raise NotFound(f"no organization {slug!r}", field="organization", value=slug)
        self.check(place)
        return place

    def account(self, slug: str | None) -> str | None:
        """The organization on whose account a request goes that names this one, or none: the caller's, or his only
        one. None where that is nobody's, and for superadmins, who use up no customer's share."""
        if self.superadmin:
            return None
        if slug is None and len(self._memberships) == 1:
            return next(iter(self._memberships))
        return slug if slug in self._memberships else None

    def check(self, place: Place) -> None:
        """Raises `NotAllowed` when the matrix does not let the caller do in that organization what the route does,
        `OrganizationSuspended` when nobody may now who is no superadmin, `Conflict` when it is being deleted."""
        if self.action is None or not may(place.role, self.action):
            raise NotAllowed(f"the role {place.role} in {place.slug!r} does not include {self.action}")
        if MATRIX[self.action].changes and place.status == "deleting":
            raise Conflict(f"the organization {place.slug!r} is being deleted", field="organization")
        if MATRIX[self.action].changes and place.status != "active" and not self.superadmin:
            raise OrganizationSuspended(f"the organization {place.slug!r} is suspended: it can be read only")
        if place.role == Role.CONSULTANT:
            visits.enter(place.organization_id, self.user_name)

    def allows(self, place: Place, action: Action) -> bool:
        """Whether `check` would let him, were the route that action."""
        changes_now = MATRIX[action].changes and place.status != "active" and not self.superadmin
        return may(place.role, action) and not changes_now

    def grants(self, place: Place, role: Role) -> None:
        """Raises `NotAllowed` unless the caller, a person, may give and take that role there."""
        if self.by_api_key:
            raise NotAllowed("members are managed by people: sign in as a user")
        if role not in GRANTABLE[place.role]:
            raise NotAllowed(f"the role {place.role} neither gives nor takes the role {role}")

    def on_platform(self) -> None:
        """Raises `NotAllowed` unless the caller may do on the platform itself what the route does."""
        role = SUPERADMIN if self.superadmin else ""
        if self.action is None or MATRIX[self.action].scope is not Scope.PLATFORM or not may(role, self.action):
            raise NotAllowed(f"{self.action} is the superadmin's")

    def choose(self, place: Place) -> None:
        """Have the caller work there. A key has one organization anyway."""
        if not self.by_api_key:
            visits.choose(place.organization_id, self.user_name)

    def chosen(self, slug: str | None) -> Place:
        """The organization named, or the caller's only one, or the one of several that he chose to work in;
        otherwise as `organization`. Raises `ConfigurationError` when it must be named."""
        if slug is not None:
            return self.organization(slug)
        places = self.organizations() if not self.superadmin else []
        if len(places) > 1:
            chosen = visits.choice(self.user_name)
            places = [place for place in places if place.organization_id == chosen] or places
        if len(places) != 1:
            raise ConfigurationError(
                "name the organization: ?organization=<slug>",
                field="organization",
                valid=[place.slug for place in places],
            )
        self.check(places[0])
        return places[0]


def _place(membership: Membership) -> Place:
    return Place(membership.organization_id, membership.slug, membership.role.value, membership.status)


def action_of(route: object) -> Action | None:
    """The action that a route says it is."""
    named = (getattr(route, "openapi_extra", None) or {}).get(EXTENSION)
    return Action(named) if named is not None else None


def current_caller(request: Request) -> Caller:
    """The request's caller, who does what its route does; raises `NotAuthenticated` when the gate left none."""
    caller = getattr(request.state, "caller", None)
    if not isinstance(caller, Caller):
        raise NotAuthenticated("sign in first")
    caller.action = action_of(request.scope.get("route"))
    return caller


CallerDep = Annotated[Caller, Depends(current_caller)]
