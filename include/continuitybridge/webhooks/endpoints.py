"""Endpoints: where messages of others come in, and the secrets by which they are believed.

A deployed flow's webhook triggers are its endpoints; `sync` keeps the two alike within the deploy's own
transaction. Every change bumps the endpoint's revision and NOTIFYs `bridge_endpoints`, so that each intake process
knows it when the transaction commits.

Secrets are encrypted under the organization's data key, bound to environment, slug and their own id. A secret
belongs to the address, not to the flow behind it: it outlives the endpoint's removal, so that rolling a flow back
does not lock its senders out, and it ends by rotation only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import orjson
from psycopg import Connection
from psycopg.types.json import Jsonb
from uuid6 import uuid7

from continuitybridge import database
from continuitybridge.audit import record
from continuitybridge.errors import ConfigurationError, Conflict, NotFound
from continuitybridge.nodes.triggers.webhook_trigger import WebhookTriggerConfig
from continuitybridge.vault.columns import EncryptedColumn
from continuitybridge.vault.keyring import Cipher, Keyring
from continuitybridge.webhooks.verification import Verifier, verifier

CHANNEL = "bridge_endpoints"
"""NOTIFY channel; the payload is `<organization_id>/<environment>/<slug>`."""

PURPOSE = "endpoint"
"""What a secret's ciphertext says it is for (associated data)."""

DEFAULT_OVERLAP_S = 24 * 3600
"""How long a replaced secret is still accepted unless the caller says otherwise, in seconds."""

Status = Literal["active", "disabled"]


@dataclass(frozen=True, slots=True)
class SecretInfo:
    """What may be shown of a secret: never its value. `expires_at` is None until it is rotated out."""

    secret_id: UUID
    created_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint. `status` is the switch of the endpoint itself; `flow_status` that of its deployment: it
    takes messages while both are active. `settings` are the trigger's, but for slug and kind of verification."""

    environment: str
    slug: str
    flow: str
    trigger_id: str
    verification: str
    status: str
    flow_status: str
    settings: Mapping[str, Any]
    created_at: datetime
    secrets: Sequence[SecretInfo] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Synced:
    """What a deploy did to a flow's endpoints. `new_secrets`: slug → secret made here, shown this once.
    `awaiting`: slugs whose provider gives the secret, which nobody has entered yet; they answer 503 until
    then."""

    new_secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    awaiting: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class NewSecret:
    """A secret that was put in place, and what should be said about it if anything."""

    secret: str = field(repr=False)
    warning: str | None = None


def sync(
    connection: Connection[Any],
    organization_id: UUID,
    environment: str,
    flow: str,
    triggers: Mapping[str, Mapping[str, Any]],
    *,
    keyring: Cipher,
) -> Synced:
    """Make a flow's endpoints what its webhook triggers (trigger id → configuration) say, in the caller's
    transaction; call it also when the deployment's version or status changed. An endpoint that somebody disabled
    stays disabled.

    Secrets that are made here are made when there is none for the endpoint's verification. Raises `Conflict`
    when a slug belongs to another flow of the environment, or twice to this one.
    """
    slugs: dict[str, str] = {}
    for trigger_id, given in triggers.items():
        if (twin := slugs.setdefault(given["slug"], trigger_id)) != trigger_id:
            raise Conflict(
                f"triggers {twin!r} and {trigger_id!r} of flow {flow!r} both have the slug {given['slug']!r}",
                field="slug",
                value=given["slug"],
            )
    gone = connection.execute(
        "DELETE FROM bridge.endpoints WHERE organization_id = %s AND environment = %s AND flow = %s"
        " AND NOT slug = ANY(%s) RETURNING slug",
        (organization_id, environment, flow, list(slugs)),
    ).fetchall()
    shown: dict[str, str] = {}
    awaiting: list[str] = []
    for slug, trigger_id in slugs.items():
        config = WebhookTriggerConfig.model_validate(dict(triggers[trigger_id]))
        way = verifier(config.verification)
        taken = connection.execute(
            "INSERT INTO bridge.endpoints"
            " (organization_id, environment, slug, flow, trigger_id, verification, settings)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (organization_id, environment, slug) DO UPDATE SET"
            " trigger_id = excluded.trigger_id, verification = excluded.verification,"
            " settings = excluded.settings, revision = nextval('bridge.deployment_revision')"
            " WHERE endpoints.flow = excluded.flow RETURNING slug",
            (organization_id, environment, slug, flow, trigger_id, way.name, Jsonb(_settings(config))),
        ).fetchone()
        if taken is None:
            raise _taken(connection, organization_id, environment, slug)
        if way.origin == "none" or _has_secret(connection, organization_id, environment, slug, way, keyring):
            continue
        if way.origin == "given":
            awaiting.append(slug)
        else:
            shown[slug] = way.generate()
            _store(connection, organization_id, environment, slug, way, shown[slug], keyring)
    for slug in [*slugs, *(row[0] for row in gone)]:
        _notify(connection, organization_id, environment, slug)
    return Synced(shown, awaiting)


