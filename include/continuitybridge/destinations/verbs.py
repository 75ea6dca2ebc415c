"""What people do with destinations, as the application role of one organization.

- `pause`: nothing is sent there. Calls under way end; messages that come to it wait, and no attempt is counted.
- `drain`: what was accepted is delivered, and the flows that deliver there by a node's `connection` or `url` take
  nothing new: their webhooks answer 503 with Retry-After, their other sources refuse.
- `resume`: ends both and closes the circuit; what waits goes on at once.
- `cancel`: what waits for it now is settled as skipped.

Workers know within milliseconds by NOTIFY, and in any case by looking every few seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg.rows import class_row

from continuitybridge import database, organizations
from continuitybridge.audit import record
from continuitybridge.destinations.shared import CHANNEL, default_state
from continuitybridge.errors import ConfigurationError
from continuitybridge.inbox import holds, turned_back

Connection = psycopg.Connection[Any]

_NAME = re.compile(r"[a-z0-9:][a-z0-9._:-]{0,252}")
MAX_REASON_LENGTH = 500


@dataclass(frozen=True, slots=True)
class Destination:
    """A destination as it is now. `status`: active, paused or draining; `circuit`: closed, open (nothing is sent
    until `opened_until`) or half_open (one call at a time probes). `waiting` counts the units of work that were
    turned back. Numbers are those in force: its own or the settings'. `connection` says that a connection has its
    name."""

    environment: str
    name: str
    connection: bool
    status: str
    reason: str
    status_since: datetime | None
    status_by: str
    max_concurrency: int
    circuit_failures: int
    circuit_wait_s: float
    circuit_max_wait_s: float
    circuit: Literal["closed", "open", "half_open"]
    failures: int
    opened_until: datetime | None
    waiting: int = 0


_LIST = """
SELECT coalesce(d.environment, c.environment) AS environment, coalesce(d.name, c.name) AS name,
       c.name IS NOT NULL AS connection, coalesce(d.status, 'active') AS status, coalesce(d.reason, '') AS reason,
       CASE WHEN d.status_by <> '' THEN d.status_since END AS status_since,
       coalesce(d.status_by, '') AS status_by,
       coalesce(d.max_concurrency, %(max_concurrency)s) AS max_concurrency,
       coalesce(d.circuit_failures, %(circuit_failures)s) AS circuit_failures,
       coalesce(d.circuit_wait_s, %(circuit_wait_s)s) AS circuit_wait_s,
       coalesce(d.circuit_max_wait_s, %(circuit_max_wait_s)s) AS circuit_max_wait_s,
       CASE WHEN coalesce(d.openings, 0) = 0 THEN 'closed' WHEN d.opened_until > now() THEN 'open'
            ELSE 'half_open' END AS circuit,
       coalesce(d.failures, 0) AS failures, d.opened_until
FROM bridge.destinations d
FULL JOIN bridge.connections c USING (organization_id, environment, name)
WHERE organization_id = %(organization)s
  AND (%(environment)s::text IS NULL OR environment = %(environment)s)
  AND (%(name)s::text IS NULL OR name = %(name)s)
ORDER BY environment, name
"""


def list_destinations(organization_id: UUID, environment: str | None = None) -> list[Destination]:
    """The environment's connections, and whatever else something is said of, by environment and name."""
    with database.tenant(organization_id) as connection:
        found = _read(connection, organization_id, environment, None)
    return _with_waiting(found, organization_id)


def show(organization_id: UUID, environment: str, name: str) -> Destination:
    """One destination; of one that nobody said anything about, what holds by default. Raises `NotFound` for an
    environment that is not there, `ConfigurationError` for what cannot be a destination's name."""
    _check_name(name)
    with database.tenant(organization_id) as connection:
        organizations.require_environment(connection, organization_id, environment)
        found = _read(connection, organization_id, environment, name)
    if not found:
        default = default_state()
        found = [
            Destination(
                environment,
                name,
                connection=False,
                status="active",
                reason="",
                status_since=None,
                status_by="",
                max_concurrency=default.max_concurrency,
                circuit_failures=default.policy.failures_to_open,
                circuit_wait_s=default.policy.wait_s,
                circuit_max_wait_s=default.policy.max_wait_s,
                circuit="closed",
                failures=0,
                opened_until=None,
            )
        ]
    return _with_waiting(found, organization_id)[0]


def pause(organization_id: UUID, environment: str, name: str, *, by: str, reason: str = "") -> Destination:
    """Send nothing there until `resume`."""
    return _set_status(organization_id, environment, name, "paused", by, reason)


def drain(organization_id: UUID, environment: str, name: str, *, by: str, reason: str = "") -> Destination:
    """Deliver what was accepted; let the flows that deliver there take nothing new until `resume`."""
    return _set_status(organization_id, environment, name, "draining", by, reason)


def resume(organization_id: UUID, environment: str, name: str, *, by: str) -> Destination:
    """Go on: neither paused nor drained, the circuit closed, and what waits woken."""
    _set_status(organization_id, environment, name, "active", by, "")
    turned_back.wake(organization_id, environment, name)
    return show(organization_id, environment, name)


