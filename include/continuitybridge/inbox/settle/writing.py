"""Writing endings: so many statements as there are kinds of them, whatever the number of units.

The statements are a generator's, which gets the rows of each back: what runs them, and whether it waits in a
thread or in an event loop, is the caller's. All of one call belong into one transaction; a single one needs none
around it.

Lock order, everywhere: messages by organization and id, and a message's row before the rows of its hand-overs. So
settlements wait for each other instead of deadlocking, and two that end the last two hand-overs of a message see
each other: exactly one of them settles it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, Literal
from uuid import UUID

from continuitybridge.database.arrays import Int8Array, TextArray, UuidArray, texts
from continuitybridge.inbox import units
from continuitybridge.inbox.accept.rows import search_keys
from continuitybridge.inbox.replies import Notices
from continuitybridge.inbox.settle import answering
from continuitybridge.inbox.settle.endings import Ending, HandOver
from continuitybridge.inbox.statements import Rows, Statements, columns
from continuitybridge.inbox.waits import arriving, releasing
from continuitybridge.inbox.waits.arriving import Arrival

Became = Literal["done", "skipped", "handed_over", "retry", "dead", "stale"]
"""What became of the message: `handed_over` when another stage or another unit has yet to end; `retry` when this
unit will be tried again; `stale` when somebody else holds or has settled the unit, and nothing was changed."""

Writing = Generator[tuple[str, Sequence[Any]], Rows, list[Became]]
_Steps = Generator[tuple[str, Sequence[Any]], Rows, None]
_MessageKey = tuple[UUID, str]

# A lease is its owner's and its epoch's: a claim is committed without waiting for the disk, so that a crash of
# the database may forget one and give its epoch a second time. That a unit is claimed is said by its lease (a rule
# of the tables), not by its state: else the planner may go by the index of all claimed rows, each with each.
_HELD = """
WITH ending AS (
    SELECT * FROM unnest(%b::uuid[], %b::{id_type}[], %b::int8[], %b::text[]{more_types})
        AS t (organization_id, id, epoch, owner{more})
)"""
_IS_HELD = """
WHERE u.organization_id = e.organization_id AND u.{id} = e.id AND u.epoch = e.epoch AND u.lease_owner = e.owner
  AND u.lease_until IS NOT NULL
"""

_KEYS = "CASE WHEN found IS NULL THEN keys ELSE found::jsonb || keys END"

# Each message is deleted under its lease and settled by what the delete gave back, so that a message settles
# exactly when it leaves the hot table.
_CLOSE_MESSAGES = f"""
WITH ending AS (
    SELECT * FROM unnest(%b::uuid[], %b::text[], %b::int8[], %b::text[], %b::text[], %b::text[], %b::uuid[],
                         %b::int2[], %b::text[], %b::bytea[])
        WITH ORDINALITY AS t (organization_id, id, epoch, owner, trace, keys, reply_id, reply_status, reply_code,
                              reply_content, position)
), gone AS (
    DELETE FROM bridge.messages u USING ending e {_IS_HELD.format(id="message_id")}
    RETURNING u.*, e.trace AS added, e.keys AS found, e.reply_id, e.reply_status, e.reply_code, e.reply_content,
              e.position
), settled AS (
    {units.SETTLE_GONE.format(result="'done'", trace="trace || added::jsonb", keys=_KEYS)}
), answered AS (
    {answering.ANSWER_GONE}
)
SELECT array_agg(position), array_agg(position) FILTER (WHERE reply_until IS NOT NULL) FROM gone
"""  # noqa: S608  (constants, here and below)
_LOCK = """
SELECT u.organization_id, u.message_id, u.reply_until, u.replays, u.gathers FROM bridge.messages u
JOIN unnest(%b::uuid[], %b::text[]) AS t (organization_id, message_id)
    USING (organization_id, message_id)
