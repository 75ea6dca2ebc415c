"""Visits: that a consultant entered an organization, and which one he works in.

He reaches each that is assigned to him by its name at any time; that he entered it stands in its trail: when he
chooses it, and when he does something there after half an hour's absence.
"""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from uuid import UUID

from continuitybridge import database
from continuitybridge.audit import TrailDamaged, record

AWAY = timedelta(minutes=30)
"""Whoever was away so long enters anew."""
LOOK_EVERY_S = 60.0
"""How exact the time of the last visit is; in between a process asks nobody."""

_log = logging.getLogger(__name__)
_seen: dict[tuple[UUID, str], float] = {}


def choose(organization_id: UUID, user_name: str) -> None:
    """Have him work there from now on: what he asks for without naming an organization is this one's."""
    _note(organization_id, user_name, chosen=True)


def enter(organization_id: UUID, user_name: str) -> None:
    """Note that he does something there."""
    key = (organization_id, user_name)
    if time.monotonic() - _seen.get(key, -LOOK_EVERY_S) < LOOK_EVERY_S:
        return
    _note(organization_id, user_name, chosen=False)
    if len(_seen) > 10_000:
        _seen.clear()
    _seen[key] = time.monotonic()


def choice(user_name: str) -> UUID | None:
    """The organization that he chose last; whether it is still one of his is for the caller to ask."""
    with database.tenant(None, user_name=user_name) as connection:
        row = connection.execute(
            "SELECT organization_id FROM bridge.visits WHERE user_name = %s AND chosen_at IS NOT NULL"
            " ORDER BY chosen_at DESC LIMIT 1",
            (user_name,),
        ).fetchone()
    return None if row is None else UUID(str(row[0]))


def _note(organization_id: UUID, user_name: str, *, chosen: bool) -> None:
    try:
        with database.tenant(organization_id) as connection:
            # Of two processes that see him come at once, one tells.
            row = connection.execute(
                "INSERT INTO bridge.visits AS v (organization_id, user_name, chosen_at)"
                " VALUES (%(organization)s, %(user)s, CASE WHEN %(chosen)s THEN now() END)"
                " ON CONFLICT (organization_id, user_name) DO UPDATE"
                " SET seen_at = now(), chosen_at = coalesce(excluded.chosen_at, v.chosen_at)"
                " WHERE %(chosen)s OR v.seen_at < now() - %(away)s RETURNING 1",
                {"organization": organization_id, "user": user_name, "chosen": chosen, "away": AWAY},
            ).fetchone()
            if row is None:
                connection.execute(
                    "UPDATE bridge.visits SET seen_at = now() WHERE organization_id = %s AND user_name = %s",
                    (organization_id, user_name),
                )
            else:
                action = "consultant.chose" if chosen else "consultant.entered"
                record(connection, organization_id, action, "", about=user_name, by=user_name)
    except TrailDamaged:
        # Who comes to look at a trail that was tampered with must be let in.
        _log.warning("the trail of %s was tampered with: it does not tell who entered", organization_id)
