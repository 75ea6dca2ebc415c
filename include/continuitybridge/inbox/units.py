"""What happens to a message when one of its units of work ends. Shared by the verbs; each runs in the caller's
transaction.

Lock order, everywhere: a message's row before the rows of its hand-overs. So two transactions that end the last
two hand-overs of a message see each other, and exactly one of them settles it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb
from uuid6 import uuid7

from continuitybridge.inbox.replies import Notices, Prepared
from continuitybridge.inbox.replies import rows as replies

Connection = psycopg.Connection[Any]
Ending = Literal["handed_over", "done", "skipped", "dead"]

LEASE_EXPIRED = "lease-expired"
POSTPONED_S = 30.0
"""How long a unit waits whose payload cannot be had now."""

SETTLE_GONE = """
INSERT INTO bridge.settled_messages
    (organization_id, message_id, environment, flow, version, source, trigger_id, endpoint, result, payload,
     headers, content_type, size_bytes, keys, ordering_key, parent_id, generation, replays, attempts, batch_id,
     trace, retention_class, placement, accepted_at)
SELECT organization_id, message_id, environment, flow, version, source, trigger_id, endpoint, {result}, payload,
       headers, content_type, size_bytes, {keys}, ordering_key, parent_id, generation, replays, attempts, batch_id,
       {trace}, retention_class, CASE WHEN legal_hold THEN 'held' ELSE retention_class END, accepted_at
FROM gone
"""
"""Settles what a DELETE in the same statement gave back: a message is settled when, and only when, it leaves the
hot table."""

_DELETE = """
WITH gone AS (
    DELETE FROM bridge.messages WHERE organization_id = %(organization)s AND message_id = %(message)s RETURNING *
), settled AS ("""
_GONE = """
)
SELECT reply_until, replays FROM gone
"""
_MOVE = _DELETE + SETTLE_GONE.format(result="%(result)s", trace="trace", keys="keys") + _GONE


def move_to_settled(
    connection: Connection,
    organization_id: UUID,
    message_id: str,
    result: str,
    *,
    reply: Prepared | None = None,
    notices: Notices | None = None,
) -> None:
    """The message leaves the hot table (its hand-overs with it) and is settled, in one statement. A caller who
    waits for it is answered: by `reply` (and what other parts gave) when it is done, else that it was skipped; a
    dead letter has been answered before. `notices` is told so, to be sent after the commit."""
    gone = connection.execute(
        _MOVE, {"organization": organization_id, "message": message_id, "result": result}
    ).fetchone()
    if gone is None or gone[0] is None or result == "dead":
        return
    if result == "done":
        replies.conclude(connection, organization_id, message_id, gone[1], reply)
    else:
        replies.refuse(connection, organization_id, message_id, gone[1], replies.SKIPPED)
    if notices is not None:
        notices.ready(organization_id, message_id)


def append_trace(connection: Connection, organization_id: UUID, message_id: str, trace: Jsonb) -> None:
    """Add entries to a message's trace."""
    connection.execute(
        "UPDATE bridge.messages SET trace = trace || %s WHERE organization_id = %s AND message_id = %s",
        (trace, organization_id, message_id),
    )


ENOUGH = """g.need > 0 AND g.need <= (
    SELECT count(DISTINCT w.member) FROM bridge.waits w
    WHERE w.organization_id = g.organization_id AND w.group_id = g.group_id)"""
"""Whether so many different members of a group `g` have come as it needs."""
_BELOW = """h.organization_id = g.organization_id AND h.message_id = g.message_id
        AND (g.scope = '' OR starts_with(h.child_id, g.scope || '.'))"""
