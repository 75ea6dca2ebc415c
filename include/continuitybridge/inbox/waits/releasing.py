"""Letting go on what has something to do: groups that are complete, waits whose time is over, callers whose flow
has answered. Each becomes an available hand-over, and whoever waits for work is notified as by an accept."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from continuitybridge import database
from continuitybridge.engine.groups import order
from continuitybridge.inbox import units
from continuitybridge.inbox.accept import CHANNEL
from continuitybridge.inbox.replies import Notices
from continuitybridge.inbox.statements import Rows, Statements, columns, run
from continuitybridge.inbox.waits.arriving import GroupKey, MessageKey

CHANNEL_DUE = "bridge_due"
"""NOTIFY channel without payload: something may be released. A hint; who waits on it also looks."""
CHUNK = 200
MAX_NAMED = 100
"""So many of a group's messages are named in the trace of the one that carries on."""

# -- groups -------------------------------------------------------------------------------------------------

# Passed over are messages that somebody else is writing: their group goes on in a moment, by whoever looks next.
_LOCK_MEMBERS = """
SELECT m.organization_id, m.message_id FROM bridge.messages m
WHERE (m.organization_id, m.message_id) IN (
    SELECT w.organization_id, w.message_id
    FROM unnest(%b::uuid[], %b::uuid[]) AS t (organization_id, group_id)
    JOIN bridge.waits w USING (organization_id, group_id))
ORDER BY m.organization_id, m.message_id FOR UPDATE SKIP LOCKED
"""
# Where enough have come when its time is over, the time has ended only the waiting for more.
_LOCK_GROUPS = f"""
SELECT g.organization_id, g.group_id, coalesce(g.how, CASE WHEN {units.ENOUGH} THEN 'complete' ELSE 'timeout' END),
       g.scope, g.becomes, g.environment, g.flow, g.node_id
FROM bridge.wait_groups g
JOIN unnest(%b::uuid[], %b::uuid[]) AS t (organization_id, group_id) USING (organization_id, group_id)
WHERE g.closed_at IS NULL AND g.due_at <= now()
ORDER BY g.organization_id, g.environment, g.flow, g.node_id, g.key_hash FOR UPDATE OF g SKIP LOCKED
"""  # noqa: S608  (a constant)
_MEMBERS = """
SELECT w.organization_id, w.group_id, w.hand_over_id, w.message_id, h.child_id, w.position
FROM unnest(%b::uuid[], %b::uuid[]) AS t (organization_id, group_id)
JOIN bridge.waits w USING (organization_id, group_id)
JOIN bridge.hand_overs h USING (organization_id, hand_over_id)
"""
_KEEP_PARTS = """
INSERT INTO bridge.wait_parts (organization_id, wait_id, part_id, message_id, origin_id, child_id, member,
                               position, place, payload)
SELECT w.organization_id, w.group_id, w.hand_over_id, t.carrier_id, h.message_id, h.child_id, w.member,
       w.position, h.message_id || '/' || h.hand_over_id, h.payload
FROM unnest(%b::uuid[], %b::uuid[], %b::text[]) AS t (organization_id, group_id, carrier_id)
JOIN bridge.waits w USING (organization_id, group_id)
JOIN bridge.hand_overs h USING (organization_id, hand_over_id)
"""
_CARRY_ON = """
UPDATE bridge.hand_overs h
SET state = 'available', resume = t.resume::jsonb, child_id = coalesce(t.becomes, h.child_id),
    available_at = now(), batch_id = CASE WHEN h.batch_id = ANY(%b::text[]) THEN h.batch_id END
FROM unnest(%b::uuid[], %b::uuid[], %b::text[], %b::text[]) AS t (organization_id, hand_over_id, resume, becomes)
WHERE h.organization_id = t.organization_id AND h.hand_over_id = t.hand_over_id
"""
_DROP_OTHERS = """
DELETE FROM bridge.hand_overs h USING unnest(%b::uuid[], %b::uuid[]) AS t (organization_id, hand_over_id)
WHERE h.organization_id = t.organization_id AND h.hand_over_id = t.hand_over_id
"""
_DROP_WAITS = """
DELETE FROM bridge.waits w USING unnest(%b::uuid[], %b::uuid[]) AS t (organization_id, group_id)
WHERE w.organization_id = t.organization_id AND w.group_id = t.group_id
"""
_CLOSE = """
UPDATE bridge.wait_groups g
SET closed_at = now(), due_at = NULL, how = t.how, carrier_id = t.carrier_id,
    members = ARRAY(SELECT jsonb_array_elements_text(t.members::jsonb)),
    forget_at = CASE WHEN g.message_id IS NULL THEN now() + make_interval(secs => g.late_s) END
FROM unnest(%b::uuid[], %b::uuid[], %b::text[], %b::text[], %b::text[])
     AS t (organization_id, group_id, how, carrier_id, members)
WHERE g.organization_id = t.organization_id AND g.group_id = t.group_id
"""
_NOTE = """
UPDATE bridge.messages m
SET trace = m.trace || t.note::jsonb, gathers = m.gathers OR t.carries,
    state = CASE WHEN m.state = 'dead' AND t.carries THEN 'handed_over' ELSE m.state END,
    dead_at = CASE WHEN t.carries THEN NULL ELSE m.dead_at END
FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::bool[]) AS t (organization_id, message_id, note, carries)
WHERE m.organization_id = t.organization_id AND m.message_id = t.message_id
"""
_DEAD_BELOW = """
SELECT t.organization_id, t.group_id, count(h.hand_over_id)
FROM unnest(%b::uuid[], %b::uuid[], %b::text[], %b::text[]) AS t (organization_id, group_id, message_id, scope)
LEFT JOIN bridge.hand_overs h ON h.organization_id = t.organization_id AND h.message_id = t.message_id
     AND h.state = 'dead' AND (t.scope = '' OR starts_with(h.child_id, t.scope || '.'))
GROUP BY t.organization_id, t.group_id
"""
# Nobody is left in it (their messages were discarded or began anew): nothing to remember either.
_FORGET_EMPTY = """
DELETE FROM bridge.wait_groups g USING unnest(%b::uuid[], %b::uuid[]) AS t (organization_id, group_id)
WHERE g.organization_id = t.organization_id AND g.group_id = t.group_id
"""
_NOTIFY = "SELECT pg_notify(%b, payload) FROM unnest(%b::text[]) AS t (payload)"


