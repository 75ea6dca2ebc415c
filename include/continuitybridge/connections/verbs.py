"""Named connections: where a node delivers and with what credentials.

The address and other plain settings are readable by the organization's members; credentials are encrypted under
the organization's data key, bound to organization, environment, name and revision, and no listing returns them.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from psycopg import Connection
from psycopg.rows import class_row
from psycopg.types.json import Jsonb
from pydantic import AnyHttpUrl, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from continuitybridge import database, organizations, secrets
from continuitybridge.audit import record
from continuitybridge.connections.auth import (
    NEEDS_TOKEN,
    Auth,
    Declared,
    NoAuth,
    SecretAuth,
    from_data,
    revealed,
)
from continuitybridge.connections.drawn import drawn
from continuitybridge.errors import ConfigurationError, EgressRefused, NotFound
from continuitybridge.nodes.base import ConnectionInfo
from continuitybridge.nodes.http import address
from continuitybridge.vault.columns import EncryptedColumn
from continuitybridge.vault.keyring import Cipher, Keyring

CHANNEL = "bridge_connections"
"""NOTIFY channel; the payload is `<organization_id>/<environment>`: a connection there changed."""
PURPOSE = "connection"
"""What the ciphertext's associated data says it is for."""

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")


class HttpConnection(Declared):
    """An HTTP destination: `base_url` is joined with a node's path; `headers` go with every request."""

    base_url: AnyHttpUrl
    headers: dict[str, str] = Field(default_factory=dict)
    auth: Auth = NoAuth()


@dataclass(frozen=True)
class StoredConnection:
    """What a listing shows of a connection: no credential."""

    environment: str
    name: str
    type: str
    settings: dict[str, Any]
    revision: int
    updated_at: datetime
    updated_by: str


def put(
    organization_id: UUID,
    environment: str,
    name: str,
    definition: HttpConnection | dict[str, Any],
    by: str,
    *,
    keyring: Keyring | None = None,
) -> StoredConnection:
    """Create or replace a connection; running flows use it from their next run, stream workers
    within a moment.

    Raises `ConfigurationError` naming each bad field (never its value: it may be a secret), also where the address
    shows that the platform does not call it; `NotFound` for an unknown environment.
    """
    if not isinstance(definition, HttpConnection):
        try:
            definition = TypeAdapter(HttpConnection).validate_python(definition)
        except ValidationError as error:
            problems = [
                {"field": ".".join(map(str, item["loc"])), "message": item["msg"]}
                for item in error.errors(include_input=False, include_url=False)
            ]
            text = "; ".join(f"{item['field']}: {item['message']}" for item in problems)
            raise ConfigurationError(f"connection {name!r} is not valid: {text}", problems=problems) from None
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"name {name!r} is not valid: lower-case letters, digits, _ and -, beginning with a letter, "
            "at most 64 characters",
            field="name",
            value=name,
        )
    _check_address("base_url", str(definition.base_url))
    keyring = keyring or Keyring.open()
    auth = definition.auth
    settings: dict[str, Any] = {"base_url": str(definition.base_url), "headers": definition.headers}
    if isinstance(auth, SecretAuth):
        settings["secret"] = auth.secret
        auth = drawn(auth, secrets.resolve(organization_id, environment, auth.secret, keyring))
    for field, url in getattr(auth, "addresses", tuple)():
        _check_address(field, url)
    # How it authenticates in the end, whoever gives what it takes.
    settings["auth"] = auth.type
    if (grant := getattr(auth, "grant", None)) is not None:
        settings["grant"] = grant
    with database.tenant(organization_id) as connection:
        organizations.require_environment(connection, organization_id, environment)
        row = connection.execute(
            "SELECT revision FROM bridge.connections WHERE organization_id = %s AND environment = %s"
            " AND name = %s FOR UPDATE",
            (organization_id, environment, name),
        ).fetchone()
        revision = row[0] + 1 if row else 1
        ciphertext = keyring.encrypt(
            organization_id,
            PURPOSE,
            _bound_to(environment, name, revision),
            orjson.dumps(revealed(definition.auth)),
        )
        connection.execute(
            "INSERT INTO bridge.connections (organization_id, environment, name, type, settings, ciphertext,"
            " revision, updated_by) VALUES (%s, %s, %s, 'http', %s, %s, %s, %s)"
            " ON CONFLICT (organization_id, environment, name) DO UPDATE SET type = excluded.type,"
            " settings = excluded.settings, ciphertext = excluded.ciphertext, revision = excluded.revision,"
            " updated_at = now(), updated_by = excluded.updated_by",
            (organization_id, environment, name, Jsonb(settings), ciphertext, revision, by),
        )
        _notify(connection, organization_id, environment)
        record(
            connection,
            organization_id,
            "connection.changed" if row else "connection.created",
            name,
            environment=environment,
            details={"revision": revision, "base_url": settings["base_url"], "auth": settings["auth"]},
            by=by,
            keys=keyring,
        )
    return _one(organization_id, environment, name)