GATHERING_ENDED = f"""
UPDATE bridge.wait_groups g SET how = CASE WHEN {ENOUGH} THEN 'complete' ELSE 'ended' END, due_at = now()
FROM unnest(%b::uuid[], %b::text[]) AS t (organization_id, message_id)
WHERE g.organization_id = t.organization_id AND g.message_id = t.message_id AND g.how IS NULL
  AND g.closed_at IS NULL
  AND (({ENOUGH} AND NOT EXISTS (
      SELECT FROM bridge.hand_overs h
      WHERE {_BELOW} AND (g.awaits IS NULL OR h.node_id = ANY(g.awaits))
        AND (h.state = 'claimed' OR (h.state = 'available' AND h.available_at <= now()))))
    OR NOT EXISTS (
      SELECT FROM bridge.hand_overs h
      LEFT JOIN bridge.waits w USING (organization_id, hand_over_id)
      LEFT JOIN bridge.wait_groups o ON o.organization_id = w.organization_id AND o.group_id = w.group_id
      WHERE {_BELOW}
        AND (h.state IN ('available', 'claimed') OR (h.state = 'waiting' AND o.scope IS DISTINCT FROM g.scope)
             OR (h.state = 'dead' AND g.holds))))
RETURNING g.organization_id, g.group_id
"""  # noqa: S608  (constants of this module)
"""Of locked messages, the groups within them that go on: nothing of the message that could come is under way (what
waits in a group of the same scope goes on as something else; where a group holds, what is dead can still come, by
a replay), or enough have come, and the others wait for something else. What is just running, or about to, where it
can come to the group is awaited: so it makes no difference whether it runs in the same process, in another stage,
or a moment later."""

GOES_ON = """(h.state IN ('available', 'claimed') OR (h.state = 'waiting' AND NOT EXISTS (
    SELECT FROM bridge.waits w JOIN bridge.wait_groups g USING (organization_id, group_id)
    WHERE w.organization_id = h.organization_id AND w.hand_over_id = h.hand_over_id
      AND g.scope IS NOT NULL AND g.how IS NULL AND g.closed_at IS NULL)))"""
"""Whether a hand-over `h` is left to do, after `GATHERING_ENDED`: all but those that wait for a dead sibling."""


@dataclass(frozen=True, slots=True)
class Locked:
    """A message's row, locked. `reply_until` as in the table."""

    reply_until: datetime | None
    replays: int


def lock(connection: Connection, organization_id: UUID, message_id: str) -> Locked | None:
    """Lock the message's row; None when there is none (settled meanwhile)."""
    row = connection.execute(
        "SELECT reply_until, replays FROM bridge.messages WHERE organization_id = %s AND message_id = %s"
        " FOR UPDATE",
        (organization_id, message_id),
    ).fetchone()
    return None if row is None else Locked(*row)


def conclude(
    connection: Connection,
    organization_id: UUID,
    message_id: str,
    *,
    reply: Prepared | None = None,
    notices: Notices | None = None,
) -> Ending:
    """Decide what a locked message in state handed_over has become, after one of its hand-overs changed: settled
    when none is left to do (dead beats skipped, skipped beats done). `reply` is what that hand-over gave, for a
    caller who waits; `notices` as for `move_to_settled`. With a dead one, and others that wait for nothing else,
    it is a dead letter too."""
    connection.execute(GATHERING_ENDED, ([organization_id], [message_id]))
    [(left, dead, skipped)] = connection.execute(
        f"SELECT count(*) FILTER (WHERE {GOES_ON}),"  # noqa: S608  (a constant of this module)
        " count(*) FILTER (WHERE state = 'dead'), count(*) FILTER (WHERE state = 'skipped')"
        " FROM bridge.hand_overs h WHERE organization_id = %s AND message_id = %s",
        (organization_id, message_id),
    )
    if left:
        return "handed_over"
    if dead:
        [(reply_until, replays)] = connection.execute(
            "UPDATE bridge.messages SET state = 'dead', dead_at = now()"
            " WHERE organization_id = %s AND message_id = %s RETURNING reply_until, replays",
            (organization_id, message_id),
        )
        if reply_until is not None:
            _answer_dead(connection, organization_id, message_id, replays, notices)
        return "dead"
    ending: Ending = "skipped" if skipped else "done"
    move_to_settled(connection, organization_id, message_id, ending, reply=reply, notices=notices)
    return ending


