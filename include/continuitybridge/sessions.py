"""Since when a person's sessions and tokens hold: what was given before is none any more.

Whoever changes what a session stands on (a role, the second factor, the account's activity) ends them in the same
transaction, and the person signs in again.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

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