def release_groups(groups: Iterable[GroupKey], batches: Sequence[str] = ()) -> Statements:
    """Let groups go on that have something to do, once. A group is passed
    over whose row, or one of whose messages, somebody else is writing. The hand-over stays in its batch if that is
    one of `batches`. Gives the messages (locked) that may have ended by it, and how many groups went on."""
    wanted = sorted(set(groups))
    locked = {(row[0], row[1]) for row in (yield _LOCK_MEMBERS, columns(wanted))}
    found = {(row[0], row[1]): row[2:] for row in (yield _LOCK_GROUPS, columns(wanted))}
    if not found:
        return set(), 0
    members: dict[GroupKey, list[Any]] = defaultdict(list)
    for row in (yield _MEMBERS, columns(sorted(found))):
        members[row[0], row[1]].append(row[2:])
    empty = [key for key in found if not members[key]]
    if empty:
        yield _FORGET_EMPTY, columns(empty)
    going = {
        key: sorted(rows, key=_by_scope(found[key][1]))
        for key, rows in members.items()
        if rows and all((key[0], row[1]) in locked for row in rows)
    }
    if not going:
        return set(), 0
    lost = yield from _lost(going, found)
    touched = yield from _carry(going, found, lost, batches)
    return touched, len(going)


def _by_scope(scope: str | None) -> Any:
    if scope is None:
        return lambda row: (row[3], row[0].bytes)
    return lambda row: order(row[3], row[2])


def _lost(going: dict[GroupKey, list[Any]], found: dict[GroupKey, Any]) -> Statements:
    """How many dead letters each group within a message goes on without."""
    scoped = [(*key, rows[0][1], found[key][1]) for key, rows in going.items() if found[key][1] is not None]
    if not scoped:
        return {}
    rows: Rows = yield _DEAD_BELOW, columns(scoped)
    return {(row[0], row[1]): row[2] for row in rows}


