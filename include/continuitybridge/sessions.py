"""Since when a person's sessions and tokens hold: what was given before is none any more.

Whoever changes what a session stands on (a role, the second factor, the account's activity) ends them in the same
transaction, and the person signs in again.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg

from continuitybridge import database


def since(user_name: str) -> datetime | None:
    """The moment before which nothing holds; None where all of it does. Asked for at each request, and so not
    cached. Raises `Unavailable`."""
    with database.platform() as connection:
        row = connection.execute(
            "SELECT sessions_since FROM bridge.people WHERE user_name = %s", (user_name,)
        ).fetchone()
    found: datetime | None = row[0] if row else None
    return found


def end_all(connection: psycopg.Connection[Any], user_name: str) -> None:
    """End every session and token of this person, in the caller's transaction (platform role)."""
    connection.execute(
        "INSERT INTO bridge.people (user_name, sessions_since) VALUES (%s, clock_timestamp())"
        " ON CONFLICT (user_name) DO UPDATE SET sessions_since = excluded.sessions_since",
        (user_name,),
    )


def end_of_unenrolled(
    connection: psycopg.Connection[Any], organization_id: UUID, user_name: str | None = None
) -> int:
    """Where the organization requires a second factor, end the sessions of its members (of one, if named) who have
    none, in the caller's transaction (platform role); returns of how many."""
    rows = connection.execute(
        "SELECT m.user_name FROM bridge.memberships m JOIN bridge.organizations o USING (organization_id)"
        " LEFT JOIN bridge.people p ON p.user_name = m.user_name AND p.totp_since IS NOT NULL"
        " WHERE o.organization_id = %(organization)s AND o.second_factor_required AND p.user_name IS NULL"
        " AND (%(user)s::text IS NULL OR m.user_name = %(user)s) ORDER BY m.user_name",
        {"organization": organization_id, "user": user_name},
    ).fetchall()
    for (name,) in rows:
        end_all(connection, name)
    return len(rows)
