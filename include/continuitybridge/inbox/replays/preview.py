"""What a replay would do: found by doing it in a transaction that is undone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import psycopg

from continuitybridge import database
from continuitybridge.errors import BridgeError, NotFound
from continuitybridge.inbox import replay
from continuitybridge.inbox.replays import query as queries
from continuitybridge.inbox.replays.query import COUNT_LIMIT, Found, Query
from continuitybridge.nodes import registry
from continuitybridge.nodes.base import AsyncNode

Connection = psycopg.Connection[Any]

SAMPLE = 10


@dataclass(frozen=True, slots=True)
class Previewed:
    """What would become of one message. `starts_at` are the nodes it would go on at; empty for the beginning.
    `generation` is part of the Idempotency-Key of what it would deliver (`<id>:<node>:<generation>`): a
    `new_generation` means that destinations do not recognise earlier deliveries. `repeats` are the nodes that have
    delivered before and would again. `refused` says why it would be left as it is."""

    message_id: str
    environment: str
    flow: str
    state: str
    from_version: str
    version: str | None
    starts_at: list[str]
    generation: int | None
    new_generation: bool
    repeats: list[str]
    refused: str | None


@dataclass(frozen=True, slots=True)
class Group:
    """How many messages began on which version, and the version they would run on; None when there is none."""

    environment: str
    flow: str
    from_version: str
    version: str | None
    messages: int


@dataclass(frozen=True, slots=True)
class Preview:
    """`matched` counts the messages found, `capped` says that there are more than were counted."""

    matched: int
    capped: bool
    groups: list[Group]
    sample: list[Previewed]


def preview(
    organization_id: UUID,
    query: Query,
    *,
    start: Literal["beginning", "failure"] = "beginning",
    version: str = replay.ORIGINAL,
    sample: int = SAMPLE,
) -> Preview:
    """What replaying the messages that the query finds now would do; nothing is changed. As the application role.

    A sample is replayed in a transaction that is undone: it says what would happen now, by the very rules."""
    with database.tenant(organization_id) as connection:
        [(now,)] = connection.execute("SELECT now()")
        counted = queries.count(connection, organization_id, query, before=now)
        found = queries.find(connection, organization_id, query, before=now, limit=sample)
        groups = [
            Group(
                environment, flow, old, _version(connection, organization_id, environment, flow, old, version), n
            )
            for environment, flow, old, n in counted
        ]
        shown = [_try(connection, organization_id, each, start, version) for each in found]
    matched = sum(group.messages for group in groups)
    return Preview(matched, matched >= COUNT_LIMIT, groups, shown)


def _version(
    connection: Connection, organization_id: UUID, environment: str, flow: str, old: str, wanted: str
) -> str | None:
    try:
        return replay.version_of(connection, organization_id, environment, flow, old, wanted)
    except BridgeError:
        return None


def _try(
    connection: Connection,
    organization_id: UUID,
    found: Found,
    start: Literal["beginning", "failure"],
    version: str,
) -> Previewed:
    before = _look(connection, organization_id, found.message_id)
    done: replay.Replayed | None = None
    starts_at: list[str] = []
    refused = None
    try:
        with connection.transaction(force_rollback=True):
            done = replay.replay_within(
                connection, organization_id, found.message_id, by="", start=start, version=version, flows=set()
            )
            rows = connection.execute(
                "SELECT DISTINCT node_id FROM bridge.hand_overs WHERE organization_id = %s AND message_id = %s"
                " AND state = 'available' ORDER BY node_id",
                (organization_id, found.message_id),
            )
            starts_at = [row[0] for row in rows]
    except BridgeError as error:
        refused = error.detail
    generation, trace = before
    repeats: list[str] = []
    if done is not None:
        plan = _plan(connection, organization_id, found.flow, done.version or found.version)
        delivered = [entry["node_id"] for entry in trace if entry.get("emitted") and "node_id" in entry]
        reached = _behind(plan, starts_at) if starts_at else set(plan)
        repeats = sorted({node for node in delivered if node in reached and _delivers(plan[node]["type"])})
    return Previewed(
        found.message_id,
        found.environment,
        found.flow,
        found.state,
        found.version,
        done.version if done else None,
        starts_at,
        done.generation if done else None,
        done is not None and done.generation != generation,
        repeats,
        refused,
    )


def _look(connection: Connection, organization_id: UUID, message_id: str) -> tuple[int, list[dict[str, Any]]]:
    row = connection.execute(
        "SELECT generation, trace FROM bridge.messages WHERE organization_id = %(o)s AND message_id = %(m)s"
        " UNION ALL (SELECT generation, trace FROM bridge.settled_messages"
        " WHERE organization_id = %(o)s AND message_id = %(m)s ORDER BY settled_at DESC, replays DESC LIMIT 1)",
        {"o": organization_id, "m": message_id},
    ).fetchone()
    if row is None:
        raise NotFound(f"no message {message_id}", message_id=message_id)
    return row[0], row[1]


def _plan(connection: Connection, organization_id: UUID, flow: str, version: str) -> Mapping[str, Any]:
    """The version's nodes by id."""
    row = connection.execute(
        "SELECT plan FROM bridge.flow_versions WHERE organization_id = %s AND flow = %s AND version = %s",
        (organization_id, flow, version),
    ).fetchone()
    return {} if row is None else {node["id"]: node for node in row[0]["nodes"]}


def _behind(plan: Mapping[str, Any], starts: list[str]) -> set[str]:
    """The nodes that a message reaches from `starts`, themselves included."""
    reached: set[str] = set()
    waiting = [node for node in starts if node in plan]
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting += [to for targets in plan[node]["next"].values() for to in targets if to in plan]
    return reached


def _delivers(node_type: str) -> bool:
    try:
        node = registry.get(node_type)
    except NotFound:
        return False
    return issubclass(node, AsyncNode) and node.emulated