ORDER BY u.organization_id, u.message_id FOR UPDATE OF u
"""
_END_MESSAGES = (
    _HELD.format(
        id_type="text",
        more_types=", %b::text[], %b::text[], %b::text[], %b::float8[], %b::bool[], %b::text[]",
        more=", state, trace, keys, wait_s, leaves, waits_for",
    )
    + """
UPDATE bridge.messages u
SET state = e.state, lease_owner = NULL, lease_until = NULL, trace = u.trace || e.trace::jsonb,
    keys = e.keys::jsonb || u.keys,
    dead_at = CASE WHEN e.state = 'dead' THEN now() END, available_at = now() + make_interval(secs => e.wait_s),
    batch_id = CASE WHEN e.leaves THEN NULL ELSE u.batch_id END,
    attempts = u.attempts - CASE WHEN e.waits_for IS NULL THEN 0 ELSE 1 END, waits_for = e.waits_for
FROM ending e"""
    + _IS_HELD.format(id="message_id")
    + "RETURNING u.organization_id, u.message_id"
)
_END_HAND_OVERS = (
    _HELD.format(
        id_type="uuid",
        more_types=", %b::text[], %b::float8[], %b::bool[], %b::text[]",
        more=", state, wait_s, leaves, waits_for",
    )
    + """
UPDATE bridge.hand_overs u
SET state = e.state, lease_owner = NULL, lease_until = NULL,
    available_at = now() + make_interval(secs => e.wait_s),
    batch_id = CASE WHEN e.leaves THEN NULL ELSE u.batch_id END,
    attempts = u.attempts - CASE WHEN e.waits_for IS NULL THEN 0 ELSE 1 END, waits_for = e.waits_for
FROM ending e"""
    + _IS_HELD.format(id="hand_over_id")
    + "RETURNING u.organization_id, u.hand_over_id"
)
_CLOSE_HAND_OVERS = (
    _HELD.format(id_type="uuid", more_types="", more="")  # noqa: S608
    + "DELETE FROM bridge.hand_overs u USING ending e"
    + _IS_HELD.format(id="hand_over_id")
    + "RETURNING u.organization_id, u.hand_over_id"
)
_INSERT_HAND_OVERS = """
INSERT INTO bridge.hand_overs (organization_id, hand_over_id, message_id, child_id, environment, flow, version,
                               stage, node_id, state, payload, attempts, available_at, batch_id, waits_for,
                               mode, resume)
SELECT m.organization_id, t.hand_over_id, m.message_id, t.child_id, m.environment, m.flow, m.version, t.stage,
       t.node_id, t.state, t.payload, t.attempts,
       coalesce(to_timestamp(t.until), now() + make_interval(secs => t.wait_s)), t.batch_id,
       t.waits_for, m.mode, t.resume::jsonb
FROM unnest(%b::uuid[], %b::text[], %b::uuid[], %b::text[], %b::text[], %b::text[], %b::text[], %b::bytea[],
            %b::int4[], %b::float8[], %b::text[], %b::text[], %b::float8[], %b::text[])
     AS t (organization_id, message_id, hand_over_id, child_id, stage, node_id, state, payload, attempts, wait_s,
           batch_id, waits_for, until, resume)
JOIN bridge.messages m USING (organization_id, message_id)
"""
_INSERT_FAILURES = """
INSERT INTO bridge.failures (organization_id, failure_id, message_id, child_id, environment, flow, version,
                             node_id, node_type, code, verdict, final, attempt, context)
