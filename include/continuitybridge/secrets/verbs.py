"""Stored secrets: put, read, rolled back, switched off.

Each `put` makes a version; the current one is what flows get. All of a secret is encrypted under the
organization's data key, bound to organization, environment, name and version, so that a row put in another's place
does not open. No verb but `resolve` gives a value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from psycopg import Connection
from psycopg.rows import class_row

from continuitybridge import database, organizations
from continuitybridge.audit import record
from continuitybridge.errors import ConfigurationError, Conflict, Gone, NotFound
from continuitybridge.secrets import references, types
from continuitybridge.vault.columns import EncryptedColumn
from continuitybridge.vault.keyring import Cipher, Keyring

PURPOSE = "secret"
"""What the ciphertext's associated data says it is for."""
CONNECTIONS_CHANNEL = "bridge_connections"
"""NOTIFY channel of the room `connections`, some of which take their credential from here: the payload is
`<organization_id>/<environment>`."""
KEPT_VERSIONS = 10
"""So many versions of a secret are kept, the newest and the current one among them."""
MAX_ROTATION_DAYS = 3_650
MAX_DESCRIPTION_CHARACTERS = 300

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")


class SecretSwitchedOff(Gone):
    """The secret is disabled, or over; facts: `secret`. Nothing is called with it."""

    code = "secret-switched-off"
    title = "The secret is switched off or over"


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """What a listing shows of a secret: no value. `version` is the current one, `versions` how many are kept;
    `expires_at` is that of the current version."""

    environment: str
    name: str
    type: str
    description: str
    enabled: bool
    version: int
    versions: int
    expires_at: datetime | None
    rotate_every_days: int | None
    rotation_due_at: datetime | None
    last_rotated_at: datetime
    updated_at: datetime
    updated_by: str


@dataclass(frozen=True, slots=True)
class SecretVersion:
    """One version of a secret, without its value."""

    version: int
    current: bool
    expires_at: datetime | None
    created_at: datetime
    created_by: str


_SELECT = """
SELECT s.environment, s.name, s.type, s.description, s.enabled, s.current_version AS version,
       (SELECT count(*) FROM bridge.secret_versions c WHERE c.organization_id = s.organization_id
        AND c.environment = s.environment AND c.name = s.name) AS versions,
       v.expires_at, s.rotate_every_days, s.rotation_due_at, s.last_rotated_at, s.updated_at, s.updated_by
FROM bridge.secrets s
JOIN bridge.secret_versions v ON v.organization_id = s.organization_id AND v.environment = s.environment
 AND v.name = s.name AND v.version = s.current_version
WHERE s.organization_id = %(organization)s AND (%(environment)s::text IS NULL OR s.environment = %(environment)s)
  AND (%(name)s::text IS NULL OR s.name = %(name)s)
ORDER BY s.environment, s.name
"""
_PLACE = "organization_id = %(organization)s AND environment = %(environment)s AND name = %(name)s"


