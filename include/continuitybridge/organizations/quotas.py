"""Quotas of an organization: what it may have by its tier or by agreement, and what it has.

They are enforced by the database where a thing is made (`QuotaExceeded`) and where a message or a run is let in
(`AllowanceExhausted`); here they are set and shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from continuitybridge import database
from continuitybridge.audit import record
from continuitybridge.database.connections import Connection
from continuitybridge.errors import ConfigurationError, NotFound
from continuitybridge.organizations.limits import check_limit
from continuitybridge.organizations.tiers import MEANING, Resource, Tier, limits_of, tier_of

_SET = """
INSERT INTO bridge.organization_limits AS l (organization_id, resource, allowed, agreed) VALUES (%s, %s, %s, %s)
ON CONFLICT (organization_id, resource) DO UPDATE SET allowed = excluded.allowed, agreed = excluded.agreed
"""

_USED = {
    Resource.FLOWS: "SELECT count(DISTINCT flow) FROM bridge.deployments WHERE status <> 'removed'",
    Resource.VERSIONS_PER_FLOW: "SELECT coalesce(max(n), 0) FROM"
    " (SELECT count(*) AS n FROM bridge.flow_versions GROUP BY flow) AS flows",
    Resource.ENDPOINTS: "SELECT count(*) FROM bridge.endpoints",
    Resource.CONNECTIONS: "SELECT count(*) FROM bridge.connections",
    Resource.MEMBERS: "SELECT count(*) FROM bridge.memberships",
    Resource.ENVIRONMENTS: "SELECT count(*) FROM bridge.environments",
    Resource.SYSTEM_INSTANCES: "SELECT count(*) FROM bridge.systems",
    Resource.STORAGE_MB: "SELECT coalesce(ceil(max(bytes) / 1000000.0), 0)::bigint FROM bridge.storage_use",
    # As the dispatcher counts them (see `inbox.batches`).
    Resource.CONCURRENT_RUNS: (
        "SELECT count(*) FROM bridge.batches b"
        " JOIN bridge.deployments d USING (organization_id, environment, flow)"
        " WHERE b.status IN ('created', 'started') AND d.status <> 'removed' AND NOT EXISTS ("
        "SELECT FROM bridge.flow_holds h WHERE (h.organization_id, h.environment, h.flow, h.kind)"
        " = (b.organization_id, b.environment, b.flow, 'pause'))"
    ),
}
"""As the application role, which sees one organization's rows."""

_WINDOWS = """
SELECT resource,
       CASE WHEN starts_at = date_trunc(split_part(resource, '_per_', 2), now(), 'UTC') THEN used ELSE 0 END
FROM bridge.quota_windows
"""


@dataclass(frozen=True, slots=True)
class Quota:
    """`allowed` None: unlimited. `agreed`: it was agreed upon for this organization, and is not its tier's. `used`
    of messages counts those that a process has taken in advance; of calls and days it is 0, as nobody counts them
    here."""

    resource: Resource
    allowed: int | None
    used: int
    agreed: bool

    @property
    def meaning(self) -> str:
        """What is counted."""
        return MEANING[self.resource]


def apply(connection: Connection, organization_id: UUID, tier: Tier) -> None:
    """Write a tier's limits, in the caller's transaction (platform role). What was agreed upon stays."""
    connection.execute(
        "DELETE FROM bridge.organization_limits WHERE organization_id = %s AND NOT agreed", (organization_id,)
    )
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO bridge.organization_limits (organization_id, resource, allowed) VALUES (%s, %s, %s)"
            " ON CONFLICT (organization_id, resource) DO NOTHING",
            [(organization_id, resource.value, allowed) for resource, allowed in limits_of(tier).items()],
        )


def set_tier(organization_id: UUID, tier: str) -> None:
    """Give the organization another tier. What it has beyond stays; no more is made. Raises `ConfigurationError`,
    `NotFound`."""
    wanted = tier_of(tier)
    with database.platform() as connection:
        done = connection.execute(
            "UPDATE bridge.organizations SET tier = %s WHERE organization_id = %s", (wanted.value, organization_id)
        )
        if not done.rowcount:
            raise NotFound("no such organization", field="organization")
        apply(connection, organization_id, wanted)
        record(connection, organization_id, "organization.tier_changed", wanted.value)


def agree(organization_id: UUID, resource: str, allowed: int | None) -> None:
    """Limit a resource otherwise than the tier does; None: unlimited. Raises `ConfigurationError`."""
    if resource not in list(Resource):
        raise ConfigurationError(
            f"resource {resource!r} is not valid: choose from {', '.join(Resource)}",
            field="resource",
            value=resource,
            valid=list(Resource),
        )
    check_limit("allowed", allowed)
    with database.platform() as connection:
        connection.execute(_SET, (organization_id, resource, allowed, True))
        record(connection, organization_id, "organization.quota_changed", resource, details={"allowed": allowed})


def as_tier(organization_id: UUID) -> None:
    """End all agreements: every limit is the tier's again. Raises `NotFound`."""
    with database.platform() as connection:
        row = connection.execute(
            "SELECT tier FROM bridge.organizations WHERE organization_id = %s", (organization_id,)
        ).fetchone()
        if row is None:
            raise NotFound("no such organization", field="organization")
        connection.execute("DELETE FROM bridge.organization_limits WHERE organization_id = %s", (organization_id,))
        apply(connection, organization_id, tier_of(row[0]))
        record(connection, organization_id, "organization.quota_changed", "all", details={"tier": row[0]})


def quotas(organization_id: UUID) -> list[Quota]:
    """What the organization may have and has, in the order of `Resource`."""
    with database.tenant(organization_id) as connection:
        limits = {
            resource: (allowed, agreed)
            for resource, allowed, agreed in connection.execute(
                "SELECT resource, allowed, agreed FROM bridge.organization_limits"
            )
        }
        windows: dict[str, int] = dict(connection.execute(_WINDOWS).fetchall())
        found = []
        for resource in Resource:
            query = _USED.get(resource)
            row = connection.execute(query).fetchone() if query is not None else None
            used = windows.get(resource.value, 0) if row is None else row[0]
            allowed, agreed = limits.get(resource.value, (0, False))
            found.append(Quota(resource, allowed, used, agreed))
    return found
