"""How long settled messages are kept: partitions ahead of time, dropped when over; legal hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from continuitybridge import database
from continuitybridge.settings import get_settings

WIDTH_DAYS: Mapping[str, int] = {"short": 1, "standard": 7, "long": 91}
"""Days per partition of each retention class. Ranges begin at multiples of the width since 1970-01-01; the first
migration makes the first partitions by the same rule."""

EXPIRED_AT_ONCE = 1_000
"""Messages that one transaction removes."""

_EPOCH = date(1970, 1, 1)


def keep_days() -> dict[str, int]:
    """Days that each class is kept, from the settings."""
    settings = get_settings()
    return {
        "short": settings.retention_short_days,
        "standard": settings.retention_standard_days,
        "long": settings.retention_long_days,
    }


def ensure_partitions(*, ahead: int = 4, today: date | None = None) -> int:
    """Make the current and the next `ahead` partitions of every class, and of answers; returns how many were
    missing. Idempotent. Missing partitions cost nothing but tidiness: a default partition takes the rows, and
    gives them back when the partition is made."""
    today = today or datetime.now(UTC).date()
    made = 0
    for retention_class, width in WIDTH_DAYS.items():
        first = _EPOCH + timedelta(days=(today - _EPOCH).days // width * width)
        for n in range(ahead + 1):
            begins = first + timedelta(days=n * width)
            # Each by itself: making one locks the class's partitions for a moment.
            with database.relay() as connection:
                [(new,)] = connection.execute(
                    "SELECT bridge.make_settled_partition(%s, %s, %s)",
                    (retention_class, begins, begins + timedelta(days=width)),
                )
            made += bool(new)
    for n in range(ahead + 1):
        begins = today + timedelta(days=n)
        with database.relay() as connection:
            [(new,)] = connection.execute(
                "SELECT bridge.make_replies_partition(%s, %s)", (begins, begins + timedelta(days=1))
            )
        made += bool(new)
    return made


def drop_expired(*, now: datetime | None = None) -> list[str]:
    """Drop the partitions whose every row is older than its class (or answers: `BRIDGE_REPLY_KEPT_HOURS`) is kept;
    returns their names. What is under
    legal hold stands in a partition of its own and is not touched. Rows are kept up to one partition's width
    longer than the class says, never shorter."""
    now = now or datetime.now(UTC)
    dropped: list[str] = []
    for retention_class, days in keep_days().items():
        with database.relay() as connection:
            dropped += [
                row[0]
                for row in connection.execute(
                    "SELECT bridge.drop_settled_partitions(%s, %s)", (retention_class, now - timedelta(days=days))
                )
            ]
    with database.relay() as connection:
        kept_since = now - timedelta(hours=get_settings().reply_kept_hours)
        dropped += [
            row[0] for row in connection.execute("SELECT bridge.drop_replies_partitions(%s)", (kept_since,))
        ]
    return dropped


def expire_by_tier(*, now: datetime | None = None) -> int:
    """Remove settled messages that are older than their organization's `data_retention_days`, in transactions of
    bounded size; returns how many rows. What is under legal hold stays. Any number may run at once; a crash leaves
    the rest for the next run."""
    now = now or datetime.now(UTC)
    with database.relay() as connection:
        limits = connection.execute(
            "SELECT organization_id, allowed FROM bridge.organization_limits"
            " WHERE resource = 'data_retention_days' AND allowed IS NOT NULL"
        ).fetchall()
    removed = 0
    for organization_id, days in limits:
        before = now - timedelta(days=days)
        while True:
            with database.relay() as connection:
                [(gone,)] = connection.execute(
                    "SELECT bridge.expire_settled(%s, %s, %s)", (organization_id, before, EXPIRED_AT_ONCE)
                ).fetchall()
            removed += gone
            if not gone:
                break
    return removed


def hold(organization_id: UUID, message_ids: Sequence[str]) -> int:
    """Put messages under legal hold, settled or not: they outlive every retention. Returns how many rows of theirs
    were not yet held. As the application role of the organization."""
    return _set_hold(organization_id, message_ids, held=True)


def release_hold(organization_id: UUID, message_ids: Sequence[str]) -> int:
    """End the legal hold: the messages' own retention class decides again, counted from their settling. Returns
    how many rows were held."""
    return _set_hold(organization_id, message_ids, held=False)


def _set_hold(organization_id: UUID, message_ids: Sequence[str], *, held: bool) -> int:
    given = {"organization": organization_id, "messages": list(message_ids), "held": held}
    with database.tenant(organization_id) as connection:
        changed = connection.execute(
            "UPDATE bridge.messages SET legal_hold = %(held)s WHERE organization_id = %(organization)s"
            " AND message_id = ANY(%(messages)s) AND legal_hold <> %(held)s",
            given,
        ).rowcount
        changed += connection.execute(
            "UPDATE bridge.settled_messages"
            " SET placement = CASE WHEN %(held)s THEN 'held' ELSE retention_class END"
            " WHERE organization_id = %(organization)s AND message_id = ANY(%(messages)s)"
            " AND (placement = 'held') <> %(held)s",
            given,
        ).rowcount
    return changed