def put(
    organization_id: UUID,
    environment: str,
    name: str,
    type: str,
    value: Mapping[str, Any] | types.SecretValue | references.Referred,
    by: str,
    *,
    expires_at: datetime | None = None,
    rotate_every_days: int | None = None,
    description: str | None = None,
    keyring: Cipher | None = None,
) -> StoredSecret:
    """Make a secret, or a new current version of it; flows use it from their next look-up on.

    `value` holds the type's fields, or is a reference (`references.parse`) to where they are. `rotate_every_days`
    and `description` stay as they are where they are None. Raises `ConfigurationError` naming
    each bad field (never its value), `NotFound` for an unknown environment, `Conflict` where the name belongs to a
    secret of another type.
    """
    found = types.parse(type, value) if isinstance(value, Mapping) else value
    _check(name, expires_at, rotate_every_days, description)
    keyring = keyring or Keyring.open()
    place = {"organization": organization_id, "environment": environment, "name": name}
    with database.tenant(organization_id) as connection:
        organizations.require_environment(connection, organization_id, environment)
        new = connection.execute(
            "INSERT INTO bridge.secrets (organization_id, environment, name, type, updated_by)"
            " VALUES (%(organization)s, %(environment)s, %(name)s, %(type)s, %(by)s) ON CONFLICT DO NOTHING",
            {**place, "type": found.TYPE, "by": by},
        ).rowcount
        [(stored_type, last)] = connection.execute(
            f"SELECT type, last_version FROM bridge.secrets WHERE {_PLACE} FOR UPDATE",  # noqa: S608
            place,
        )
        if stored_type != found.TYPE:
            raise Conflict(
                f"secret {name!r} in {environment} is of type {stored_type}: remove it first, or take another",
                field="type",
                value=found.TYPE,
                valid=stored_type,
            )
        version = last + 1
        ciphertext = keyring.encrypt(
            organization_id, PURPOSE, bound_to(environment, name, version), found.to_json()
        )
        facts = {**place, "version": version, "by": by, "description": description, "days": rotate_every_days}
        connection.execute(
            "INSERT INTO bridge.secret_versions (organization_id, environment, name, version, ciphertext,"
            " expires_at, created_by) VALUES (%(organization)s, %(environment)s, %(name)s, %(version)s,"
            " %(ciphertext)s, %(expires)s, %(by)s)",
            {**facts, "ciphertext": ciphertext, "expires": expires_at},
        )
        connection.execute(
            "UPDATE bridge.secrets SET current_version = %(version)s, last_version = %(version)s,"  # noqa: S608
            " rotate_every_days = coalesce(%(days)s, rotate_every_days), last_rotated_at = now(),"
            " rotation_due_at = now() + make_interval(days => coalesce(%(days)s, rotate_every_days)),"
            " description = coalesce(%(description)s, description), reminded_of = '', updated_at = now(),"
            f" updated_by = %(by)s WHERE {_PLACE}",
            facts,
        )
        connection.execute(
            f"DELETE FROM bridge.secret_versions WHERE {_PLACE} AND version <= %(version)s - %(kept)s",  # noqa: S608
            {**facts, "kept": KEPT_VERSIONS},
        )
        _notify(connection, place)
        record(
            connection,
            organization_id,
            "secret.created" if new else "secret.changed",
            name,
            environment=environment,
            details={"type": found.TYPE, "version": version, **_refers(found)},
            by=by,
            keys=keyring,
        )
        return _one(connection, place)


def roll_back(organization_id: UUID, environment: str, name: str, version: int, by: str) -> StoredSecret:
    """Make a version that is kept the current one. Raises `NotFound`, and `ConfigurationError` for a version that
    is over."""
    place = {"organization": organization_id, "environment": environment, "name": name}
    with database.tenant(organization_id) as connection:
        _locked(connection, place)
        row = connection.execute(
            f"SELECT expires_at <= now() FROM bridge.secret_versions WHERE {_PLACE} AND version = %(version)s",  # noqa: S608
            {**place, "version": version},
        ).fetchone()
        if row is None:
            raise NotFound(f"secret {name!r} has no version {version}", field="version", value=version)
        if row[0]:
            raise ConfigurationError(f"version {version} is over", field="version", value=version)
        connection.execute(
            "UPDATE bridge.secrets SET current_version = %(version)s, reminded_of = '', updated_at = now(),"  # noqa: S608
            f" updated_by = %(by)s WHERE {_PLACE}",
            {**place, "version": version, "by": by},
        )
        details = {"version": version}
        _notify(connection, place)
        record(
            connection,
            organization_id,
            "secret.rolled_back",
            name,
            environment=environment,
            details=details,
            by=by,
        )
        return _one(connection, place)


def switch(organization_id: UUID, environment: str, name: str, by: str, *, enabled: bool) -> StoredSecret:
    """Switch a secret on or off; switched off, it is given to nobody. Raises `NotFound`."""
    place = {"organization": organization_id, "environment": environment, "name": name}
    with database.tenant(organization_id) as connection:
        _locked(connection, place)
        connection.execute(
            "UPDATE bridge.secrets SET enabled = %(enabled)s, updated_at = now(), updated_by = %(by)s"  # noqa: S608
            f" WHERE {_PLACE}",
            {**place, "enabled": enabled, "by": by},
        )
        _notify(connection, place)
        action = "secret.enabled" if enabled else "secret.disabled"
        record(connection, organization_id, action, name, environment=environment, by=by)
        return _one(connection, place)


