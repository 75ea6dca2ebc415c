"""Organizations and their environments.

Creating and listing across organizations runs as the platform role, which sees nothing else of theirs; what
serves one person runs as the application role under row-level security.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import class_row
from uuid6 import uuid7

from continuitybridge import database
from continuitybridge.audit import record
from continuitybridge.database.connections import Connection
from continuitybridge.errors import ConfigurationError, Conflict, NotFound
from continuitybridge.organizations import quotas
from continuitybridge.organizations.tiers import DEFAULT_TIER, tier_of
from continuitybridge.vault.keyring import DataKeys, Keyring

ENVIRONMENTS = ("dev", "test", "staging", "prod")
_SLUG = re.compile(r"[a-z][a-z0-9-]{0,39}")


@dataclass(frozen=True, slots=True)
class Organization:
    """One tenant. `slug` is its name in DAG ids and addresses and never changes."""

    organization_id: UUID
    slug: str
    name: str
    status: str
    tier: str


def create(
    slug: str,
    name: str,
    *,
    environments: Sequence[str] = ENVIRONMENTS,
    tier: str = DEFAULT_TIER,
    keyring: Keyring | None = None,
    by: str | None = None,
) -> Organization:
    """Make an organization with its environments, its quotas and its first data key, in one transaction.

    Raises `ConfigurationError` for a bad slug, environment or tier, `Conflict` when the slug is taken.
    """
    with making(slug, name, environments=environments, tier=tier, keyring=keyring, by=by) as (_, made, _):
        return made


@contextmanager
def making(
    slug: str,
    name: str,
    *,
    environments: Sequence[str] = ENVIRONMENTS,
    tier: str = DEFAULT_TIER,
    keyring: Keyring | None = None,
    by: str | None = None,
) -> Iterator[tuple[Connection, Organization, DataKeys]]:
    """As `create`, for what else belongs into the same transaction (platform role): the organization is there,
    with the data keys given, when the block ends. Raises as `create`."""
    _check(slug, name, environments)
    wanted = tier_of(tier)
    keyring = keyring or Keyring.open()
    organization_id = uuid7()
    try:
        with database.platform() as connection:
            gone = connection.execute("SELECT 1 FROM bridge.deletions WHERE slug = %s", (slug,)).fetchone()
            if gone is not None:
                # Addresses, DAG ids, backups and logs of the former bear it.
                raise Conflict(f"an organization {slug!r} was deleted: choose another", field="slug", value=slug)
            connection.execute(
                "INSERT INTO bridge.organizations (organization_id, slug, name, tier) VALUES (%s, %s, %s, %s)",
                (organization_id, slug, name, wanted.value),
            )
            quotas.apply(connection, organization_id, wanted)
            with connection.cursor() as cursor:
                cursor.executemany(
                    "INSERT INTO bridge.environments (organization_id, environment) VALUES (%s, %s)",
                    [(organization_id, environment) for environment in dict.fromkeys(environments)],
                )
            keyring.create_key(connection, organization_id)
            keys = keyring.read(connection, organization_id)
            record(connection, organization_id, "organization.created", slug, keys=keys, by=by)
            yield connection, Organization(organization_id, slug, name, "active", wanted.value), keys
    except psycopg.errors.UniqueViolation:
        raise Conflict(f"an organization with the slug {slug!r} exists", field="slug", value=slug) from None


def _check(slug: str, name: str, environments: Sequence[str]) -> None:
    if not _SLUG.fullmatch(slug):
        raise ConfigurationError(
            f"slug {slug!r} is not valid: lower-case letters, digits and hyphens, beginning with a letter, "
            "at most 40 characters",
            field="slug",
            value=slug,
        )
    if not name.strip():
        raise ConfigurationError("name must not be empty", field="name", value=name)
    unknown = [environment for environment in environments if environment not in ENVIRONMENTS]
    if unknown or not environments:
        raise ConfigurationError(
            f"environments {unknown or 'empty'} are not valid: choose from {', '.join(ENVIRONMENTS)}",
            field="environments",
            value=list(environments),
        )


def by_slug(slug: str) -> Organization:
    """The organization of that slug; raises `NotFound`. For the platform's own callers: a person's request
    goes through `memberships` first."""
    with database.platform() as connection, connection.cursor(row_factory=class_row(Organization)) as cursor:
        cursor.execute(
            "SELECT organization_id, slug, name, status, tier FROM bridge.organizations WHERE slug = %s", (slug,)
        )
        found = cursor.fetchone()
    if found is None:
        raise NotFound(f"no organization {slug!r}", field="organization", value=slug)
    return found


def list_all() -> list[Organization]:
    """Every organization, by slug: for the superadmin and the platform's own callers."""
    with database.platform() as connection, connection.cursor(row_factory=class_row(Organization)) as cursor:
        cursor.execute("SELECT organization_id, slug, name, status, tier FROM bridge.organizations ORDER BY slug")
        return cursor.fetchall()


def require_environment(connection: psycopg.Connection[Any], organization_id: UUID, environment: str) -> None:
    """Raise `NotFound` when the organization has no such environment, in the caller's transaction."""
    known = connection.execute(
        "SELECT FROM bridge.environments WHERE organization_id = %s AND environment = %s",
        (organization_id, environment),
    ).fetchone()
    if known is None:
        raise NotFound(
            f"the organization has no environment {environment!r}", field="environment", value=environment
        )


def environments(organization_id: UUID) -> list[str]:
    """The organization's environments, in the order of `ENVIRONMENTS`."""
    with database.tenant(organization_id) as connection:
        found = {row[0] for row in connection.execute("SELECT environment FROM bridge.environments")}
    return [environment for environment in ENVIRONMENTS if environment in found]


def add_environment(organization_id: UUID, environment: str, *, by: str) -> None:
    """Give the organization an environment; one that it has stays. Raises `ConfigurationError`, `QuotaExceeded`,
    `Conflict` for an organization that is being deleted."""
    if environment not in ENVIRONMENTS:
        raise ConfigurationError(
            f"environment {environment!r} is not valid: choose from {', '.join(ENVIRONMENTS)}",
            field="environment",
            value=environment,
            valid=list(ENVIRONMENTS),
        )
    with database.platform() as connection:
        row = connection.execute(
            "SELECT status FROM bridge.organizations WHERE organization_id = %s FOR KEY SHARE", (organization_id,)
        ).fetchone()
        if row is None or row[0] == "deleting":
            raise Conflict("the organization is being deleted", field="organization")
        new = connection.execute(
            "INSERT INTO bridge.environments (organization_id, environment) VALUES (%s, %s)"
            " ON CONFLICT DO NOTHING",
            (organization_id, environment),
        ).rowcount
        if new:
            record(connection, organization_id, "environment.added", environment, environment=environment, by=by)
