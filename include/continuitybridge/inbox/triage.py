"""Dead letters: finding them, seeing why, deciding. As the application role of one organization."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from continuitybridge import database
from continuitybridge.audit import TrailDamaged, record
from continuitybridge.errors import NotFound
from continuitybridge.inbox import capture, units
from continuitybridge.vault.keyring import Cipher


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message in triage with its last final failure. `node_id` is None when no node was reached."""

    message_id: str
    environment: str
    flow: str
    version: str
    failure_id: UUID | None
    node_id: str | None
    code: str | None
    verdict: str | None
    attempts: int | None
    size_bytes: int
    accepted_at: datetime
    dead_at: datetime


def list_dead(
    organization_id: UUID,
    *,
    environment: str | None = None,
    flow: str | None = None,
    code: str | None = None,
    before: datetime | None = None,
    limit: int = 100,
) -> list[DeadLetter]:
    """Dead letters, newest first; `before` (a `dead_at`) goes on where a former page ended."""
    with (
        database.tenant(organization_id) as connection,
        connection.cursor(row_factory=class_row(DeadLetter)) as cursor,
    ):
        cursor.execute(
            "SELECT m.message_id, m.environment, m.flow, m.version, f.failure_id, f.node_id, f.code, f.verdict,"
            " f.attempt AS attempts, m.size_bytes, m.accepted_at, m.dead_at"
            " FROM bridge.messages m LEFT JOIN LATERAL ("
            "  SELECT * FROM bridge.failures f WHERE f.organization_id = m.organization_id"
            "  AND f.message_id = m.message_id AND f.final"
            "  ORDER BY f.at DESC, f.failure_id DESC LIMIT 1) f ON true"
            " WHERE m.organization_id = %(organization)s AND m.state = 'dead'"
            " AND (%(environment)s::text IS NULL OR m.environment = %(environment)s)"
            " AND (%(flow)s::text IS NULL OR m.flow = %(flow)s)"
            " AND (%(code)s::text IS NULL OR f.code = %(code)s)"
            " AND (%(before)s::timestamptz IS NULL OR m.dead_at < %(before)s)"
            " ORDER BY m.dead_at DESC, m.message_id LIMIT %(limit)s",
            {
                "organization": organization_id,
                "environment": environment,
                "flow": flow,
                "code": code,
                "before": before,
                "limit": limit,
            },
        )
        return cursor.fetchall()


def context(organization_id: UUID, failure_id: UUID, keys: Cipher) -> dict[str, Any] | None:
    """What was captured of a failure: `detail`, `facts`, `owner`, `traceback`; of a final one also `node` (id,
    type, config), `input` (kind, text, size_bytes, cut), `headers`, `vars`, `versions`. Secrets are scrubbed. None
    where nothing was captured. Who reads it reads a tenant's data: that stands in the trail. Raises `NotFound`."""
    with database.tenant(organization_id) as connection:
        row = connection.execute(
            "SELECT context, message_id, environment FROM bridge.failures"
            " WHERE organization_id = %s AND failure_id = %s",
            (organization_id, failure_id),
        ).fetchone()
        if row is None:
            raise NotFound(f"no failure {failure_id}")
        found, message_id, environment = row
        context = capture.decrypt_context(keys, organization_id, failure_id, found)
        if context is None:
            return None
        # A trail that was tampered with takes no event, and keeps nobody from looking after messages.
        with suppress(TrailDamaged), connection.transaction():
            details = {"message_id": message_id}
            record(
                connection,
                organization_id,
                "failure.read",
                str(failure_id),
                environment=environment,
                details=details,
                keys=keys,
            )
    return context


def discard(organization_id: UUID, message_ids: Sequence[str], *, by: str) -> list[str]:
    """Decide that dead letters stay undelivered: they are settled with result `dead`. Returns the ids of those
    that were dead letters; the others are left alone."""
    discarded = []
    with database.tenant(organization_id) as connection:
        rows = connection.execute(
            "UPDATE bridge.messages SET trace = trace || %s WHERE organization_id = %s AND message_id = ANY(%s)"
            " AND state = 'dead' RETURNING message_id",
            (Jsonb([{"discarded_by": by}]), organization_id, list(message_ids)),
        ).fetchall()
        for (message_id,) in rows:
            units.move_to_settled(connection, organization_id, message_id, "dead")
            discarded.append(message_id)
        for message_id in discarded:
            record(connection, organization_id, "message.discarded", message_id, by=by)
    return discarded