def config_of(slug: str, verification: str, settings: Mapping[str, Any]) -> WebhookTriggerConfig:
    """The trigger's configuration as an endpoint's row holds it. Raises `ValueError` for a row that was
    altered."""
    return WebhookTriggerConfig.model_validate({"verification": verification, **settings, "slug": slug})


def _settings(config: WebhookTriggerConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", by_alias=True, exclude={"slug"}, exclude_none=True)


def list_endpoints(organization_id: UUID, environment: str | None = None) -> list[Endpoint]:
    """The organization's endpoints, by environment and slug; no secret values."""
    with database.tenant(organization_id) as connection:
        return _select(connection, organization_id, environment, None)


def get(organization_id: UUID, environment: str, slug: str) -> Endpoint:
    """One endpoint; raises `NotFound`."""
    with database.tenant(organization_id) as connection:
        return _one(connection, organization_id, environment, slug)


def set_status(organization_id: UUID, environment: str, slug: str, status: Status) -> Endpoint:
    """Disable (it answers 410) or enable an endpoint, for every intake process at once; raises `NotFound`."""
    with database.tenant(organization_id) as connection:
        _touch(connection, organization_id, environment, slug, status)
        action = "endpoint.enabled" if status == "active" else "endpoint.disabled"
        record(connection, organization_id, action, slug, environment=environment)
        return _one(connection, organization_id, environment, slug)


def rotate_secret(
    organization_id: UUID,
    environment: str,
    slug: str,
    *,
    secret: str | None = None,
    overlap_s: float = DEFAULT_OVERLAP_S,
    keyring: Cipher | None = None,
) -> NewSecret:
    """Give the endpoint a new secret (made here, or `secret`) and return it: it is not shown again. Those it had
    are accepted for `overlap_s` seconds more, at most until the end they already had; 0 ends them at once.

    Raises `NotFound`, or `ConfigurationError` when `secret` is not fit for the endpoint's verification, or is
    absent where the provider gives it. A short one is taken, with a warning.
    """
    keyring = keyring or Keyring.open()
    with database.tenant(organization_id) as connection:
        _touch(connection, organization_id, environment, slug, None)
        endpoint = _one(connection, organization_id, environment, slug)
        way = verifier(config_of(slug, endpoint.verification, endpoint.settings).verification)
        if way.origin == "none":
            raise ConfigurationError(f"verification {way.name} needs no secret here", field="secret")
        new = way.generate() if secret is None else secret
        way.key(new)
        connection.execute(
            "DELETE FROM bridge.endpoint_secrets WHERE organization_id = %s AND environment = %s AND slug = %s"
            " AND expires_at <= now()",
            (organization_id, environment, slug),
        )
        connection.execute(
            "UPDATE bridge.endpoint_secrets SET expires_at = least(expires_at, now() + %s)"
            " WHERE organization_id = %s AND environment = %s AND slug = %s",
            (timedelta(seconds=max(0.0, overlap_s)), organization_id, environment, slug),
        )
        _store(connection, organization_id, environment, slug, way, new, keyring)
        record(
            connection,
            organization_id,
            "endpoint.secret_rotated",
            slug,
            environment=environment,
            details={"overlap_s": max(0.0, overlap_s), "given": secret is not None},
            keys=keyring,
        )
    return NewSecret(new, None if secret is None else way.weakness(secret))


def open_secret(
    keyring: Cipher, organization_id: UUID, environment: str, slug: str, secret_id: UUID, ciphertext: bytes
) -> tuple[str, str]:
    """A stored secret in clear: (verification it serves, secret). For intake only."""
    stored = orjson.loads(
        keyring.decrypt(organization_id, PURPOSE, _bound_to(environment, slug, secret_id), ciphertext)
    )
    return stored["verification"], stored["secret"]


def _store(
    connection: Connection[Any],
    organization_id: UUID,
    environment: str,
    slug: str,
    way: Verifier[Any],
    secret: str,
    keyring: Cipher,
) -> None:
    secret_id = uuid7()
    ciphertext = keyring.encrypt(
        organization_id,
        PURPOSE,
        _bound_to(environment, slug, secret_id),
        orjson.dumps({"verification": way.name, "secret": secret}),
    )
    connection.execute(
        "INSERT INTO bridge.endpoint_secrets (organization_id, environment, slug, secret_id, ciphertext)"
        " VALUES (%s, %s, %s, %s, %s)",
        (organization_id, environment, slug, secret_id, ciphertext),
    )


def _has_secret(
    connection: Connection[Any],
    organization_id: UUID,
    environment: str,
    slug: str,
    way: Verifier[Any],
    keyring: Cipher,
) -> bool:
    rows = connection.execute(
        "SELECT secret_id, ciphertext FROM bridge.endpoint_secrets WHERE organization_id = %s"
        " AND environment = %s AND slug = %s AND (expires_at IS NULL OR expires_at > now())",
        (organization_id, environment, slug),
    ).fetchall()
    return any(
        open_secret(keyring, organization_id, environment, slug, secret_id, ciphertext)[0] == way.name
        for secret_id, ciphertext in rows
    )


def _touch(
    connection: Connection[Any], organization_id: UUID, environment: str, slug: str, status: Status | None
) -> None:
    touched = connection.execute(
        "UPDATE bridge.endpoints SET status = coalesce(%s, status),"
        " revision = nextval('bridge.deployment_revision')"
        " WHERE organization_id = %s AND environment = %s AND slug = %s",
        (status, organization_id, environment, slug),
    ).rowcount
    if not touched:
        raise _unknown(environment, slug)
    _notify(connection, organization_id, environment, slug)


def changed(connection: Connection[Any], organization_id: UUID) -> None:
    """All of an organization's endpoints are to be read anew, as something that they depend on changed."""
    rows = connection.execute(
        "UPDATE bridge.endpoints SET revision = nextval('bridge.deployment_revision') WHERE organization_id = %s"
        " RETURNING environment, slug",
        (organization_id,),
    ).fetchall()
    for environment, slug in rows:
        connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, f"{organization_id}/{environment}/{slug}"))


