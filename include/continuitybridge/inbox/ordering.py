"""Who is in front of a message of the same ordering key. Shared by everything that claims.

Messages of one key run one after the other, in the order of (accepted_at, message_id). A message may begin when
nobody is in front of it: no unsettled message of its key that was accepted before it, and none that has begun.
Dead letters are in front only where their flow says `hold`. What has begun goes on (its hand-overs are claimed)
unless an earlier one has begun too, which only replays bring about.

Where it stops: two messages whose senders did not wait for each other's answer are accepted in either order, and
may even run at once if one's transaction began before the other's and ended after that one was claimed.

What is found to wait is marked `behind` and leaves the indexes that claims look through, so that a key's backlog
is looked at once and not at every claim. A trigger offers the next one when one in front ends.
"""

from __future__ import annotations

_KEY = """b.organization_id = {row}.organization_id AND b.environment = {row}.environment AND b.flow = {row}.flow
      AND b.ordering_key = {row}.ordering_key AND b.ordering_key IS NOT NULL"""

EARLIER = (
    "SELECT b.organization_id, b.message_id FROM bridge.messages b WHERE "  # noqa: S608  (constants, here and below)
    + _KEY
    + """ AND (b.state <> 'dead' OR b.holds_order)
      AND (b.accepted_at, b.message_id) < ({row}.accepted_at, {row}.message_id)"""
)
"""Query of those accepted before a message that are unsettled."""

BEGUN = (
    "SELECT b.organization_id, b.message_id FROM bridge.messages b WHERE "  # noqa: S608
    + _KEY
    + " AND b.state IN ('claimed', 'handed_over', 'waiting') AND b.message_id <> {row}.message_id"
)
"""Query of the others that have begun."""

BEGUN_EARLIER = BEGUN + " AND (b.accepted_at, b.message_id) < ({row}.accepted_at, {row}.message_id)"

MAY_BEGIN = f"({{row}}.ordering_key IS NULL OR (NOT EXISTS ({BEGUN}) AND NOT EXISTS ({EARLIER})))"
"""True of an accepted message that may be claimed now."""

MAY_GO_ON = f"({{row}}.ordering_key IS NULL OR NOT EXISTS ({BEGUN_EARLIER}))"
"""True of a message whose hand-overs may be claimed now."""

PUT_BEHIND = """
fronts AS (
    SELECT b.organization_id, b.message_id FROM bridge.messages b
    WHERE (b.organization_id, b.message_id) IN (SELECT organization_id, front FROM waiting)
      AND (b.state <> 'dead' OR b.holds_order)
    FOR SHARE SKIP LOCKED
), put_behind AS (
    UPDATE bridge.messages m SET behind = true FROM waiting w JOIN fronts b
        ON b.organization_id = w.organization_id AND b.message_id = w.front
    WHERE m.organization_id = w.organization_id AND m.message_id = w.message_id
    RETURNING 1
)
"""
"""Common table expressions that mark what stands in `waiting` (organization_id, message_id, front), whose rows are
locked already. Whoever is in front is locked as well: one that is just ending has nobody put behind it."""

IN_FRONT = (
    f"(SELECT * FROM ({BEGUN} LIMIT 1) x UNION ALL"  # noqa: S608
    f" SELECT * FROM ({EARLIER} ORDER BY b.accepted_at, b.message_id LIMIT 1) y LIMIT 1)"
)
"""One of those in front of a message."""
