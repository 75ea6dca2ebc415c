"""Making, listing, revoking and checking API keys."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import psycopg
from psycopg.rows import class_row
from uuid6 import uuid7

from continuitybridge import database
from continuitybridge.api_keys.holder import Holder, Scope
from continuitybridge.audit import record
from continuitybridge.errors import ConfigurationError, Conflict, NotAuthenticated, NotFound

PREFIX = "cb_"
"""How a key begins."""
MAX_DAYS = 3_650
MAX_NAME_CHARACTERS = 100
SHOWN_CHARACTERS = 9
"""So much of a key's beginning is kept, for people to tell keys by."""
USED_EVERY = timedelta(minutes=1)
"""How exact the time of the last use is."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it may be shown: of the key itself only its beginning."""

    key_id: UUID
    name: str
    beginning: str
    user_name: str
    scope: Scope
    created_at: datetime
    created_by: str
    expires_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made; `key` is not shown again."""

    key: str
    shown: ApiKey


_COLUMNS = (
    "key_id, name, beginning, user_name, scope, created_at, created_by, expires_at, last_used_at, revoked_at"
)


def create(
    organization_id: UUID, name: str, *, user_name: str, scope: Scope = "read", days: int = 365, by: str
) -> NewKey:
    """Make a key that acts as `user_name` in this organization, as far as `scope` goes, for so many days.

    Raises `ConfigurationError` for bad input, `Conflict` when a living key bears the name.
    """
    if not 0 < len(name.strip()) <= MAX_NAME_CHARACTERS:
        raise ConfigurationError(f"a name has 1 to {MAX_NAME_CHARACTERS} characters", field="name", value=name)
    if scope not in ("read", "write"):
        raise ConfigurationError("scope is read or write", field="scope", value=scope)
    if not 1 <= days <= MAX_DAYS:
        raise ConfigurationError(f"a key lives 1 to {MAX_DAYS} days", field="days", value=days)
    key, key_id = PREFIX + secrets.token_urlsafe(32), uuid7()
    try:
        with database.tenant(organization_id) as connection:
            connection.execute(
                "INSERT INTO bridge.api_keys (organization_id, key_id, hash, name, beginning, user_name, scope,"
                " created_by, expires_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, now() + %s)",
                (
                    *(organization_id, key_id, _hash(key), name.strip(), key[:SHOWN_CHARACTERS], user_name, scope),
                    *(by, timedelta(days=days)),
                ),
            )
            details = {"name": name.strip(), "scope": scope, "days": days}
            record(connection, organization_id, "api_key.created", str(key_id), details=details, by=by)
    except psycopg.errors.UniqueViolation:
        raise Conflict(f"there is a key {name.strip()!r}: revoke it first", field="name", value=name) from None
    return NewKey(key, _one(organization_id, key_id))


def list_keys(organization_id: UUID) -> list[ApiKey]:
    """The organization's keys, newest first, those that are over too."""
    with (
        database.tenant(organization_id) as connection,
        connection.cursor(row_factory=class_row(ApiKey)) as cursor,
    ):
        cursor.execute(
            f"SELECT {_COLUMNS} FROM bridge.api_keys"  # noqa: S608  (our own names)
            " WHERE organization_id = %s ORDER BY key_id DESC",
            (organization_id,),
        )
        return cursor.fetchall()


def revoke(organization_id: UUID, key_id: UUID, *, by: str) -> ApiKey:
    """End a key: it opens nothing at the next request. Once more changes nothing. Raises `NotFound`."""
    with database.tenant(organization_id) as connection:
        ended = connection.execute(
            "UPDATE bridge.api_keys SET revoked_at = now(), revoked_by = %s"
            " WHERE organization_id = %s AND key_id = %s AND revoked_at IS NULL",
            (by, organization_id, key_id),
        ).rowcount
        if ended:
            record(connection, organization_id, "api_key.revoked", str(key_id), by=by)
    return _one(organization_id, key_id)


def verify(key: str) -> Holder:
    """Whose key it is, asked of the table each time. Raises `NotAuthenticated` alike for one that never was, is
    expired or revoked, or whose organization is being deleted; `Unavailable`."""
    with database.platform() as connection:
        row = connection.execute(
            "SELECT k.key_id, k.organization_id, o.slug, k.user_name, k.scope,"
            " k.last_used_at IS NULL OR k.last_used_at < now() - %s FROM bridge.api_keys k"
            " JOIN bridge.organizations o USING (organization_id)"
            " WHERE k.hash = %s AND k.revoked_at IS NULL AND k.expires_at > now() AND o.status <> 'deleting'",
            (USED_EVERY, _hash(key)),
        ).fetchone()
        if row is None:
            raise NotAuthenticated("the API key does not hold: it is wrong, expired or revoked")
        *found, to_note = row
        holder = Holder(*found)
        if to_note:
            connection.execute(
                "UPDATE bridge.api_keys SET last_used_at = now() WHERE organization_id = %s AND key_id = %s",
                (holder.organization_id, holder.key_id),
            )
    return holder


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _one(organization_id: UUID, key_id: UUID) -> ApiKey:
    found = next((each for each in list_keys(organization_id) if each.key_id == key_id), None)
    if found is None:
        raise NotFound(f"no API key {key_id}", field="key_id", value=str(key_id))
    return found
