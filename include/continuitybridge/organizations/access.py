"""Who is asking, and whose things he may see: what every route of a person starts from.

The application's gate authenticates each request before any route sees it and leaves a `Caller` in the request's
state; a route takes it as `CallerDep`. Without one, nothing is answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request

from continuitybridge.api_keys.holder import Holder
from continuitybridge.errors import ConfigurationError, NotAllowed, NotAuthenticated, NotFound
from continuitybridge.organizations import verbs
from continuitybridge.organizations.verbs import Membership, Role

SUPERADMIN = "superadmin"


@dataclass(frozen=True, slots=True)
class Place:
    """An organization that the caller may see, and as what: a `Role`'s value or `superadmin`."""

    organization_id: UUID
    slug: str
    role: str


class Caller:
    """A signed-in user. Reads the memberships when they are first needed, once per request."""

    def __init__(self, user_name: str, *, superadmin: bool = False, api_key: Holder | None = None) -> None:
        self.user_name = user_name
        self.superadmin = superadmin and api_key is None
        self._api_key = api_key
        self._as_superadmin = superadmin

    @property
    def by_api_key(self) -> bool:
        """Whether it is a program that asks, by a key."""
        return self._api_key is not None

    @cached_property
    def _memberships(self) -> Mapping[str, Membership]:
        found = {membership.slug: membership for membership in verbs.memberships(self.user_name)}
        return found if self._api_key is None else self._within(self._api_key, found)

    def _within(self, key: Holder, memberships: Mapping[str, Membership]) -> Mapping[str, Membership]:
        """What is left of the user's rights by his key: its organization, as far as its scope goes."""
        slug = key.organization
        role = memberships[slug].role if slug in memberships else None
        if role is None and self._as_superadmin:
            role = Role.CUSTOMER_ADMIN
        if role is None:
            return {}
        if key.scope == "read":
            role = Role.CUSTOMER_USER
        return {slug: Membership(key.organization_id, slug, self.user_name, role)}

    def organizations(self) -> list[Place]:
        """Every organization the caller may see, by slug."""
        if self.superadmin:
            return [Place(each.organization_id, each.slug, SUPERADMIN) for each in verbs.list_all()]
        return [Place(m.organization_id, m.slug, m.role.value) for m in self._memberships.values()]

    def organization(self, slug: str) -> Place:
        """The organization of that slug. Raises `NotFound` alike when it does not exist and when it is not the
        caller's."""
        if self.superadmin:
            return Place(verbs.by_slug(slug).organization_id, slug, SUPERADMIN)
        membership = self._memberships.get(slug)
        if membership is None:
            raise NotFound(f"no organization {slug!r}", field="organization", value=slug)
        return Place(membership.organization_id, slug, membership.role.value)

    def account(self, slug: str | None) -> str | None:
        """The organization on whose account a request goes that names this one, or none: the caller's, or his only
        one. None where that is nobody's, and for superadmins, who use up no customer's share."""
        if self.superadmin:
            return None
        if slug is None and len(self._memberships) == 1:
            return next(iter(self._memberships))
        return slug if slug in self._memberships else None

    def writable(self, slug: str) -> Place:
        """As `organization`; raises `NotAllowed` when the caller may only read there."""
        place = self.organization(slug)
        if not self.may_write(slug):
            raise NotAllowed(f"changing something in {slug!r} needs more than the role {place.role}")
        return place

    def may_write(self, slug: str) -> bool:
        """Whether `writable` would let him."""
        return self.superadmin or (slug in self._memberships and self._memberships[slug].role.may_write)

    def chosen(self, slug: str | None) -> Place:
        """The organization named, or the caller's only one. Raises `ConfigurationError` when it must be named."""
        if slug is not None:
            return self.organization(slug)
        places = self.organizations() if not self.superadmin else []
        if len(places) != 1:
            raise ConfigurationError(
                "name the organization: ?organization=<slug>",
                field="organization",
                valid=[place.slug for place in places],
            )
        return places[0]


def current_caller(request: Request) -> Caller:
    """The request's caller; raises `NotAuthenticated` when the gate left none."""
    caller = getattr(request.state, "caller", None)
    if not isinstance(caller, Caller):
        raise NotAuthenticated("sign in first")
    return caller


CallerDep = Annotated[Caller, Depends(current_caller)]