def cancel(organization_id: UUID, environment: str, name: str, *, by: str, reason: str = "") -> int:
    """Settle as skipped what waits for the destination now; returns how many units of work. The destination stays
    as it is: pause it first, so that nothing is delivered meanwhile."""
    show(organization_id, environment, name)
    with database.tenant(organization_id) as connection:
        record(connection, organization_id, "destination.cancelled", name, environment=environment, by=by)
    return turned_back.skip(organization_id, environment, name, by=by, reason=reason[:MAX_REASON_LENGTH])


def configure(
    organization_id: UUID,
    environment: str,
    name: str,
    changes: Mapping[str, int | float | None],
) -> Destination:
    """Change `max_concurrency`, `circuit_failures`, `circuit_wait_s` or `circuit_max_wait_s`; None goes back to
    the setting. Keys that are not given stay. Raises `ConfigurationError`."""
    _check_name(name)
    for key, value in changes.items():
        least = {
            "max_concurrency": 1,
            "circuit_failures": 0,
            "circuit_wait_s": 0.1,
            "circuit_max_wait_s": 0.1,
        }.get(key)
        if least is None:
            raise ConfigurationError(f"a destination has no {key!r}", field=key)
        if value is not None and not least <= value <= 1_000_000:
            raise ConfigurationError(f"{key} must be at least {least:g}", field=key, value=value)
    with database.tenant(organization_id) as connection:
        organizations.require_environment(connection, organization_id, environment)
        _ensure(connection, organization_id, environment, name)
        for key, value in changes.items():
            connection.execute(
                f"UPDATE bridge.destinations SET {key} = %s, updated_at = now()"  # noqa: S608  (a key from above)
                " WHERE organization_id = %s AND environment = %s AND name = %s",
                (value, organization_id, environment, name),
            )
        _notify(connection, organization_id, environment, name)
        record(
            connection, organization_id, "destination.configured", name, environment=environment, details=changes
        )
    return show(organization_id, environment, name)


def _set_status(
    organization_id: UUID, environment: str, name: str, status: str, by: str, reason: str
) -> Destination:
    _check_name(name)
    with database.tenant(organization_id) as connection:
        organizations.require_environment(connection, organization_id, environment)
        _ensure(connection, organization_id, environment, name)
        connection.execute(
            "UPDATE bridge.destinations SET status = %(status)s, reason = %(reason)s, status_by = %(by)s,"
            " status_since = CASE WHEN status = %(status)s THEN status_since ELSE now() END, updated_at = now(),"
            " failures = CASE WHEN %(status)s = 'active' THEN 0 ELSE failures END,"
            " openings = CASE WHEN %(status)s = 'active' THEN 0 ELSE openings END,"
            " opened_until = CASE WHEN %(status)s = 'active' THEN NULL ELSE opened_until END"
            " WHERE organization_id = %(organization)s AND environment = %(environment)s AND name = %(name)s",
            {
                "organization": organization_id,
                "environment": environment,
                "name": name,
                "status": status,
                "by": by,
                "reason": reason[:MAX_REASON_LENGTH],
            },
        )
        _notify(connection, organization_id, environment, name)
        # Whether flows take new messages may have changed.
        holds.notify(connection, organization_id, environment)
        action = {"paused": "paused", "draining": "drained", "active": "resumed"}[status]
        record(
            connection,
            organization_id,
            f"destination.{action}",
            name,
            environment=environment,
            details={"reason": reason[:MAX_REASON_LENGTH]},
            by=by,
        )
    return show(organization_id, environment, name)


def _read(
    connection: Connection, organization_id: UUID, environment: str | None, name: str | None
) -> list[Destination]:
    default = default_state()
    with connection.cursor(row_factory=class_row(Destination)) as cursor:
        cursor.execute(
            _LIST,
            {
                "organization": organization_id,
                "environment": environment,
                "name": name,
                "max_concurrency": default.max_concurrency,
                "circuit_failures": default.policy.failures_to_open,
                "circuit_wait_s": default.policy.wait_s,
                "circuit_max_wait_s": default.policy.max_wait_s,
            },
        )
        return cursor.fetchall()


def _with_waiting(found: Sequence[Destination], organization_id: UUID) -> list[Destination]:
    waiting = {(each.environment, each.destination): each.units for each in turned_back.count(organization_id)}
    return [replace(each, waiting=waiting.get((each.environment, each.name), 0)) for each in found]


def _ensure(connection: Connection, organization_id: UUID, environment: str, name: str) -> None:
    connection.execute(
        "INSERT INTO bridge.destinations (organization_id, environment, name) VALUES (%s, %s, %s)"
        " ON CONFLICT DO NOTHING",
        (organization_id, environment, name),
    )


def _notify(connection: Connection, organization_id: UUID, environment: str, name: str) -> None:
    connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, f"{organization_id}/{environment}/{name}"))


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name[:100]!r} is no destination: give a connection's name, or the host of an address in lower case",
            field="name",
            value=name[:300],
        )