SELECT * FROM unnest(%b::uuid[], %b::uuid[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[],
                     %b::text[], %b::text[], %b::text[], %b::text[], %b::bool[], %b::int4[], %b::bytea[])
"""
# For whoever called this message's flow, if he still waits.
_INSERT_RESULTS = """
INSERT INTO bridge.wait_parts (organization_id, wait_id, part_id, message_id, origin_id, child_id, place, payload)
SELECT w.organization_id, w.hand_over_id, t.part_id, w.message_id, t.message_id, t.child_id, t.place, t.payload
FROM unnest(%b::uuid[], %b::text[], %b::uuid[], %b::text[], %b::text[], %b::bytea[])
     AS t (organization_id, message_id, part_id, child_id, place, payload)
JOIN bridge.waits w ON w.organization_id = t.organization_id AND w.called_id = t.message_id
"""
_APPEND_TRACES = """
UPDATE bridge.messages u SET trace = u.trace || t.trace::jsonb
FROM unnest(%b::uuid[], %b::text[], %b::text[]) AS t (organization_id, message_id, trace)
WHERE u.organization_id = t.organization_id AND u.message_id = t.message_id
"""
_ADD_KEYS = """
UPDATE bridge.messages u SET keys = t.keys::jsonb || u.keys
FROM unnest(%b::uuid[], %b::text[], %b::text[]) AS t (organization_id, message_id, keys)
WHERE u.organization_id = t.organization_id AND u.message_id = t.message_id
"""
# Settled when nothing is left to do (dead beats skipped, skipped beats done).
_CONCLUDE = f"""
WITH looked AS (
    SELECT t.organization_id, t.message_id, CASE
        WHEN bool_or({units.GOES_ON}) THEN 'handed_over'
        WHEN bool_or(h.state = 'dead') THEN 'dead'
        WHEN bool_or(h.state = 'skipped') THEN 'skipped' ELSE 'done' END AS became
    FROM unnest(%b::uuid[], %b::text[]) AS t (organization_id, message_id)
    LEFT JOIN bridge.hand_overs h USING (organization_id, message_id)
    GROUP BY t.organization_id, t.message_id
), buried AS (
    UPDATE bridge.messages u SET state = 'dead', dead_at = now() FROM looked l
    WHERE u.organization_id = l.organization_id AND u.message_id = l.message_id AND l.became = 'dead'
), gone AS (
    DELETE FROM bridge.messages u USING looked l
    WHERE u.organization_id = l.organization_id AND u.message_id = l.message_id
      AND l.became IN ('done', 'skipped')
    RETURNING u.*, l.became
), settled AS (
    {units.SETTLE_GONE.format(result="became", trace="trace", keys="keys")}
)
SELECT organization_id, message_id, became FROM looked
"""  # noqa: S608


def write(endings: Sequence[Ending], notices: Notices) -> Writing:
    """The statements that write `endings`; gives what became of each, in their order. Of two endings of one unit
    the first counts, and the other is stale. What `notices` holds then is to be sent after the commit."""
    became: list[Became] = ["stale"] * len(endings)
    order = sorted(_first_of_each(endings), key=lambda n: _message(endings[n]))
    plain = [n for n in order if endings[n].is_plain]
    other = [n for n in order if not endings[n].is_plain]
    if plain:
        of = [endings[n] for n in plain]
        rows = yield _CLOSE_MESSAGES, _plain_parameters(of)
        [(settled, awaiting)] = rows
        for position in settled or ():
            became[plain[position - 1]] = "done"
        for position in awaiting or ():
            ending = endings[plain[position - 1]]
            notices.ready(*_message(ending), ending.reply)
    if other:
        rows = yield _LOCK, _keys(dict.fromkeys(_message(endings[n]) for n in other))
        awaited = answering.awaited(rows)
        held = yield from _end([endings[n] for n in other])
        kept = [n for n in other if _unit(endings[n]) in held]
        yield from _add([endings[n] for n in kept])
        gathering = {(row[0], row[1]) for row in rows if row[4]}
        touched = yield from _park([endings[n] for n in kept], gathering)
        gathered = touched - {(row[0], row[1]) for row in rows}
        if gathered:
            more = answering.awaited((yield _LOCK, _keys(sorted(gathered))))
            yield from answering.gathered(more)
            awaited |= more
        if awaited:
            yield from answering.unfinished([endings[n] for n in kept], awaited, notices)
        # A message that was claimed as a whole has no hand-overs but those just written.
        looked = dict.fromkeys(
            _message(endings[n]) for n in kept if endings[n].claimed.hand_over_id is not None or endings[n].results
        )
        looked |= dict.fromkeys(sorted(touched))
        concluded: dict[_MessageKey, Became] = {}
        if looked:
            rows = yield _CONCLUDE, _keys(looked)
            concluded = {(row[0], row[1]): row[2] for row in rows}
        if awaited and concluded:
            yield from answering.concluded(concluded, awaited, notices)
        last = {_message(endings[n]): n for n in kept}
        for n in kept:
            message = _message(endings[n])
            state = concluded.get(message) or _message_state(endings[n])
            if last[message] != n:
                state = "handed_over"  # another unit of the message ended with it
            became[n] = "retry" if endings[n].tried_again and state in ("handed_over", "accepted") else state
    return became


def _park(endings: Sequence[Ending], gathering: set[_MessageKey]) -> Statements:
    """Write what waits, and let groups go on that are complete by what ended. `gathering` are the messages with
    groups of their own. Gives the messages that may have become something else by it."""
    complete: Rows = []
    arrivals = [
        Arrival(ending.claimed, each.hand_over_id, each.child_id, each.node_id, each.parked)
        for ending in endings
        for each in ending.hand_overs
        if each.parked is not None
    ]
    if arrivals:
        complete, more = yield from arriving.arrive(arrivals)
        gathering |= more
    if gathering:
        complete = [*complete, *(yield from arriving.ended(gathering))]
    if not complete:
        return gathering
    batches = list({each.claimed.batch_id for each in endings if each.claimed.batch_id is not None})
    touched, _ = yield from releasing.release_groups(complete, batches)
    return gathering | touched


def _end(endings: Sequence[Ending]) -> Generator[tuple[str, Sequence[Any]], Rows, set[Any]]:
    """End the units under their leases; the units that were held."""
    held: set[Any] = set()
    messages = [each for each in endings if each.claimed.hand_over_id is None]
    parts = [each for each in endings if each.claimed.hand_over_id is not None]
    closed = [each for each in parts if each.fate == "closed"]
    kept = [each for each in parts if each.fate != "closed"]
    if messages:
        rows = yield (
            _END_MESSAGES,
            (
                *_leases(messages, _message_id),
                [_message_state(each) for each in messages],
                [each.trace.decode() for each in messages],
                [search_keys(each.keys) for each in messages],
                *_again(messages),
            ),
        )
        held |= {(row[0], row[1], None) for row in rows}
    names = {(each.claimed.organization_id, each.claimed.hand_over_id): _unit(each) for each in parts}
    if closed:
        rows = yield _CLOSE_HAND_OVERS, _leases(closed, _hand_over_id)
        held |= {names[row[0], row[1]] for row in rows}
    if kept:
        states = ["available" if each.fate == "retry" else "dead" for each in kept]
        rows = yield _END_HAND_OVERS, (*_leases(kept, _hand_over_id), states, *_again(kept))
        held |= {names[row[0], row[1]] for row in rows}
    return held


def _add(endings: Sequence[Ending]) -> _Steps:
    """Write what the units left: hand-overs, failures, traces."""
    rows = [_hand_over_row(ending, each) for ending in endings for each in ending.hand_overs]
    if rows:
        yield _INSERT_HAND_OVERS, columns(rows)
    failures = [each for ending in endings for each in ending.failures]
    if failures:
        yield _INSERT_FAILURES, columns(failures)
    results = _result_rows(endings)
    if results:
        yield _INSERT_RESULTS, columns(results)
    traces: dict[_MessageKey, list[str]] = {}
    for ending in endings:
        if ending.claimed.hand_over_id is not None and ending.trace != b"[]":
            traces.setdefault(_message(ending), []).append(ending.trace[1:-1].decode())
    if traces:
        texts = [f"[{','.join(filter(None, parts))}]" for parts in traces.values()]
        yield _APPEND_TRACES, (*_keys(traces), texts)
    found: dict[_MessageKey, dict[str, Any]] = {}
    for ending in endings:
        if ending.claimed.hand_over_id is not None and ending.keys:
            # Of several parts of one message the first counts, as of several forms of one part.
            found[_message(ending)] = {**ending.keys, **found.get(_message(ending), {})}
    if found:
        yield _ADD_KEYS, (*_keys(found), [search_keys(keys) for keys in found.values()])


def _result_rows(endings: Sequence[Ending]) -> list[tuple[Any, ...]]:
    return [
        (
            *(ending.claimed.organization_id, ending.claimed.message_id),
            *(each.part_id, each.child_id, each.place, each.payload),
        )
        for ending in endings
        for each in ending.results
    ]


def _message_state(ending: Ending) -> Any:
    """What a message becomes that was claimed as a whole."""
    if ending.fate != "closed":
        return "accepted" if ending.fate == "retry" else "dead"
    # With none alive among its hand-overs, all that is left of it is dead; with none at all it is concluded next.
    alive = not ending.hand_overs or any(each.state != "dead" for each in ending.hand_overs)
    return "handed_over" if alive else "dead"


def _first_of_each(endings: Sequence[Ending]) -> list[int]:
    seen: dict[Any, int] = {}
    for n, ending in enumerate(endings):
        seen.setdefault((_unit(ending), ending.claimed.epoch), n)
    return list(seen.values())


def _unit(ending: Ending) -> tuple[UUID, str, UUID | None]:
    return ending.claimed.organization_id, ending.claimed.message_id, ending.claimed.hand_over_id


def _message(ending: Ending) -> _MessageKey:
    return ending.claimed.organization_id, ending.claimed.message_id


def _message_id(ending: Ending) -> str:
    return ending.claimed.message_id


def _hand_over_id(ending: Ending) -> UUID | None:
    return ending.claimed.hand_over_id


def _plain_parameters(endings: Sequence[Ending]) -> tuple[Any, ...]:
    """The parameters of `_CLOSE_MESSAGES`. What few messages have is left out where none has it."""
    of = [ending.claimed for ending in endings]
    return (
        UuidArray([claimed.organization_id for claimed in of]),
        texts([claimed.message_id for claimed in of]),
        Int8Array([claimed.epoch for claimed in of]),
        texts([claimed.owner for claimed in of]),
        TextArray([ending.trace for ending in endings]),
        [search_keys(each.keys) for each in endings] if any(each.keys for each in endings) else None,
        *answering.columns(endings),
    )


def _leases(endings: Sequence[Ending], id_of: Callable[[Ending], Any]) -> tuple[list[Any], ...]:
    return (
        [each.claimed.organization_id for each in endings],
        [id_of(each) for each in endings],
        [each.claimed.epoch for each in endings],
        [each.claimed.owner for each in endings],
    )


def _again(endings: Sequence[Ending]) -> tuple[list[float], list[bool], list[str | None]]:
    return (
        [each.wait_s for each in endings],
        [each.fate == "retry" and not each.in_batch for each in endings],
        [each.waits_for for each in endings],
    )


def _keys(messages: Iterable[_MessageKey]) -> tuple[list[UUID], list[str]]:
    keys = list(messages)
    return [key[0] for key in keys], [key[1] for key in keys]


def _hand_over_row(ending: Ending, each: HandOver) -> tuple[Any, ...]:
    claimed = ending.claimed
    return (
        claimed.organization_id,
        claimed.message_id,
        each.hand_over_id,
        each.child_id,
        each.stage,
        each.node_id,
        each.state,
        each.payload,
        each.attempts,
        each.wait_s,
        claimed.batch_id if each.in_batch else None,
        each.waits_for,
        each.until,
        each.resume,
    )