def _carry(
    going: dict[GroupKey, list[Any]], found: dict[GroupKey, Any], lost: dict[GroupKey, int], batches: Sequence[str]
) -> Statements:
    yield _KEEP_PARTS, columns([(*key, rows[0][1]) for key, rows in going.items()])
    carriers, others, closing = [], [], []
    notes: dict[MessageKey, tuple[list[Any], bool]] = {}
    woken: set[str] = set()
    for key, rows in going.items():
        organization_id = key[0]
        how, scope, becomes, environment, flow, node_id = found[key]
        resume = {
            "how": how,
            "parts": str(key[1]),
            "group": "across" if scope is None else "within",
            "count": len(rows),
            "failed": lost.get(key, 0),
        }
        carrier_id = rows[0][1]
        carriers.append((organization_id, rows[0][0], json.dumps(resume), becomes))
        others += [(organization_id, row[0]) for row in rows[1:]]
        closing.append((*key, how, carrier_id, json.dumps([row[2] for row in rows])))
        woken.add(f"{organization_id}/{environment}/{flow}")
        others_ids = list(dict.fromkeys(row[1] for row in rows if row[1] != carrier_id))
        note = {"gathered_at": node_id, "how": how, "members": len(rows)}
        _noted(notes, (organization_id, carrier_id), {**note, "from": others_ids[:MAX_NAMED]}, True)
        for message_id in others_ids:
            _noted(notes, (organization_id, message_id), {"gathered_at": node_id, "into": carrier_id}, False)
    yield _CARRY_ON, (list(batches), *columns(carriers))
    yield _DROP_WAITS, columns(list(going))
    if others:
        yield _DROP_OTHERS, columns(others)
    yield _CLOSE, columns(closing)
    yield _NOTE, columns([(*key, json.dumps(entries), carries) for key, (entries, carries) in notes.items()])
    yield _NOTIFY, (CHANNEL, sorted(woken))
    return set(notes)


def _noted(notes: dict[MessageKey, tuple[list[Any], bool]], key: MessageKey, note: Any, carries: bool) -> None:
    entries, carried = notes.get(key, ([], False))
    notes[key] = ([*entries, note], carried or carries)


# -- what is due --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Released:
    """How many groups and how many single waits went on; `is_full` when there may be more that can."""

    groups: int
    waits: int
    is_full: bool


_DUE_GROUPS = """
SELECT organization_id, group_id FROM bridge.wait_groups WHERE due_at <= now() ORDER BY due_at LIMIT %s
"""
_LOCK_DUE = """
SELECT m.organization_id, m.message_id FROM bridge.messages m
WHERE (m.organization_id, m.message_id) IN (
    SELECT w.organization_id, w.message_id FROM bridge.waits w WHERE w.due_at <= now()
    ORDER BY w.due_at LIMIT %s)
ORDER BY m.organization_id, m.message_id FOR UPDATE SKIP LOCKED
"""
# A called message that is not in the hot table has been settled; one that runs again after it died is waited for
# as before.
_DUE = """
SELECT w.organization_id, w.hand_over_id, w.message_id, w.environment, w.flow, w.kind, w.called_id,
       coalesce(w.until <= now(), false), m.state,
       (SELECT s.result FROM bridge.settled_messages s
        WHERE s.organization_id = w.organization_id AND s.message_id = w.called_id AND m.state IS NULL
        ORDER BY s.settled_at DESC, s.replays DESC LIMIT 1),
       (SELECT count(*) FROM bridge.wait_parts p
        WHERE p.organization_id = w.organization_id AND p.wait_id = w.hand_over_id)
FROM unnest(%s::uuid[], %s::text[]) AS t (organization_id, message_id)
JOIN bridge.waits w USING (organization_id, message_id)
LEFT JOIN bridge.messages m ON m.organization_id = w.organization_id AND m.message_id = w.called_id
WHERE w.due_at <= now()
FOR UPDATE OF w
"""
_RELEASE = """
WITH gone AS (
    DELETE FROM bridge.waits w USING unnest(%s::uuid[], %s::uuid[], %s::text[]) AS t (organization_id, id, resume)
    WHERE w.organization_id = t.organization_id AND w.hand_over_id = t.id
    RETURNING w.organization_id, w.hand_over_id, w.message_id, t.resume
), revived AS (
    UPDATE bridge.messages m SET state = 'handed_over', dead_at = NULL FROM gone g
    WHERE m.organization_id = g.organization_id AND m.message_id = g.message_id AND m.state = 'dead'
)
UPDATE bridge.hand_overs h
SET state = 'available', resume = g.resume::jsonb, available_at = now(), batch_id = NULL
FROM gone g WHERE h.organization_id = g.organization_id AND h.hand_over_id = g.hand_over_id
"""
_WAIT_ON = """
UPDATE bridge.waits w SET due_at = w.until FROM unnest(%s::uuid[], %s::uuid[]) AS t (organization_id, id)
WHERE w.organization_id = t.organization_id AND w.hand_over_id = t.id
"""


