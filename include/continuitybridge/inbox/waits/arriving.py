"""Writing waits: with the units that left them, in their transaction. (`inbox.statements`)."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from uuid6 import uuid7

from continuitybridge.inbox import units
from continuitybridge.inbox.statements import Rows, Statements, columns
from continuitybridge.inbox.waits import calling
from continuitybridge.inbox.waits.parking import Parked

if TYPE_CHECKING:
    from continuitybridge.inbox.claim import Claimed

MessageKey = tuple[UUID, str]
GroupKey = tuple[UUID, UUID]
"""Organization and group."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A hand-over that was just written in state `waiting`, and what it waits for."""

    claimed: Claimed
    hand_over_id: UUID
    child_id: str
    node_id: str
    parked: Parked


_INSERT_WAITS = """
INSERT INTO bridge.waits (organization_id, hand_over_id, message_id, environment, flow, node_id, kind, group_id,
                          member, position, called_id, summary, until, due_at)
SELECT t.organization_id, t.hand_over_id, t.message_id, t.environment, t.flow, t.node_id, t.kind, t.group_id,
       t.member, t.position, t.called_id, t.summary, e.until, CASE WHEN t.kind <> 'group' THEN e.until END
FROM unnest(%b::uuid[], %b::uuid[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::uuid[],
            %b::text[], %b::int4[], %b::text[], %b::bytea[], %b::float8[], %b::float8[])
     AS t (organization_id, hand_over_id, message_id, environment, flow, node_id, kind, group_id, member, position,
           called_id, summary, until, within_s)
CROSS JOIN LATERAL (SELECT coalesce(to_timestamp(t.until), now() + make_interval(secs => t.within_s))) AS e (until)
"""
# Groups that were opened under an earlier data key, the open ones and the newest first.
_UNDER_FORMER_KEYS = """
SELECT DISTINCT ON (t.place) t.place, g.key_hash
FROM unnest(%b::int4[], %b::uuid[], %b::text[], %b::text[], %b::text[], %b::bytea[], %b::text[])
     AS t (place, organization_id, environment, flow, node_id, key_hash, message_id)
JOIN bridge.wait_groups g USING (organization_id, environment, flow, node_id, key_hash)
WHERE g.closed_at IS NULL OR g.forget_at > now() OR g.carrier_id = t.message_id
ORDER BY t.place, g.closed_at IS NOT NULL, g.key_hash DESC
"""
# The update locks the row: whoever comes at the same moment waits and then sees who came before. Everybody takes
# groups in one order.
_OPEN_GROUPS = """
INSERT INTO bridge.wait_groups AS g (organization_id, environment, flow, node_id, key_hash, group_id, message_id,
                                     scope, holds, need, becomes, late_s, awaits, until, due_at)
SELECT t.organization_id, t.environment, t.flow, t.node_id, t.key_hash, t.group_id, t.message_id, t.scope, t.holds,
       t.need, nullif(t.becomes, ''), t.late_s,
       CASE WHEN t.awaits IS NOT NULL THEN ARRAY(SELECT jsonb_array_elements_text(t.awaits::jsonb)) END,
       e.until, e.until
FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::text[], %b::bytea[], %b::uuid[], %b::text[], %b::text[],
            %b::bool[], %b::int4[], %b::text[], %b::float8[], %b::text[], %b::float8[], %b::float8[])
     AS t (organization_id, environment, flow, node_id, key_hash, group_id, message_id, scope, holds, need,
           becomes, late_s, awaits, until, within_s)
CROSS JOIN LATERAL (SELECT coalesce(to_timestamp(t.until), now() + make_interval(secs => t.within_s))) AS e (until)
ORDER BY t.organization_id, t.environment, t.flow, t.node_id, t.key_hash
ON CONFLICT (organization_id, environment, flow, node_id, key_hash) DO UPDATE
    SET need = excluded.need, awaits = excluded.awaits
RETURNING g.organization_id, g.environment, g.flow, g.node_id, g.key_hash, g.group_id, g.closed_at IS NOT NULL,
          coalesce(g.forget_at <= now(), false), g.carrier_id, g.members, g.how,
          g.carrier_id IS NOT NULL AND EXISTS (
              SELECT FROM bridge.wait_parts p
              WHERE p.organization_id = g.organization_id AND p.wait_id = g.group_id)
"""
_OPEN_AGAIN = """
UPDATE bridge.wait_groups g
SET group_id = t.fresh_id, how = NULL, until = e.until, due_at = e.until, created_at = now(), closed_at = NULL,
    forget_at = NULL, carrier_id = NULL, members = NULL
FROM unnest(%b::uuid[], %b::uuid[], %b::uuid[], %b::float8[], %b::float8[])
     AS t (organization_id, group_id, fresh_id, until, within_s)
CROSS JOIN LATERAL (SELECT coalesce(to_timestamp(t.until), now() + make_interval(secs => t.within_s))) AS e (until)
WHERE g.organization_id = t.organization_id AND g.group_id = t.group_id
"""
_GO_ON = """
UPDATE bridge.hand_overs h SET state = 'available', resume = t.resume::jsonb, available_at = now()
FROM unnest(%b::uuid[], %b::uuid[], %b::text[]) AS t (organization_id, hand_over_id, resume)
WHERE h.organization_id = t.organization_id AND h.hand_over_id = t.hand_over_id
"""
_DROP = """
DELETE FROM bridge.hand_overs h USING unnest(%b::uuid[], %b::uuid[]) AS t (organization_id, hand_over_id)
WHERE h.organization_id = t.organization_id AND h.hand_over_id = t.hand_over_id
"""
_COMPLETE = """
UPDATE bridge.wait_groups g SET how = 'complete', due_at = now()
FROM unnest(%b::uuid[], %b::uuid[]) AS t (organization_id, group_id)
WHERE g.organization_id = t.organization_id AND g.group_id = t.group_id AND g.how IS NULL AND g.need > 0
  AND g.message_id IS NULL AND g.need <= (SELECT count(DISTINCT w.member) FROM bridge.waits w
                 WHERE w.organization_id = g.organization_id AND w.group_id = g.group_id)
RETURNING g.organization_id, g.group_id
"""
_GATHERS = """
UPDATE bridge.messages m SET gathers = true
FROM unnest(%b::uuid[], %b::text[]) AS t (organization_id, message_id)
WHERE m.organization_id = t.organization_id AND m.message_id = t.message_id AND NOT m.gathers
"""


