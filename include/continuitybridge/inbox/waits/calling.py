"""Calling another flow: the child message of a subflow, accepted in the transaction that parks its caller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from continuitybridge.inbox.accept import CHANNEL
from continuitybridge.inbox.statements import Statements, columns

if TYPE_CHECKING:
    from continuitybridge.inbox.claim import Claimed
    from continuitybridge.inbox.waits.parking import Call

MAX_DEPTH = 8
"""So many calls may wait for each other in a chain."""

_Call = tuple["Claimed", UUID, "Call"]

# How deep the caller stands itself: its callers are all under way, hence in the hot table.
_TARGETS = """
SELECT t.hand_over_id, d.version, d.status, v.mode, v.plan -> 'triggers',
       (WITH RECURSIVE up AS (
            SELECT m.parent_id, 1 AS depth FROM bridge.messages m
            WHERE m.organization_id = t.organization_id AND m.message_id = t.message_id
            UNION ALL
            SELECT m.parent_id, up.depth + 1 FROM up JOIN bridge.messages m
              ON m.organization_id = t.organization_id AND m.message_id = up.parent_id
            WHERE up.depth <= 64)
        SELECT max(depth) FROM up)
FROM unnest(%b::uuid[], %b::text[], %b::uuid[], %b::text[], %b::text[])
     AS t (organization_id, message_id, hand_over_id, environment, flow)
LEFT JOIN bridge.deployments d ON d.organization_id = t.organization_id AND d.environment = t.environment
     AND d.flow = t.flow AND d.status <> 'removed'
LEFT JOIN bridge.flow_versions v ON v.organization_id = d.organization_id AND v.flow = d.flow
     AND v.version = d.version
"""
# A message that was called before and became a dead letter runs again; one that is under way is waited for; one
# that was settled is accepted once more.
_ACCEPT = """
INSERT INTO bridge.messages AS m
    (organization_id, message_id, environment, flow, version, mode, source, trigger_id, payload, content_type,
     size_bytes, parent_id, generation, replays, retention_class)
SELECT t.organization_id, t.called_id, p.environment, t.flow, t.version, t.mode, 'flow', t.trigger_id, t.payload,
       t.content_type, t.size_bytes, p.message_id, p.generation,
       coalesce((SELECT max(s.replays) + 1 FROM bridge.settled_messages s
                 WHERE s.organization_id = t.organization_id AND s.message_id = t.called_id), 0),
       p.retention_class
FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::bytea[],
            %b::text[], %b::int4[])
     AS t (organization_id, message_id, called_id, flow, version, mode, trigger_id, payload, content_type,
           size_bytes)
JOIN bridge.messages p ON p.organization_id = t.organization_id AND p.message_id = t.message_id
ORDER BY t.organization_id, t.called_id
ON CONFLICT (organization_id, message_id) DO UPDATE
SET state = 'accepted', dead_at = NULL, attempts = 0, epoch = m.epoch + 1, batch_id = NULL, available_at = now(),
    replays = m.replays + 1, version = excluded.version, mode = excluded.mode, trigger_id = excluded.trigger_id,
    generation = excluded.generation, payload = excluded.payload, content_type = excluded.content_type,
    size_bytes = excluded.size_bytes,
    trace = m.trace || jsonb_build_array(jsonb_build_object('called_again_by', excluded.parent_id))
WHERE m.state = 'dead' AND m.source = 'flow'
RETURNING m.organization_id, m.message_id
"""
_FORGET = """
DELETE FROM bridge.hand_overs h USING unnest(%b::uuid[], %b::text[]) AS t (organization_id, message_id)
WHERE h.organization_id = t.organization_id AND h.message_id = t.message_id
"""
_NOTIFY = "SELECT pg_notify(%b, payload) FROM unnest(%b::text[]) AS t (payload)"


def call(calls: Sequence[_Call]) -> Statements:
    """Accept the messages of `calls`; gives the hand-overs whose call cannot be made, and why not."""
    found = {
        row[0]: row[1:]
        for row in (
            yield (
                _TARGETS,
                columns(
                    [
                        (c.organization_id, c.message_id, hand_over_id, c.environment, made.flow)
                        for c, hand_over_id, made in calls
                    ]
                ),
            )
        )
    }
    failed: dict[UUID, str] = {}
    rows: dict[tuple[UUID, str], tuple[Any, ...]] = {}
    woken: set[str] = set()
    for claimed, hand_over_id, made in calls:
        version, status, mode, triggers, depth = found[hand_over_id]
        problem = _problem(claimed, made, version, status, triggers, depth)
        if problem is not None:
            failed[hand_over_id] = problem
            continue
        trigger = made.trigger or (triggers[0] if triggers else None)
        rows[claimed.organization_id, made.called_id] = (
            *(claimed.organization_id, claimed.message_id, made.called_id, made.flow, version, mode, trigger),
            *(made.payload, made.content_type, made.size_bytes),
        )
        woken.add(f"{claimed.organization_id}/{claimed.environment}/{made.flow}")
    if rows:
        written = yield _ACCEPT, columns(list(rows.values()))
        if written:
            yield _FORGET, columns(written)
        yield _NOTIFY, (CHANNEL, sorted(woken))
    return failed


def _problem(
    claimed: Claimed, made: Call, version: str | None, status: str | None, triggers: list[str] | None, depth: int
) -> str | None:
    if version is None:
        return f"flow {made.flow!r} is not deployed in {claimed.environment}"
    if status != "active":
        return f"flow {made.flow!r} is disabled in {claimed.environment}"
    if made.trigger is not None and made.trigger not in (triggers or ()):
        return f"flow {made.flow!r} has no trigger {made.trigger!r}; it has {', '.join(triggers or ())}"
    if depth > MAX_DEPTH:
        return f"{MAX_DEPTH} calls wait for each other already"
    return None