def _notify(connection: Connection[Any], organization_id: UUID, environment: str, slug: str) -> None:
    connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, f"{organization_id}/{environment}/{slug}"))


def _one(connection: Connection[Any], organization_id: UUID, environment: str, slug: str) -> Endpoint:
    found = _select(connection, organization_id, environment, slug)
    if not found:
        raise _unknown(environment, slug)
    return found[0]


def _select(
    connection: Connection[Any], organization_id: UUID, environment: str | None, slug: str | None
) -> list[Endpoint]:
    given = {"organization": organization_id, "environment": environment, "slug": slug}
    kept: dict[tuple[str, str], list[SecretInfo]] = {}
    for place, of, *facts in connection.execute(
        "SELECT environment, slug, secret_id, created_at, expires_at FROM bridge.endpoint_secrets"
        " WHERE organization_id = %(organization)s AND (expires_at IS NULL OR expires_at > now())"
        " AND (%(environment)s::text IS NULL OR environment = %(environment)s)"
        " AND (%(slug)s::text IS NULL OR slug = %(slug)s) ORDER BY created_at",
        given,
    ):
        kept.setdefault((place, of), []).append(SecretInfo(*facts))
    rows = connection.execute(
        "SELECT e.environment, e.slug, e.flow, e.trigger_id, e.verification, e.status, d.status, e.settings,"
        " e.created_at FROM bridge.endpoints e"
        " JOIN bridge.deployments d USING (organization_id, environment, flow)"
        " WHERE e.organization_id = %(organization)s"
        " AND (%(environment)s::text IS NULL OR e.environment = %(environment)s)"
        " AND (%(slug)s::text IS NULL OR e.slug = %(slug)s) ORDER BY e.environment, e.slug",
        given,
    ).fetchall()
    return [replace(Endpoint(*row), secrets=kept.get((row[0], row[1]), [])) for row in rows]


def _taken(connection: Connection[Any], organization_id: UUID, environment: str, slug: str) -> Conflict:
    owner = connection.execute(
        "SELECT flow FROM bridge.endpoints WHERE organization_id = %s AND environment = %s AND slug = %s",
        (organization_id, environment, slug),
    ).fetchone()
    name = owner[0] if owner else "another flow"
    return Conflict(
        f"the webhook slug {slug!r} belongs to flow {name!r} in {environment}; choose another or remove that flow",
        field="slug",
        value=slug,
        flow=name,
    )


def _unknown(environment: str, slug: str) -> NotFound:
    return NotFound(f"no endpoint {slug!r} in {environment}", field="slug", value=slug)


def _bound_to(environment: str, slug: str, secret_id: UUID) -> str:
    return f"{environment}/{slug}/{secret_id}"


COLUMNS = (
    EncryptedColumn(
        "endpoint_secrets",
        "ciphertext",
        ("environment", "slug", "secret_id"),
        PURPOSE,
        lambda row: _bound_to(row["environment"], row["slug"], row["secret_id"]),
    ),
)
"""What of this room's tables is encrypted."""