def arrive(arrivals: Sequence[Arrival]) -> Statements:
    """Write the waits of `arrivals`. Gives (groups across messages that are complete, messages with groups of
    their own: see `ended`)."""
    # A call that cannot be made goes on at once; its wait would have nothing to wait for.
    failed: dict[UUID, str] = {}
    calls = [each for each in arrivals if each.parked.call is not None]
    if calls:
        failed = yield from calling.call([(a.claimed, a.hand_over_id, a.parked.call) for a in calls])  # type: ignore[misc]
    alone = [a for a in arrivals if a.parked.key_hash is None and a.hand_over_id not in failed]
    rows = [_wait_row(each, None) for each in alone]
    going: dict[tuple[UUID, UUID], dict[str, Any]] = {
        (a.claimed.organization_id, a.hand_over_id): {"how": "failed", "reason": failed[a.hand_over_id]}
        for a in calls
        if a.hand_over_id in failed
    }
    members = [each for each in arrivals if each.parked.key_hash is not None]
    groups: dict[Any, GroupKey] = {}
    if any(each.parked.former for each in members):
        members = yield from _under_their_keys(members)
    if members:
        counted: list[Arrival] = []
        groups = yield from _groups_of(members, rows, going, counted)
        if counted:
            yield _DROP, columns([(a.claimed.organization_id, a.hand_over_id) for a in counted])
    if rows:
        yield _INSERT_WAITS, columns(rows)
    if going:
        yield _GO_ON, columns([(*key, json.dumps(resume)) for key, resume in going.items()])
    complete: list[GroupKey] = []
    if groups:
        complete = yield _COMPLETE, columns(sorted(set(groups.values())))
    gathering = {_message(each) for each in members if each.parked.wait.scope is not None}
    marked = gathering | {_message(each) for each in calls}
    if marked:
        yield _GATHERS, columns(sorted(marked))
    return complete, gathering


