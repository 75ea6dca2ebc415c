"""Naming, listing and removing ecosystems and systems; saying which system a connection leads to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args
from uuid import UUID

import psycopg
from psycopg.rows import class_row

from continuitybridge import database
from continuitybridge.audit import record
from continuitybridge.errors import ConfigurationError, Conflict, NotFound

Kind = Literal["erp", "marketplace", "wms", "tms", "3pl", "last_mile", "custom"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Ecosystem:
    """One of the things that an organization works with; `name` is what people read."""

    ecosystem: str
    kind: Kind
    name: str
    systems: int


@dataclass(frozen=True, slots=True)
class System:
    """One installation in one environment, and the connections that lead there."""

    environment: str
    system: str
    ecosystem: str
    kind: Kind
    name: str
    connections: list[str]


T = TypeVar("T", Ecosystem, System)


def put_ecosystem(organization_id: UUID, ecosystem: str, *, kind: str, name: str, by: str) -> Ecosystem:
    """Name an ecosystem, or change one. Raises `ConfigurationError`."""
    _check("ecosystem", ecosystem, name)
    if kind not in KINDS:
        raise ConfigurationError(
            f"kind {kind!r} is not valid: choose from {', '.join(KINDS)}",
            field="kind",
            value=kind,
            valid=list(KINDS),
        )
    with database.tenant(organization_id) as connection:
        connection.execute(
            "INSERT INTO bridge.ecosystems (organization_id, ecosystem, kind, name) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (organization_id, ecosystem) DO UPDATE SET kind = excluded.kind, name = excluded.name",
            (organization_id, ecosystem, kind, name.strip()),
        )
        record(connection, organization_id, "ecosystem.changed", ecosystem, details={"kind": kind}, by=by)
    return _the(ecosystems(organization_id), "ecosystem", ecosystem)


def ecosystems(organization_id: UUID) -> list[Ecosystem]:
    """The organization's ecosystems by name, with the number of their systems."""
    with (
        database.tenant(organization_id) as connection,
        connection.cursor(row_factory=class_row(Ecosystem)) as cursor,
    ):
        cursor.execute(
            "SELECT e.ecosystem, e.kind, e.name, count(s.system) AS systems FROM bridge.ecosystems e"
            " LEFT JOIN bridge.systems s USING (organization_id, ecosystem) WHERE e.organization_id = %s"
            " GROUP BY e.organization_id, e.ecosystem ORDER BY e.ecosystem",
            (organization_id,),
        )
        return cursor.fetchall()


def remove_ecosystem(organization_id: UUID, ecosystem: str, *, by: str) -> None:
    """Raises `NotFound`; `Conflict` while it has systems."""
    try:
        with database.tenant(organization_id) as connection:
            removed = connection.execute(
                "DELETE FROM bridge.ecosystems WHERE organization_id = %s AND ecosystem = %s",
                (organization_id, ecosystem),
            ).rowcount
            if removed:
                record(connection, organization_id, "ecosystem.removed", ecosystem, by=by)
    except psycopg.errors.ForeignKeyViolation:
        raise Conflict(
            f"the ecosystem {ecosystem!r} has systems: remove them first", field="ecosystem", value=ecosystem
        ) from None
    if not removed:
        raise NotFound(f"no ecosystem {ecosystem!r}", field="ecosystem", value=ecosystem)


