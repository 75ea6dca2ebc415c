"""Onboarding an organization: everything that it needs before somebody works there, in one transaction.

Environments, quotas of its tier and its first data key; the invitation of its first administrator. Its part of the
payload store is what stands under its id; its pool in Airflow follows within seconds (`airflow.pools`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from continuitybridge import invitations, organizations
from continuitybridge.invitations import NewInvitation
from continuitybridge.organizations import ENVIRONMENTS, Organization, Role
from continuitybridge.organizations.tiers import DEFAULT_TIER


@dataclass(frozen=True, slots=True)
class Onboarded:
    """`storage_prefix`: what every key of the organization in the payload store begins with."""

    organization: Organization
    environments: Sequence[str]
    storage_prefix: str
    invitation: NewInvitation


def onboard(
    slug: str,
    name: str,
    *,
    admin_email: str,
    environments: Sequence[str] = ENVIRONMENTS,
    tier: str = DEFAULT_TIER,
    by: str,
    days: int = invitations.DAYS,
) -> Onboarded:
    """Make an organization and invite its first administrator; all of it is there when this returns, or nothing.

    Raises `ConfigurationError` naming the field, `Conflict` when the slug is taken.
    """
    making = organizations.making(slug, name, environments=environments, tier=tier, by=by)
    with making as (connection, organization, keys):
        invitation = invitations.invite(
            organization.organization_id,
            admin_email,
            Role.CUSTOMER_ADMIN,
            by=by,
            days=days,
            connection=connection,
            keys=keys,
        )
    return Onboarded(
        organization,
        organizations.environments(organization.organization_id),
        f"{organization.organization_id}/",
        invitation,
    )