def ended(messages: Iterable[MessageKey]) -> Statements:
    """Mark the groups within these messages (locked) that go on now; gives them."""
    found: Rows = yield units.GATHERING_ENDED, columns(sorted(messages))
    return found


def _under_their_keys(members: Sequence[Arrival]) -> Generator[tuple[str, Sequence[Any]], Rows, list[Arrival]]:
    """The members, each with its group's hash: the current data key's, unless it is there under a former one."""
    rows = [
        (place, *_key(each)[:4], key_hash, each.claimed.message_id)
        for place, each in enumerate(members)
        for key_hash in (each.parked.key_hash, *each.parked.former)
        if each.parked.former
    ]
    found: dict[int, bytes] = dict((yield _UNDER_FORMER_KEYS, columns(rows)))
    return [
        replace(each, parked=replace(each.parked, key_hash=found.get(place, each.parked.key_hash)))
        for place, each in enumerate(members)
    ]


def _groups_of(
    members: Sequence[Arrival],
    rows: list[tuple[Any, ...]],
    going: dict[tuple[UUID, UUID], dict[str, Any]],
    counted: list[Arrival],
) -> Statements:
    """Find or open the groups of `members`, and say of each what it is to its group: one more (`rows`), one that
    goes on (`going`: late, or the carrier of a group that has gone on before), or one that is in there already
    (`counted`). Gives the groups that got members."""
    first: dict[Any, Arrival] = {}
    for each in members:
        first.setdefault(_key(each), each)
    known: dict[Any, Any] = {}
    for row in (yield _OPEN_GROUPS, columns([_group_row(first[key]) for key in sorted(first)])):
        known[row[:5]] = row[5:]
    again: dict[Any, UUID] = {}
    joined: dict[Any, GroupKey] = {}
    for each in members:
        key, organization_id = _key(each), each.claimed.organization_id
        group_id, closed, forgotten, carrier_id, names, how, kept = known[key]
        across = each.parked.wait.scope is None
        if closed and key not in again:
            is_carriers = kept and each.claimed.message_id == carrier_id
            if is_carriers and each.child_id == names[0]:
                # Run again from its beginning, the carrier finds what it had gathered.
                resume = {"how": how, "parts": str(group_id), "group": "across", "count": len(names)}
                going[organization_id, each.hand_over_id] = resume
                continue
            if is_carriers and each.child_id in names:
                counted.append(each)
                continue
            if not across or (not forgotten and each.child_id not in names):
                going[organization_id, each.hand_over_id] = {"how": "late"}
                continue
            again[key] = uuid7()
        joined[key] = (organization_id, again.get(key, group_id))
        rows.append(_wait_row(each, joined[key][1]))
    if again:
        reopened = []
        for key, fresh_id in again.items():
            wait = first[key].parked.wait
            reopened.append((key[0], known[key][0], fresh_id, wait.until, wait.within_s))
        yield _OPEN_AGAIN, columns(reopened)
    return joined


def _key(each: Arrival) -> Any:
    claimed = each.claimed
    return claimed.organization_id, claimed.environment, claimed.flow, each.node_id, each.parked.key_hash


def _group_row(each: Arrival) -> tuple[Any, ...]:
    wait = each.parked.wait
    within = None if wait.scope is None else each.claimed.message_id
    return (
        *(_key(each)),
        *(uuid7(), within, wait.scope, each.parked.holds, wait.need, wait.becomes, each.parked.late_s),
        *(each.parked.awaits, wait.until, wait.within_s),
    )


def _wait_row(each: Arrival, group_id: UUID | None) -> tuple[Any, ...]:
    claimed, wait, call = each.claimed, each.parked.wait, each.parked.call
    return (
        *(claimed.organization_id, each.hand_over_id, claimed.message_id, claimed.environment, claimed.flow),
        *(each.node_id, wait.kind, group_id, wait.member if group_id else None, wait.position),
        *(None if call is None else call.called_id, each.parked.summary, wait.until, wait.within_s),
    )


def _message(each: Arrival) -> MessageKey:
    return each.claimed.organization_id, each.claimed.message_id