def put_system(
    organization_id: UUID, environment: str, system: str, *, ecosystem: str, name: str, by: str
) -> System:
    """Name a system of an ecosystem in an environment, or change one. Raises `ConfigurationError` naming the
    field, `QuotaExceeded` (`system_instances`, `account_systems`)."""
    _check("system", system, name)
    with database.tenant(organization_id) as connection:
        for field, value in (("ecosystem", ecosystem), ("environment", environment)):
            known = connection.execute(
                f"SELECT {field} FROM bridge.{field}s WHERE organization_id = %s",  # noqa: S608  (our own names)
                (organization_id,),
            ).fetchall()
            if (value,) not in known:
                raise ConfigurationError(
                    f"the organization has no {field} {value!r}",
                    field=field,
                    value=value,
                    valid=sorted(row[0] for row in known),
                )
        connection.execute(
            "INSERT INTO bridge.systems (organization_id, environment, system, ecosystem, name)"
            " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (organization_id, environment, system)"
            " DO UPDATE SET ecosystem = excluded.ecosystem, name = excluded.name",
            (organization_id, environment, system, ecosystem, name.strip()),
        )
        details = {"ecosystem": ecosystem}
        record(
            connection, organization_id, "system.changed", system, environment=environment, details=details, by=by
        )
    return _the(systems(organization_id, environment), "system", system)


def systems(organization_id: UUID, environment: str | None = None) -> list[System]:
    """The organization's systems by environment and name."""
    with (
        database.tenant(organization_id) as connection,
        connection.cursor(row_factory=class_row(System)) as cursor,
    ):
        cursor.execute(
            "SELECT s.environment, s.system, s.ecosystem, e.kind, s.name, array(SELECT c.name"
            " FROM bridge.connections c WHERE c.organization_id = s.organization_id"
            " AND c.environment = s.environment AND c.system = s.system ORDER BY c.name) AS connections"
            " FROM bridge.systems s JOIN bridge.ecosystems e USING (organization_id, ecosystem)"
            " WHERE s.organization_id = %(organization)s"
            " AND (%(environment)s::text IS NULL OR s.environment = %(environment)s)"
            " ORDER BY s.environment, s.system",
            {"organization": organization_id, "environment": environment},
        )
        return cursor.fetchall()


def remove_system(organization_id: UUID, environment: str, system: str, *, by: str) -> None:
    """Raises `NotFound`; `Conflict` while a connection leads there."""
    try:
        with database.tenant(organization_id) as connection:
            removed = connection.execute(
                "DELETE FROM bridge.systems WHERE organization_id = %s AND environment = %s AND system = %s",
                (organization_id, environment, system),
            ).rowcount
            if removed:
                record(connection, organization_id, "system.removed", system, environment=environment, by=by)
    except psycopg.errors.ForeignKeyViolation:
        raise Conflict(
            f"connections lead to the system {system!r}: part them first", field="system", value=system
        ) from None
    if not removed:
        raise NotFound(f"no system {system!r} in {environment}", field="system", value=system)


def connect(organization_id: UUID, environment: str, connection: str, system: str | None, *, by: str) -> None:
    """Say that a connection leads to a system; None: to none in particular. Raises `NotFound` for either."""
    try:
        with database.tenant(organization_id) as transaction:
            done = transaction.execute(
                "UPDATE bridge.connections SET system = %s WHERE organization_id = %s AND environment = %s"
                " AND name = %s",
                (system, organization_id, environment, connection),
            ).rowcount
            if done:
                details = {"system": system}
                record(
                    transaction, organization_id, "connection.system_changed", connection,
                    environment=environment, details=details, by=by,
                )  # fmt: skip
    except psycopg.errors.ForeignKeyViolation:
        raise NotFound(f"no system {system!r} in {environment}", field="system", value=system) from None
    if not done:
        raise NotFound(f"no connection {connection!r} in {environment}", field="connection", value=connection)


def _check(field: str, value: str, name: str) -> None:
    if not _NAME.fullmatch(value):
        raise ConfigurationError(
            f"{field} {value!r} is not valid: lower-case letters, digits, hyphens and underscores, beginning with"
            " a letter, at most 64 characters",
            field=field,
            value=value,
        )
    if not 0 < len(name.strip()) <= 200:
        raise ConfigurationError("a name has 1 to 200 characters", field="name", value=name)


def _the(found: list[T], field: str, value: str) -> T:
    for each in found:
        if getattr(each, field) == value:
            return each
    raise NotFound(f"no {field} {value!r}", field=field, value=value)
