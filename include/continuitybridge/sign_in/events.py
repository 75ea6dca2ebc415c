"""What the audit trails tell of signing in: an event in each organization of the person."""

from __future__ import annotations

import logging
from typing import Any

import psycopg

from continuitybridge import database
from continuitybridge.audit import record
from continuitybridge.errors import BridgeError

log = logging.getLogger(__name__)


def record_for(
    connection: psycopg.Connection[Any], user_name: str, action: str, *, by: str | None = None, **details: Any
) -> None:
    """Write an event about the person to the trail of each organization that he belongs to, in the caller's
    transaction (platform role); `by` him unless it is said otherwise. Raises `TrailDamaged`."""
    rows = connection.execute(
        "SELECT m.organization_id FROM bridge.memberships m JOIN bridge.organizations o USING (organization_id)"
        " WHERE m.user_name = %s AND o.status <> 'deleting' ORDER BY m.organization_id",
        (user_name,),
    ).fetchall()
    # In one order, so that of two who write to several trails each waits for the other once.
    for (organization_id,) in rows:
        record(connection, organization_id, action, "", details=details, by=by or user_name, about=user_name)


def tell(user_name: str, action: str, **details: Any) -> None:
    """As `record_for`, by itself. A trail that takes nothing is no reason to lock people out: the log says so."""
    try:
        with database.platform() as connection:
            record_for(connection, user_name, action, **details)
    except BridgeError as error:
        log.error("the audit trails do not tell of %s: %s", action, error.detail)