def _answer_dead(
    connection: Connection, organization_id: UUID, message_id: str, replays: int, notices: Notices | None
) -> None:
    """Tell the caller who waits by which failure the message died, unless that was done when it failed."""
    failure = connection.execute(
        "SELECT code FROM bridge.failures WHERE organization_id = %s AND message_id = %s AND final"
        " ORDER BY at DESC, failure_id DESC LIMIT 1",
        (organization_id, message_id),
    ).fetchone()
    code = failure[0] if failure is not None else LEASE_EXPIRED
    replies.refuse(connection, organization_id, message_id, replays, Prepared(code=code))
    if notices is not None:
        notices.ready(organization_id, message_id)


def bury(
    connection: Connection,
    organization_id: UUID,
    message_id: str,
    hand_over_id: UUID | None,
    owner: str,
    epoch: int,
    code: str,
    *,
    notices: Notices | None = None,
) -> None:
    """Make a claimed unit a dead letter for a reason that leaves nothing to capture. Does nothing when the lease
    is another's by now."""
    locked = lock(connection, organization_id, message_id)
    if hand_over_id is None:
        buried = connection.execute(
            "UPDATE bridge.messages SET state = 'dead', dead_at = now(), lease_owner = NULL, lease_until = NULL"
            " WHERE organization_id = %s AND message_id = %s AND state = 'claimed' AND lease_owner = %s"
            " AND epoch = %s",
            (organization_id, message_id, owner, epoch),
        ).rowcount
    else:
        buried = connection.execute(
            "UPDATE bridge.hand_overs SET state = 'dead', lease_owner = NULL, lease_until = NULL"
            " WHERE organization_id = %s AND hand_over_id = %s AND state = 'claimed' AND lease_owner = %s"
            " AND epoch = %s",
            (organization_id, hand_over_id, owner, epoch),
        ).rowcount
    if not buried:
        return
    connection.execute(
        "INSERT INTO bridge.failures (organization_id, failure_id, message_id, child_id, environment, flow,"
        " version, code, verdict, final, attempt)"
        " SELECT organization_id, %s, message_id, message_id, environment, flow, version, %s, 'terminal', true,"
        " attempts FROM bridge.messages WHERE organization_id = %s AND message_id = %s",
        (uuid7(), code, organization_id, message_id),
    )
    if hand_over_id is not None:
        conclude(connection, organization_id, message_id, notices=notices)
    elif locked is not None and locked.reply_until is not None:
        _answer_dead(connection, organization_id, message_id, locked.replays, notices)


def postpone(
    connection: Connection,
    organization_id: UUID,
    message_id: str,
    hand_over_id: UUID | None,
    owner: str,
    epoch: int,
) -> None:
    """Give back a claimed unit that could not be begun: it leaves its batch, is available in `POSTPONED_S`, and
    the attempt does not count. Does nothing when the lease is another's by now."""
    table, id_column, state = (
        ("messages", "message_id", "accepted")
        if hand_over_id is None
        else ("hand_overs", "hand_over_id", "available")
    )
    connection.execute(
        f"UPDATE bridge.{table} SET state = %s, attempts = attempts - 1, lease_owner = NULL, lease_until = NULL,"  # noqa: S608
        f" batch_id = NULL, available_at = now() + make_interval(secs => %s) WHERE organization_id = %s"
        f" AND {id_column} = %s AND state = 'claimed' AND lease_owner = %s AND epoch = %s",
        (state, POSTPONED_S, organization_id, hand_over_id or message_id, owner, epoch),
    )


