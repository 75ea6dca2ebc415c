"""What the store says of the messages of a ledger: what each is now, and, where no delivery of one that is done
came, what else became of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from continuitybridge import database
from continuitybridge.errors import NotFound
from continuitybridge.nodes import registry
from continuitybridge.nodes.base import AsyncNode

_CHUNK = 1_000
"""Traces read at once."""


@dataclass(frozen=True, slots=True)
class Known:
    """A message as the store has it. `parent_id` is the message that called it."""

    became: str
    replays: int
    parent_id: str | None = None


GONE = Known("gone", 0)
"""Of a caller that is not kept any more."""

_NOW = """
SELECT message_id, CASE state WHEN 'dead' THEN 'dead' ELSE 'unsettled' END, replays, parent_id
FROM bridge.messages WHERE organization_id = %(organization)s AND message_id = ANY (%(ids)s)
UNION ALL
(SELECT DISTINCT ON (message_id) message_id, CASE result WHEN 'dead' THEN 'discarded' ELSE result END, replays,
        parent_id
 FROM bridge.settled_messages s
 WHERE organization_id = %(organization)s AND message_id = ANY (%(ids)s)
   AND NOT EXISTS (SELECT FROM bridge.messages m
                   WHERE m.organization_id = s.organization_id AND m.message_id = s.message_id)
 ORDER BY message_id, settled_at DESC, replays DESC)
"""


def look_up(organization_id: UUID, ids: Sequence[str]) -> dict[str, Known]:
    """Those of the messages that the store knows, as one moment saw them."""
    with database.tenant(organization_id) as connection:
        rows = connection.execute(_NOW, {"organization": organization_id, "ids": list(ids)})
        return {row[0]: Known(*row[1:]) for row in rows}


@dataclass(frozen=True, slots=True)
class _Done:
    """How a settled message ran last. `into` is the message that it was gathered into."""

    into: str | None
    delivers: bool


_TRACES = """
SELECT DISTINCT ON (message_id) message_id, flow, version, trace
FROM bridge.settled_messages
WHERE organization_id = %s AND message_id = ANY (%s)
ORDER BY message_id, settled_at DESC, replays DESC
"""


def without_delivery(organization_id: UUID, ids: Iterable[str], delivered: Collection[str]) -> dict[str, str]:
    """Where each of these messages stands, of which the store says done and no delivery came: `undelivered` when
    no step that delivers had it, else `lost`. One that was gathered into another stands where that one does
    (`delivered`, `in_triage`, `under_way`, `skipped` too)."""
    wanted = list(ids)
    done: dict[str, _Done] = {}
    known: dict[str, Known] = {}
    while ahead := [each for each in dict.fromkeys(wanted) if each not in done]:
        for chunk in _chunks(ahead):
            done |= _how_they_ran(organization_id, chunk)
        done |= {each: _Done(None, delivers=True) for each in ahead if each not in done}
        carriers = {done[each].into for each in ahead} - {None, *done, *known, *delivered}
        for chunk in _chunks(sorted(filter(None, carriers))):
            known |= look_up(organization_id, chunk)
        wanted = [each for each in carriers if each in known and known[each].became == "done"]
    return {each: _end(each, done, known, delivered) for each in ids}


_ENDS: Mapping[str, str] = {
    "unsettled": "under_way",
    "dead": "in_triage",
    "skipped": "skipped",
    "discarded": "skipped",
}


def _end(
    message_id: str, done: Mapping[str, _Done], known: Mapping[str, Known], delivered: Collection[str]
) -> str:
    at, seen = message_id, {message_id}
    while True:
        if at in delivered:
            return "delivered"
        ran = done.get(at)
        if ran is None:
            return _ENDS.get(known[at].became, "lost") if at in known else "lost"
        if ran.into is None or ran.into in seen:
            return "lost" if ran.delivers else "undelivered"
        at = ran.into
        seen.add(at)


def _how_they_ran(organization_id: UUID, ids: Sequence[str]) -> dict[str, _Done]:
    found: dict[str, _Done] = {}
    plans: dict[tuple[str, str], set[str]] = {}
    with database.tenant(organization_id) as connection:
        for message_id, flow, version, trace in connection.execute(
            _TRACES, (organization_id, list(ids))
        ).fetchall():
            if (flow, version) not in plans:
                row = connection.execute(
                    "SELECT plan FROM bridge.flow_versions"
                    " WHERE organization_id = %s AND flow = %s AND version = %s",
                    (organization_id, flow, version),
                ).fetchone()
                nodes = row[0]["nodes"] if row is not None else ()
                plans[flow, version] = {node["id"] for node in nodes if _delivers(node["type"])}
            found[message_id] = _of_trace(trace, plans[flow, version])
    return found


def _of_trace(trace: Sequence[Mapping[str, Any]], delivering: set[str]) -> _Done:
    into = None
    delivers = False
    for entry in trace:
        if "replayed_by" in entry:
            into = None  # It has run anew since.
        into = entry.get("into", into)
        delivers = delivers or (entry.get("node_id") in delivering and bool(entry.get("emitted")))
    return _Done(into, delivers)


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for at in range(0, len(ids), _CHUNK):
        yield ids[at : at + _CHUNK]


def _delivers(node_type: str) -> bool:
    try:
        node = registry.get(node_type)
    except NotFound:
        return False
    return issubclass(node, AsyncNode) and node.emulated
