"""What an organization may have and use, by its tier: the one place with the numbers.

The database enforces them: at onboarding and at a change of tier they are written to `organization_limits`, and
triggers there refuse what would go beyond (`QuotaExceeded`); messages are let in by `quota_windows`
(`AllowanceExhausted`). `docs/quotas.md` is made from this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from continuitybridge.errors import ConfigurationError

MESSAGES_PER_RUN = 20
"""Messages that are allowed for each run that is."""
UNLIMITED = None


class Tier(StrEnum):
    """From the least to the most."""

    FREE = "free"
    STARTER = "starter"
    PROFESSIONAL = "professional"
    ENTERPRISE = "enterprise"


DEFAULT_TIER = Tier.PROFESSIONAL


class Resource(StrEnum):
    """What is limited."""

    FLOWS = "flows"
    VERSIONS_PER_FLOW = "versions_per_flow"
    ENDPOINTS = "endpoints"
    CONNECTIONS = "connections"
    MEMBERS = "members"
    ENVIRONMENTS = "environments"
    SYSTEM_INSTANCES = "system_instances"
    RUNS_PER_HOUR = "runs_per_hour"
    RUNS_PER_DAY = "runs_per_day"
    MESSAGES_PER_HOUR = "messages_per_hour"
    MESSAGES_PER_DAY = "messages_per_day"
    CONCURRENT_RUNS = "concurrent_runs"
    API_CALLS_PER_MINUTE = "api_calls_per_minute"
    API_CALLS_PER_HOUR = "api_calls_per_hour"
    DATA_RETENTION_DAYS = "data_retention_days"
    STORAGE_MB = "storage_mb"


MEANING: Mapping[Resource, str] = {
    Resource.FLOWS: "Flows that are deployed, each counted once whatever the number of its environments",
    Resource.VERSIONS_PER_FLOW: "Versions kept of one flow",
    Resource.ENDPOINTS: "Webhook endpoints",
    Resource.CONNECTIONS: "Connections",
    Resource.MEMBERS: "Members",
    Resource.ENVIRONMENTS: "Environments",
    Resource.SYSTEM_INSTANCES: "Systems, each counted in each environment where it stands",
    Resource.RUNS_PER_HOUR: "DAG runs an hour (UTC)",
    Resource.RUNS_PER_DAY: "DAG runs a day (UTC)",
    Resource.MESSAGES_PER_HOUR: "Messages accepted an hour (UTC)",
    Resource.MESSAGES_PER_DAY: "Messages accepted a day (UTC)",
    Resource.CONCURRENT_RUNS: "DAG runs that the dispatcher has under way at once; more messages wait",
    Resource.API_CALLS_PER_MINUTE: "Calls of the API by API keys a minute",
    Resource.API_CALLS_PER_HOUR: "Calls of the API by API keys an hour",
    Resource.DATA_RETENTION_DAYS: "Days that settled messages are kept at most, whatever their retention class",
    Resource.STORAGE_MB: "Megabytes (of 1,000,000 bytes) of messages held, in the inbox and the payload store",
}

_COUNTED: Mapping[Resource, tuple[int | None, ...]] = {
    Resource.FLOWS: (5, 20, 100, UNLIMITED),
    Resource.VERSIONS_PER_FLOW: (10, 50, 100, UNLIMITED),
    Resource.ENDPOINTS: (2, 5, 20, UNLIMITED),
    Resource.CONNECTIONS: (2, 5, 20, UNLIMITED),
    Resource.MEMBERS: (5, 10, 50, UNLIMITED),
    Resource.ENVIRONMENTS: (UNLIMITED, UNLIMITED, UNLIMITED, UNLIMITED),
    Resource.SYSTEM_INSTANCES: (1, 2, 10, UNLIMITED),
    Resource.RUNS_PER_HOUR: (100, 500, 2_000, UNLIMITED),
    Resource.RUNS_PER_DAY: (1_000, 10_000, 50_000, UNLIMITED),
    Resource.CONCURRENT_RUNS: (2, 5, 20, 100),
    Resource.API_CALLS_PER_MINUTE: (10, 50, 200, 1_000),
    Resource.API_CALLS_PER_HOUR: (500, 2_000, 10_000, UNLIMITED),
    Resource.DATA_RETENTION_DAYS: (7, 30, 90, 365),
    Resource.STORAGE_MB: (100, 1_000, 10_000, UNLIMITED),
}


def _times(runs: tuple[int | None, ...]) -> tuple[int | None, ...]:
    return tuple(None if each is None else each * MESSAGES_PER_RUN for each in runs)


LIMITS: Mapping[Resource, tuple[int | None, ...]] = {
    **_COUNTED,
    Resource.MESSAGES_PER_HOUR: _times(_COUNTED[Resource.RUNS_PER_HOUR]),
    Resource.MESSAGES_PER_DAY: _times(_COUNTED[Resource.RUNS_PER_DAY]),
}
"""Resource → limit of each `Tier`, in their order; None: unlimited."""


def tier_of(name: str) -> Tier:
    """Raises `ConfigurationError`."""
    try:
        return Tier(name)
    except ValueError:
        raise ConfigurationError(
            f"tier {name!r} is not valid: choose from {', '.join(Tier)}",
            field="tier",
            value=name,
            valid=list(Tier),
        ) from None


def limits_of(tier: Tier) -> dict[Resource, int | None]:
    """What the tier allows; None: unlimited."""
    place = list(Tier).index(tier)
    return {resource: allowed[place] for resource, allowed in LIMITS.items()}