def _check_address(field: str, url: str) -> None:
    try:
        address.parse(url)
        address.check(url)
    except ValueError as error:
        raise ConfigurationError(f"{field}: {error}", field=field) from None
    except EgressRefused as error:
        raise ConfigurationError(f"{field}: {error.detail}", field=field) from None


def remove(organization_id: UUID, environment: str, name: str) -> None:
    """Delete a connection; raises `NotFound`. Flows that name it fail terminally until it is back."""
    with database.tenant(organization_id) as connection:
        gone = connection.execute(
            "DELETE FROM bridge.connections WHERE organization_id = %s AND environment = %s AND name = %s",
            (organization_id, environment, name),
        ).rowcount
        _notify(connection, organization_id, environment)
        if gone:
            record(connection, organization_id, "connection.removed", name, environment=environment)
    if not gone:
        raise NotFound(f"no connection {name!r} in {environment}", field="name", value=name)


def list_connections(organization_id: UUID, environment: str | None = None) -> list[StoredConnection]:
    """The organization's connections without their credentials, by environment and name."""
    with (
        database.tenant(organization_id) as connection,
        connection.cursor(row_factory=class_row(StoredConnection)) as cursor,
    ):
        cursor.execute(
            "SELECT environment, name, type, settings, revision, updated_at, updated_by"
            " FROM bridge.connections WHERE organization_id = %(organization)s"
            " AND (%(environment)s::text IS NULL OR environment = %(environment)s)"
            " ORDER BY environment, name",
            {"organization": organization_id, "environment": environment},
        )
        return cursor.fetchall()


@dataclass(frozen=True)
class Definition:
    """A connection as it is stored. `auth` is the model of how it authenticates: it holds secrets. `revision` is
    another after each change, of the secret too on which it draws; `until`: when it is to be read again, in
    seconds since the epoch, because its secret ends then or stands `outside`."""

    name: str
    revision: int
    base_url: str
    headers: dict[str, str] = Field(repr=False)
    auth: Any = Field(repr=False)
    until: float | None = None
    outside: bool = False


def read(organization_id: UUID, environment: str, name: str, keys: Cipher) -> Definition:
    """A connection with its credentials. Raises `NotFound`; where a stored secret is its credential, as
    `secrets.resolve`."""
    with database.tenant(organization_id) as connection:
        row = connection.execute(
            "SELECT settings, ciphertext, revision FROM bridge.connections"
            " WHERE organization_id = %s AND environment = %s AND name = %s",
            (organization_id, environment, name),
        ).fetchone()
    if row is None:
        raise NotFound(
            f"no connection {name!r} in {environment}; make it with `bridge connection set {name}`",
            field="connection",
            value=name,
        )
    settings, ciphertext, revision = row
    auth = orjson.loads(keys.decrypt(organization_id, PURPOSE, _bound_to(environment, name, revision), ciphertext))
    found, until, outside = from_data(auth), None, False
    if isinstance(found, SecretAuth):
        secret = secrets.resolved(organization_id, environment, found.secret, keys)
        until, outside = secret.until, secret.outside
        found = drawn(found, secret.value)
        if settings["auth"] not in ("secret", found.type):
            raise ConfigurationError(
                f"secret {auth['secret']!r} is of another type now: set the connection again",
                connection=name,
            )
        for field, url in getattr(found, "addresses", tuple)():
            _check_address(field, url)
        # Another value of the secret is a change of the connection, also one that changed in a store outside, or
        # that has the number of one that was removed.
        of = orjson.dumps([revision, secret.version, secret.value.revealed()], option=orjson.OPT_SORT_KEYS)
        revision = int.from_bytes(keys.fingerprint(organization_id, of)[-4:], "big") >> 1
    return Definition(name, revision, settings["base_url"], settings.get("headers", {}), found, until, outside)


def resolve(organization_id: UUID, environment: str, name: str, keys: Cipher) -> ConnectionInfo:
    """A connection with its credentials, for the node that delivers by it. Raises `NotFound`, and
    `ConfigurationError` where the credential is a token (`tokens.resolve` obtains it)."""
    found = read(organization_id, environment, name, keys)
    if found.auth.type in NEEDS_TOKEN:
        raise ConfigurationError(f"the connection {name!r} authenticates by a token", connection=name)
    return ConnectionInfo(name, found.base_url, found.headers, revealed(found.auth), found.until)


def announce(connection: Connection[Any], organization_id: UUID, environment: str) -> None:
    """Tell who keeps the environment's connections, when the transaction commits, that they changed."""
    _notify(connection, organization_id, environment)


def _notify(connection: Connection[Any], organization_id: UUID, environment: str) -> None:
    connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, f"{organization_id}/{environment}"))


def _bound_to(environment: str, name: str, revision: int) -> str:
    return f"{environment}/{name}/{revision}"


def _one(organization_id: UUID, environment: str, name: str) -> StoredConnection:
    return next(item for item in list_connections(organization_id, environment) if item.name == name)


COLUMNS = (
    EncryptedColumn(
        "connections",
        "ciphertext",
        ("environment", "name"),
        PURPOSE,
        lambda row: _bound_to(row["environment"], row["name"], row["revision"]),
        more=("revision",),
    ),
)
"""What of this room's tables is encrypted."""
