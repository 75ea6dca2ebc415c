"""Reconciling: does the store agree with what others counted, and with itself?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from continuitybridge import database


@dataclass(frozen=True, slots=True)
class Counts:
    """Messages of one organization by what they are now. `accepted` counts all that exist (each once, however
    often it was replayed); the others add up to it."""

    organization_id: UUID
    organization: str
    accepted: int
    unsettled: int
    dead: int
    done: int
    skipped: int
    discarded: int


@dataclass(frozen=True, slots=True)
class Ledger:
    """How a list of message ids stands against the store. `missing` are ids the store does not know."""

    given: int
    unsettled: list[str]
    dead: list[str]
    done: list[str]
    skipped: list[str]
    discarded: list[str]
    missing: list[str]


@dataclass(frozen=True, slots=True)
class Violation:
    """A message that breaks a rule of the store; none ever should."""

    organization_id: UUID
    message_id: str
    rule: str


# A message that is being replayed counts as what it is now, not as what it was.
_NOW = """
SELECT organization_id, message_id, CASE state WHEN 'dead' THEN 'dead' ELSE 'unsettled' END AS became
FROM bridge.messages
UNION ALL
SELECT organization_id, message_id, (array_agg(CASE result WHEN 'dead' THEN 'discarded' ELSE result END
                                     ORDER BY settled_at DESC, replays DESC))[1]
FROM bridge.settled_messages s
WHERE NOT EXISTS (SELECT FROM bridge.messages m
                  WHERE m.organization_id = s.organization_id AND m.message_id = s.message_id)
GROUP BY organization_id, message_id
"""


def counts(organization_id: UUID | None = None) -> list[Counts]:
    """Counts per organization, as one moment saw them. Reads every row: for operators, not for dashboards."""
    with database.relay() as connection:
        rows = connection.execute(
            "SELECT o.organization_id, o.slug, count(n.message_id),"  # noqa: S608  (a constant of this module)
            " count(*) FILTER (WHERE became = 'unsettled'), count(*) FILTER (WHERE became = 'dead'),"
            " count(*) FILTER (WHERE became = 'done'), count(*) FILTER (WHERE became = 'skipped'),"
            " count(*) FILTER (WHERE became = 'discarded')"
            f" FROM bridge.organizations o LEFT JOIN ({_NOW}) n USING (organization_id)"
            " WHERE (%(organization)s::uuid IS NULL OR o.organization_id = %(organization)s)"
            " GROUP BY o.organization_id, o.slug ORDER BY o.slug",
            {"organization": organization_id},
        ).fetchall()
    return [Counts(*row) for row in rows]


def check(organization_id: UUID, message_ids: Iterable[str]) -> Ledger:
    """What became of these messages (a sender's list of the ids it got), as one moment saw them."""
    given = list(dict.fromkeys(message_ids))
    found: dict[str, list[str]] = {"unsettled": [], "dead": [], "done": [], "skipped": [], "discarded": []}
    with database.tenant(organization_id) as connection:
        rows = connection.execute(
            f"SELECT message_id, became FROM ({_NOW}) n WHERE organization_id = %s AND message_id = ANY(%s)",  # noqa: S608
            (organization_id, given),
        ).fetchall()
    for message_id, became in rows:
        found[became].append(message_id)
    known = {row[0] for row in rows}
    return Ledger(len(given), **found, missing=[each for each in given if each not in known])


def violations(organization_id: UUID | None = None) -> list[Violation]:
    """Messages that were settled twice for one acceptance or replay, that are settled and still under way under
    the same one, or whose hand-overs say something else than their state."""
    with database.relay() as connection:
        rows = connection.execute(
            "SELECT organization_id, message_id, 'settled twice' FROM bridge.settled_messages"
            " WHERE (%(organization)s::uuid IS NULL OR organization_id = %(organization)s)"
            " GROUP BY organization_id, message_id, replays HAVING count(*) > 1"
            " UNION ALL"
            " SELECT m.organization_id, m.message_id, 'settled and under way' FROM bridge.messages m"
            " JOIN bridge.settled_messages s USING (organization_id, message_id, replays)"
            " WHERE (%(organization)s::uuid IS NULL OR organization_id = %(organization)s)"
            " UNION ALL"
            " SELECT m.organization_id, m.message_id, 'handed over with nothing left to do' FROM bridge.messages m"
            " WHERE m.state = 'handed_over'"
            " AND (%(organization)s::uuid IS NULL OR organization_id = %(organization)s)"
            " AND NOT EXISTS (SELECT FROM bridge.hand_overs h WHERE h.organization_id = m.organization_id"
            "  AND h.message_id = m.message_id AND h.state IN ('available', 'claimed', 'waiting'))"
            " UNION ALL"
            " SELECT h.organization_id, h.message_id, 'waits for nothing' FROM bridge.hand_overs h"
            " WHERE h.state = 'waiting'"
            " AND (%(organization)s::uuid IS NULL OR h.organization_id = %(organization)s)"
            " AND NOT EXISTS (SELECT FROM bridge.waits w WHERE w.organization_id = h.organization_id"
            "  AND w.hand_over_id = h.hand_over_id)"
            " UNION ALL"
            " SELECT w.organization_id, w.message_id, 'has a wait and does not wait' FROM bridge.waits w"
            " JOIN bridge.hand_overs h USING (organization_id, hand_over_id)"
            " WHERE h.state <> 'waiting'"
            " AND (%(organization)s::uuid IS NULL OR h.organization_id = %(organization)s)"
            " UNION ALL"
            " SELECT m.organization_id, m.message_id, 'hand-overs of a message that is not handed over'"
            " FROM bridge.messages m WHERE m.state IN ('accepted', 'claimed', 'dead')"
            " AND (%(organization)s::uuid IS NULL OR organization_id = %(organization)s)"
            " AND EXISTS (SELECT FROM bridge.hand_overs h WHERE h.organization_id = m.organization_id"
            "  AND h.message_id = m.message_id AND (h.state IN ('available', 'claimed')"
            "   OR (h.state = 'waiting' AND m.state <> 'dead')))",
            {"organization": organization_id},
        ).fetchall()
    return [Violation(*row) for row in rows]