def remove(organization_id: UUID, environment: str, name: str, by: str) -> None:
    """Delete a secret with all its versions; raises `NotFound`."""
    place = {"organization": organization_id, "environment": environment, "name": name}
    with database.tenant(organization_id) as connection:
        gone = connection.execute(f"DELETE FROM bridge.secrets WHERE {_PLACE}", place).rowcount  # noqa: S608
        if not gone:
            raise _unknown(place)
        _notify(connection, place)
        record(connection, organization_id, "secret.removed", name, environment=environment, by=by)


def list_secrets(organization_id: UUID, environment: str | None = None) -> list[StoredSecret]:
    """The organization's secrets without their values, by environment and name. That they were looked at stands in
    the trail."""
    with database.tenant(organization_id) as connection:
        found = _select(connection, {"organization": organization_id, "environment": environment, "name": None})
        record(connection, organization_id, "secret.listed", "", environment=environment)
    return found


def get(organization_id: UUID, environment: str, name: str) -> StoredSecret:
    """One secret without its value; raises `NotFound`."""
    with database.tenant(organization_id) as connection:
        return _one(connection, {"organization": organization_id, "environment": environment, "name": name})


def versions(organization_id: UUID, environment: str, name: str) -> list[SecretVersion]:
    """Its versions, the newest first; that they were looked at stands in the trail. Raises `NotFound`."""
    place = {"organization": organization_id, "environment": environment, "name": name}
    with database.tenant(organization_id) as connection:
        current = _one(connection, place).version
        with connection.cursor(row_factory=class_row(SecretVersion)) as cursor:
            cursor.execute(
                "SELECT version, version = %(current)s AS current, expires_at, created_at, created_by"  # noqa: S608
                f" FROM bridge.secret_versions WHERE {_PLACE} ORDER BY version DESC",
                {**place, "current": current},
            )
            found = cursor.fetchall()
        record(connection, organization_id, "secret.listed", name, environment=environment)
    return found


def show(
    organization_id: UUID, environment: str, name: str, keys: Cipher
) -> types.SecretValue | references.Referred:
    """As `stored`, for a person who looks at what of it is no secret: that stands in the trail."""
    found = stored(organization_id, environment, name, keys)
    with database.tenant(organization_id) as connection:
        record(connection, organization_id, "secret.shown", name, environment=environment)
    return found


@dataclass(frozen=True, slots=True)
class Resolved:
    """A secret's value. `version` grows with each new one of the secret; `until`: when it is to be read again, in
    seconds since the epoch, because it ends then or stands `outside`."""

    value: types.SecretValue
    version: int
    until: float | None
    outside: bool = False


def resolve(organization_id: UUID, environment: str, name: str, keys: Cipher) -> types.SecretValue:
    """The current version in clear, for whoever calls with it; where it is a reference, what that leads to. Raises
    `NotFound`, `SecretSwitchedOff` for one that is disabled or over, and as `references.value_of`."""
    return resolved(organization_id, environment, name, keys).value


def resolved(organization_id: UUID, environment: str, name: str, keys: Cipher) -> Resolved:
    """As `resolve`, for whoever keeps it."""
    found, version, ends = _current(organization_id, environment, name, keys)
    if not isinstance(found, references.Referred):
        return Resolved(found, version, ends)
    value, until = references.value_until(organization_id, environment, name, found)
    return Resolved(value, version, until if ends is None else min(until, ends), outside=True)


def stored(
    organization_id: UUID, environment: str, name: str, keys: Cipher
) -> types.SecretValue | references.Referred:
    """The current version as it is kept: a reference is not followed. Raises as `resolve`."""
    return _current(organization_id, environment, name, keys)[0]