def release_due(*, limit: int = CHUNK) -> Released:
    """Let go on up to `limit` groups and as many single waits that have something to do: complete, their time
    over, their flow settled. Any worker may call it as often as it likes, any number at once, beside every other
    verb: each wait is released once. What somebody is just writing is passed over and found by the next call.
    A crash leaves it undone or done, never half.

    Cheap when nothing is due: two looks into indexes.
    """
    with database.relay() as connection:
        groups = connection.execute(_DUE_GROUPS, (limit,)).fetchall()
        waiting = connection.execute("SELECT FROM bridge.waits WHERE due_at <= now() LIMIT 1").fetchone()
    released = 0
    # One group in a transaction: it holds the rows of all messages in it.
    for key in groups:
        released += _release_group(key)
    waits = _release_waits(limit) if waiting is not None else 0
    return Released(released, waits, is_full=max(released, waits) >= limit)


def _release_group(key: GroupKey) -> int:
    notices = Notices()
    with database.relay(after=notices) as connection:
        touched, count = run(connection, release_groups([key]))
        for organization_id, message_id in sorted(touched):
            units.conclude(connection, organization_id, message_id, notices=notices)
    return int(count)


def _release_waits(limit: int) -> int:
    with database.relay() as connection:
        locked = connection.execute(_LOCK_DUE, (limit,)).fetchall()
        if not locked:
            return 0
        rows = connection.execute(_DUE, columns(locked)).fetchall()
        going: list[tuple[Any, ...]] = []
        on: list[tuple[Any, ...]] = []
        woken: set[str] = set()
        for (
            organization_id,
            hand_over_id,
            _,
            environment,
            flow,
            kind,
            called_id,
            late,
            state,
            result,
            parts,
        ) in rows:
            resume: dict[str, Any] | None = {"how": "timeout"}
            if kind == "flow":
                resume = _answer(hand_over_id, called_id, late, state, result, parts)
            if resume is None:
                on.append((organization_id, hand_over_id))
                continue
            going.append((organization_id, hand_over_id, json.dumps(resume)))
            woken.add(f"{organization_id}/{environment}/{flow}")
        if on:
            connection.execute(_WAIT_ON, columns(on))
        if going:
            connection.execute(_RELEASE, columns(going))
            connection.execute(
                "SELECT pg_notify(%s, payload) FROM unnest(%s::text[]) AS t (payload)", (CHANNEL, sorted(woken))
            )
    return len(going)


def _answer(
    hand_over_id: UUID, called_id: str, late: bool, state: str | None, result: str | None, parts: int
) -> dict[str, Any] | None:
    """How a call ended; None when it has not."""
    facts = {"message_id": called_id}
    if state == "dead" or result == "dead":
        return {"how": "failed", **facts}
    if state is not None:
        return {"how": "timeout", **facts} if late else None
    if result != "done":
        return {"how": "failed", "reason": f"its message {'was skipped' if result else 'is gone'}", **facts}
    return {"how": "done", "parts": str(hand_over_id), "count": parts, **facts}
