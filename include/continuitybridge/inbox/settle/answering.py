"""Answering callers who wait for the result of messages that are being settled: statements of the same
transaction, for those messages only (`writing` has the rest)."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from uuid6 import uuid7

from continuitybridge.database.arrays import Array, ByteaArray, Int2Array, UuidArray, texts
from continuitybridge.inbox.replies import Notices, Prepared
from continuitybridge.inbox.replies.rows import ACCEPTED, SKIPPED
from continuitybridge.inbox.settle.endings import Ending

_Key = tuple[UUID, str]
_Steps = Generator[tuple[str, Sequence[Any]], list[tuple[Any, ...]], None]


@dataclass(frozen=True, slots=True)
class Awaited:
    """A message whose caller waits until then at most; `replays` says in which of its lives."""

    until: datetime
    replays: int


ANSWER_GONE = """
INSERT INTO bridge.replies (organization_id, message_id, reply_id, status, code, content, ready, replays)
SELECT organization_id, message_id, coalesce(reply_id, gen_random_uuid()),
       CASE WHEN reply_id IS NULL THEN 202 ELSE reply_status END, reply_code, reply_content, true, replays
FROM gone WHERE reply_until IS NOT NULL
"""
"""A message that gave no answer gets that of every accepted message."""

_INPUT = """
WITH input AS (
    SELECT organization_id, message_id, reply_id, status, code, content, place::int4[] AS place, replays
    FROM unnest(%b::uuid[], %b::text[], %b::uuid[], %b::int2[], %b::text[], %b::bytea[], %b::text[], %b::int4[])
        AS t (organization_id, message_id, reply_id, status, code, content, place, replays)
)
INSERT INTO bridge.replies (organization_id, message_id, reply_id, status, code, content, place, ready, replays)
"""
_KEEP = (
    _INPUT
    + """
SELECT organization_id, message_id, reply_id, status, code, content, place, false, replays FROM input
"""
)
# The first failure of a life is its answer.
_REFUSE = (
    _INPUT
    + """
SELECT DISTINCT ON (organization_id, message_id)
       organization_id, message_id, reply_id, status, code, content, place, true, replays
FROM input i
WHERE NOT EXISTS (SELECT FROM bridge.replies r WHERE r.organization_id = i.organization_id
                  AND r.message_id = i.message_id AND r.ready AND r.replays = i.replays)
"""
)
# Of what the parts of a message gave the first is its answer; a part that gave nothing counts last.
_CHOOSE = """
UPDATE bridge.replies r SET ready = true, replays = t.replays
FROM unnest(%b::uuid[], %b::text[], %b::int4[]) AS t (organization_id, message_id, replays)
WHERE r.organization_id = t.organization_id AND r.message_id = t.message_id AND r.reply_id = (
    SELECT p.reply_id FROM bridge.replies p
    WHERE p.organization_id = t.organization_id AND p.message_id = t.message_id AND NOT p.ready
    ORDER BY p.place NULLS LAST, p.written_at DESC, p.reply_id LIMIT 1)
"""
_REFUSE_BY_FAILURE = """
INSERT INTO bridge.replies (organization_id, message_id, reply_id, code, ready, replays)
SELECT t.organization_id, t.message_id, gen_random_uuid(), f.code, true, t.replays
FROM unnest(%b::uuid[], %b::text[], %b::int4[]) AS t (organization_id, message_id, replays)
CROSS JOIN LATERAL (
    SELECT code FROM bridge.failures f
    WHERE f.organization_id = t.organization_id AND f.message_id = t.message_id AND f.final
    ORDER BY f.at DESC, f.failure_id DESC LIMIT 1) AS f
WHERE NOT EXISTS (SELECT FROM bridge.replies r WHERE r.organization_id = t.organization_id
                  AND r.message_id = t.message_id AND r.ready AND r.replays = t.replays)
"""


def columns(endings: Sequence[Ending]) -> tuple[Array | None, ...]:
    """Answers of messages that are done, for `ANSWER_GONE`: reply_id, status, code, content."""
    if all(ending.reply is None for ending in endings):
        return None, None, None, None
    given = [ending.reply or Prepared() for ending in endings]
    return (
        UuidArray([None if ending.reply is None else uuid7() for ending in endings]),
        Int2Array([answer.status for answer in given]),
        texts([answer.code for answer in given]),
        ByteaArray([answer.content for answer in given]),
    )


def awaited(locked: Iterable[tuple[Any, ...]]) -> dict[_Key, Awaited]:
    """Those of the locked messages (rows of organization, id, reply_until, replays, …) whose caller waits."""
    return {(row[0], row[1]): Awaited(row[2], row[3]) for row in locked if row[2] is not None}


def gathered(messages: Mapping[_Key, Awaited]) -> _Steps:
    """Messages that another one carries on: when they are done, there is nothing to answer but that they were
    taken."""
    if messages:
        yield _KEEP, _columns([_row(message, waits, ACCEPTED) for message, waits in messages.items()])


def unfinished(endings: Iterable[Ending], awaited: Mapping[_Key, Awaited], notices: Notices) -> _Steps:
    """What units gave that are parts of messages, or why they failed for good; and who need not wait any longer,
    as what is tried again, or waits, goes on too late."""
    parts: list[tuple[Any, ...]] = []
    refusals: list[tuple[Any, ...]] = []
    for ending in endings:
        message = ending.claimed.organization_id, ending.claimed.message_id
        waits = awaited.get(message)
        if waits is None:
            continue
        if ending.refusal is not None:
            refusals.append(_row(message, waits, ending.refusal))
            notices.ready(*message, ending.refusal)
        elif ending.fate == "closed" and (ending.reply is not None or not ending.hand_overs):
            parts.append(_row(message, waits, ending.reply or ACCEPTED))
        wait_s = ending.longest_wait_s
        left_s = (waits.until - datetime.now(UTC)).total_seconds()
        if wait_s and ending.refusal is None and (wait_s > left_s or (ending.releases and ending.tried_again)):
            notices.release(*message)
    if parts:
        yield _KEEP, _columns(parts)
    if refusals:
        yield _REFUSE, _columns(refusals)


def concluded(became: Mapping[_Key, str], awaited: Mapping[_Key, Awaited], notices: Notices) -> _Steps:
    """Messages whose last part ended."""
    for state, statement in (("done", _CHOOSE), ("dead", _REFUSE_BY_FAILURE)):
        of = [message for message in awaited if became.get(message) == state]
        if of:
            yield (
                statement,
                ([m[0] for m in of], [m[1] for m in of], [awaited[m].replays for m in of]),
            )
    skipped = [message for message in awaited if became.get(message) == "skipped"]
    if skipped:
        yield _REFUSE, _columns([_row(message, awaited[message], SKIPPED) for message in skipped])
    for message in awaited:
        if became.get(message) in ("done", "dead", "skipped"):
            notices.ready(*message)


def _row(message: _Key, awaited: Awaited, answer: Prepared) -> tuple[Any, ...]:
    place = None if answer.place is None else "{" + ",".join(map(str, answer.place)) + "}"
    return (*message, uuid7(), answer.status, answer.code, answer.content, place, awaited.replays)


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