def _current(
    organization_id: UUID, environment: str, name: str, keys: Cipher
) -> tuple[types.SecretValue | references.Referred, int, float | None]:
    """With its version, and when it ends, in seconds since the epoch."""
    place = {"organization": organization_id, "environment": environment, "name": name}
    with database.tenant(organization_id) as connection:
        row = connection.execute(
            "SELECT s.enabled, v.expires_at, v.version, v.ciphertext FROM bridge.secrets s"
            " JOIN bridge.secret_versions v ON v.organization_id = s.organization_id"
            " AND v.environment = s.environment AND v.name = s.name AND v.version = s.current_version"
            " WHERE s.organization_id = %(organization)s AND s.environment = %(environment)s"
            " AND s.name = %(name)s",
            place,
        ).fetchone()
    if row is None:
        raise _unknown(place)
    enabled, expires_at, version, ciphertext = row
    if not enabled:
        raise SecretSwitchedOff(f"secret {name!r} in {environment} is disabled", secret=name)
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise SecretSwitchedOff(
            f"secret {name!r} in {environment} was valid until {expires_at:%Y-%m-%d %H:%M} UTC", secret=name
        )
    text = keys.decrypt(organization_id, PURPOSE, bound_to(environment, name, version), ciphertext)
    return references.read_stored(text), version, None if expires_at is None else expires_at.timestamp()


def _refers(found: types.SecretValue | references.Referred) -> dict[str, str]:
    if not isinstance(found, references.Referred):
        return {}
    return {"backend": found.reference.backend, "path": found.reference.path}


def bound_to(environment: str, name: str, version: int) -> str:
    """What a version's ciphertext is bound to, beside its organization."""
    return f"{environment}/{name}/{version}"


def _check(name: str, expires_at: datetime | None, rotate_every_days: int | None, description: str | None) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"name {name!r} is not valid: lower-case letters, digits, _ and -, beginning with a letter, "
            "at most 64 characters",
            field="name",
            value=name,
        )
    if expires_at is not None:
        if expires_at.tzinfo is None:
            raise ConfigurationError("expires_at needs its offset from UTC", field="expires_at")
        if expires_at <= datetime.now(UTC):
            raise ConfigurationError("expires_at is over already", field="expires_at", value=str(expires_at))
    if rotate_every_days is not None and not 1 <= rotate_every_days <= MAX_ROTATION_DAYS:
        raise ConfigurationError(
            f"rotate_every_days is from 1 to {MAX_ROTATION_DAYS}",
            field="rotate_every_days",
            value=rotate_every_days,
        )
    if description is not None and len(description) > MAX_DESCRIPTION_CHARACTERS:
        raise ConfigurationError(
            f"a description has at most {MAX_DESCRIPTION_CHARACTERS} characters", field="description"
        )


def _notify(connection: Connection[Any], place: Mapping[str, Any]) -> None:
    connection.execute(
        "SELECT pg_notify(%s, %s)", (CONNECTIONS_CHANNEL, f"{place['organization']}/{place['environment']}")
    )


def _locked(connection: Connection[Any], place: Mapping[str, Any]) -> None:
    row = connection.execute(f"SELECT FROM bridge.secrets WHERE {_PLACE} FOR UPDATE", place).fetchone()
    if row is None:
        raise _unknown(place)


def _one(connection: Connection[Any], place: Mapping[str, Any]) -> StoredSecret:
    found = _select(connection, place)
    if not found:
        raise _unknown(place)
    return found[0]


def _select(connection: Connection[Any], place: Mapping[str, Any]) -> list[StoredSecret]:
    with connection.cursor(row_factory=class_row(StoredSecret)) as cursor:
        cursor.execute(_SELECT, place)
        return cursor.fetchall()


def _unknown(place: Mapping[str, Any]) -> NotFound:
    return NotFound(
        f"no secret {place['name']!r} in {place['environment']}; make it with `bridge secret set`",
        field="name",
        value=place["name"],
    )


COLUMNS = (
    EncryptedColumn(
        "secret_versions",
        "ciphertext",
        ("environment", "name", "version"),
        PURPOSE,
        lambda row: bound_to(row["environment"], row["name"], row["version"]),
    ),
)
"""What of this room's tables is encrypted."""
