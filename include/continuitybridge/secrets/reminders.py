"""Secrets that somebody should look after: over, soon over, or due to be rotated."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from psycopg.rows import class_row

from continuitybridge import database
from continuitybridge.audit import record
from continuitybridge.settings import get_settings
from continuitybridge.vault.keyring import Cipher

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DueSecret:
    """`reason` is `expired`, `expires_soon` (within `BRIDGE_SECRET_REMINDER_DAYS`) or `rotation_due`; `at` when it
    expires, or was to be rotated."""

    environment: str
    name: str
    type: str
    version: int
    reason: Literal["expired", "expires_soon", "rotation_due"]
    at: datetime
    reminded: bool


_DUE = """
SELECT environment, name, type, version, reason, CASE reason WHEN 'rotation_due' THEN rotation_due_at
       ELSE expires_at END AS at, reminded_of = reason || '/' || version AS reminded
FROM (SELECT s.environment, s.name, s.type, v.version, v.expires_at, s.rotation_due_at, s.reminded_of,
             CASE WHEN v.expires_at <= now() THEN 'expired'
                  WHEN v.expires_at <= now() + make_interval(days => %(days)s) THEN 'expires_soon'
                  WHEN s.rotation_due_at <= now() THEN 'rotation_due' END AS reason
      FROM bridge.secrets s
      JOIN bridge.secret_versions v ON v.organization_id = s.organization_id AND v.environment = s.environment
       AND v.name = s.name AND v.version = s.current_version
      WHERE s.organization_id = %(organization)s AND s.enabled
      FOR UPDATE OF s SKIP LOCKED) AS found
WHERE reason IS NOT NULL ORDER BY at, environment, name
"""


def due(organization_id: UUID) -> list[DueSecret]:
    """What is due, the most urgent first. Disabled secrets are not. That somebody looked stands in the trail."""
    with database.tenant(organization_id) as connection:
        with connection.cursor(row_factory=class_row(DueSecret)) as cursor:
            cursor.execute(_DUE.replace("FOR UPDATE OF s SKIP LOCKED", ""), _given(organization_id))
            found = cursor.fetchall()
        record(connection, organization_id, "secret.listed", "")
    return found


def remind(organization_id: UUID, keys: Cipher | None = None) -> int:
    """Say of each secret that is due that it is: a line in the log and an audit event, once for each reason and
    version; returns how many were said. Any number may run at once."""
    with database.tenant(organization_id) as connection:
        with connection.cursor(row_factory=class_row(DueSecret)) as cursor:
            cursor.execute(_DUE, _given(organization_id))
            found = [each for each in cursor.fetchall() if not each.reminded]
        for each in found:
            connection.execute(
                "UPDATE bridge.secrets SET reminded_of = %s WHERE organization_id = %s AND environment = %s"
                " AND name = %s",
                (f"{each.reason}/{each.version}", organization_id, each.environment, each.name),
            )
            record(
                connection,
                organization_id,
                "secret.due",
                each.name,
                environment=each.environment,
                details={"reason": each.reason, "at": each.at, "version": each.version},
                keys=keys,
            )
    for each in found:
        log.warning(
            "secret %s in %s of organization %s: %s (%s)",
            each.name,
            each.environment,
            organization_id,
            each.reason.replace("_", " "),
            each.at.isoformat(timespec="minutes"),
        )
    return len(found)


def _given(organization_id: UUID) -> dict[str, object]:
    return {"organization": organization_id, "days": get_settings().secret_reminder_days}