# A batch that is still open keeps its units: its next task takes them. Else they are dispatched again.
_EXPIRED_MESSAGES = """
WITH expired AS (
    SELECT organization_id, message_id, lease_owner FROM bridge.messages
    WHERE state = 'claimed' AND lease_until <= now()
      AND (%(organization)s::uuid IS NULL OR organization_id = %(organization)s)
      AND (%(batch)s::text IS NULL OR batch_id = %(batch)s)
    ORDER BY lease_until LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), ended AS (
    UPDATE bridge.messages m
    SET state = CASE WHEN m.attempts >= %(max_attempts)s THEN 'dead' ELSE 'accepted' END,
        dead_at = CASE WHEN m.attempts >= %(max_attempts)s THEN now() END,
        lease_owner = NULL, lease_until = NULL, available_at = now(),
        batch_id = (SELECT b.batch_id FROM bridge.batches b WHERE b.organization_id = m.organization_id
                    AND b.batch_id = m.batch_id AND b.status IN ('created', 'started'))
    FROM expired e WHERE m.organization_id = e.organization_id AND m.message_id = e.message_id
    RETURNING m.*
), answered AS (
    INSERT INTO bridge.replies (organization_id, message_id, reply_id, code, ready, replays)
    SELECT organization_id, message_id, gen_random_uuid(), %(code)s, true, replays
    FROM ended WHERE state = 'dead' AND reply_until IS NOT NULL
)
INSERT INTO bridge.failures (organization_id, failure_id, message_id, child_id, environment, flow, version, code,
                             verdict, final, attempt)
SELECT organization_id, gen_random_uuid(), message_id, message_id, environment, flow, version, %(code)s,
       'transient', state = 'dead', attempts FROM ended
RETURNING organization_id, message_id, final
"""
_LOCK_EXPIRED_HAND_OVERS = """
SELECT m.organization_id, m.message_id FROM bridge.messages m
WHERE (m.organization_id, m.message_id) IN (
    SELECT h.organization_id, h.message_id FROM bridge.hand_overs h
    WHERE h.state = 'claimed' AND h.lease_until <= now()
      AND (%(organization)s::uuid IS NULL OR h.organization_id = %(organization)s)
      AND (%(batch)s::text IS NULL OR h.batch_id = %(batch)s)
    ORDER BY h.lease_until LIMIT %(limit)s)
ORDER BY m.organization_id, m.message_id FOR UPDATE SKIP LOCKED
"""
_EXPIRED_HAND_OVERS = """
WITH ended AS (
    UPDATE bridge.hand_overs h
    SET state = CASE WHEN h.attempts >= %(max_attempts)s THEN 'dead' ELSE 'available' END,
        lease_owner = NULL, lease_until = NULL, available_at = now(),
        batch_id = (SELECT b.batch_id FROM bridge.batches b WHERE b.organization_id = h.organization_id
                    AND b.batch_id = h.batch_id AND b.status IN ('created', 'started'))
    FROM unnest(%(organizations)s::uuid[], %(messages)s::text[]) AS t (organization_id, message_id)
    WHERE h.organization_id = t.organization_id AND h.message_id = t.message_id
      AND h.state = 'claimed' AND h.lease_until <= now()
    RETURNING h.*
)
INSERT INTO bridge.failures (organization_id, failure_id, message_id, child_id, environment, flow, version,
                             node_id, code, verdict, final, attempt)
SELECT organization_id, gen_random_uuid(), message_id, child_id, environment, flow, version, node_id, %(code)s,
       'transient', state = 'dead', attempts FROM ended
RETURNING organization_id, message_id, final
"""


def expire(
    connection: Connection,
    *,
    max_attempts: int,
    organization_id: UUID | None = None,
    batch_id: str | None = None,
    limit: int = 1_000,
    notices: Notices | None = None,
) -> tuple[int, int]:
    """End leases that ran out: the units are available again, or dead letters when their attempts are used up.
    Returns how many of each. `notices` as for `move_to_settled`."""
    parameters: dict[str, Any] = {
        "organization": organization_id,
        "batch": batch_id,
        "limit": limit,
        "max_attempts": max_attempts,
        "code": LEASE_EXPIRED,
    }
    finals: list[bool] = []
    for organization, message_id, final in connection.execute(_EXPIRED_MESSAGES, parameters).fetchall():
        finals.append(final)
        if final and notices is not None:
            notices.ready(organization, message_id)
    locked = connection.execute(_LOCK_EXPIRED_HAND_OVERS, parameters).fetchall()
    if locked:
        parameters |= {"organizations": [row[0] for row in locked], "messages": [row[1] for row in locked]}
        ended = connection.execute(_EXPIRED_HAND_OVERS, parameters).fetchall()
        finals += [row[2] for row in ended]
        for organization, message_id in {(row[0], row[1]) for row in ended if row[2]}:
            conclude(connection, organization, message_id, notices=notices)
    return finals.count(False), finals.count(True)
