"""Replaying: running a message again under its own id."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from continuitybridge import database
from continuitybridge.audit import record
from continuitybridge.errors import BridgeError, ConfigurationError, Conflict, NotFound
from continuitybridge.inbox import payloads
from continuitybridge.inbox.accept import CHANNEL
from continuitybridge.inbox.replies import rows as replies
from continuitybridge.vault.keyring import Cipher

Connection = psycopg.Connection[Any]

ORIGINAL = "original"
NEWEST = "newest"


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of one request. `refused` holds the reason when the message was left as it was."""

    message_id: str
    version: str | None
    generation: int | None
    refused: BridgeError | None = None


@dataclass(frozen=True, slots=True)
class _Target:
    version: str
    mode: str
    holds_order: bool
    stages: dict[str, str] | None
    """Node → stage of the other version; None when the version stays."""
    triggers: tuple[str, ...]


def replay(
    organization_id: UUID,
    message_ids: Sequence[str],
    *,
    by: str,
    start: Literal["beginning", "failure"] = "beginning",
    version: str = ORIGINAL,
    body: bytes | None = None,
    keys: Cipher | None = None,
) -> list[Replayed]:
    """Run dead letters or settled messages again, as the application role of one organization; answers in the
    order given. Each message by itself: one that is refused does not hold up the others.

    The message keeps its id. It keeps its generation too, so that destinations recognise its deliveries, unless
    its input (`body`, for one message; needs `keys`) or its flow version changes. `version` is the one it ran on
    (`original`), the deployed one (`newest`) or one by number. It starts at the `beginning`, or where it failed
    (`failure`, for dead letters): then what went well is not run again.

    Refused with `NotFound` (no such message here), or `Conflict`: it is under way, its payload is gone, its
    flow is not deployed any more, it has no failed node, or the other version lacks the node or trigger it would
    start at. A settled message's record stays; its next settlement is a second record with `replays` one higher.
    When this returns, what is not refused is on disk and will be run, as after accepting.
    """
    if body is not None and (len(message_ids) != 1 or start != "beginning" or keys is None):
        raise ConfigurationError(
            "another body can be given for one message, from the beginning, with the keys to encrypt it",
            field="body",
        )
    sealed = None
    if body is not None and keys is not None:
        sealed = payloads.seal_body(keys, organization_id, message_ids[0], body)
    results: list[Replayed] = []
    flows: set[str] = set()
    # One transaction for each: locks are held briefly, and one refusal undoes one message only.
    for message_id in message_ids:
        try:
            with database.tenant(organization_id) as connection:
                done = _replay(connection, organization_id, message_id, by, start, version, body, sealed, flows)
                details = {"start": start, "version": version, "other_body": body is not None}
                record(
                    connection, organization_id, "message.replayed", message_id, details=details, by=by, keys=keys
                )
                results.append(done)
        except (NotFound, Conflict) as refusal:
            results.append(Replayed(message_id, None, None, refusal))
    if flows:
        with database.tenant(organization_id) as connection:
            notify(connection, flows)
    return results


def replay_within(
    connection: Connection,
    organization_id: UUID,
    message_id: str,
    *,
    by: str,
    start: Literal["beginning", "failure"],
    version: str,
    flows: set[str],
) -> Replayed:
    """As `replay`, one message in the caller's transaction (of the application role). Raises what `replay` puts
    into `refused`. Adds the message's flow to `flows`, which the caller gives to `notify` at its end."""
    return _replay(connection, organization_id, message_id, by, start, version, None, None, flows)


def notify(connection: Connection, flows: set[str]) -> None:
    """Tell who waits for messages, at the caller's commit."""
    connection.execute("SELECT pg_notify(%s, flow) FROM unnest(%s::text[]) AS t (flow)", (CHANNEL, sorted(flows)))


def version_of(
    connection: Connection, organization_id: UUID, environment: str, flow: str, old: str, wanted: str
) -> str:
    """The version that a message of version `old` runs on when `wanted` is. Raises `Conflict`."""
    return _target(connection, organization_id, environment, flow, old, wanted).version


def _replay(
    connection: Connection,
    organization_id: UUID,
    message_id: str,
    by: str,
    start: str,
    version: str,
    body: bytes | None,
    sealed: bytes | None,
    flows: set[str],
) -> Replayed:
    place = {"organization": organization_id, "message": message_id}
    hot = connection.execute(
        "SELECT state, environment, flow, version, trigger_id, generation FROM bridge.messages"
        " WHERE organization_id = %(organization)s AND message_id = %(message)s FOR UPDATE",
        place,
    ).fetchone()
    if hot is not None and hot[0] != "dead":
        raise Conflict(f"message {message_id} is under way ({hot[0]})", message_id=message_id, state=hot[0])
    settled = None
    if hot is not None:
        _, environment, flow, old_version, trigger, generation = hot
    else:
        settled = connection.execute(
            "SELECT payload IS NOT NULL, environment, flow, version, trigger_id, generation, settled_at"
            " FROM bridge.settled_messages WHERE organization_id = %(organization)s AND message_id = %(message)s"
            " ORDER BY settled_at DESC LIMIT 1",
            place,
        ).fetchone()
        if settled is None:
            raise NotFound(f"no message {message_id}", message_id=message_id)
        if not settled[0] and body is None:
            raise Conflict(f"the payload of message {message_id} is not kept any more", message_id=message_id)
        if start == "failure":
            raise Conflict(
                f"message {message_id} is settled: only a dead letter has a failed node to start from",
                message_id=message_id,
            )
        _, environment, flow, old_version, trigger, generation, _ = settled
    target = _target(connection, organization_id, environment, flow, old_version, version)
    trigger = _trigger(target, trigger, message_id)
    if target.version != old_version or body is not None:
        generation += 1
    changes: dict[str, Any] = {
        **place,
        "version": target.version,
        "mode": target.mode,
        "holds_order": target.holds_order,
        "trigger": trigger,
        "generation": generation,
        "payload": None,
        "size": None,
        "note": Jsonb(
            [
                {
                    "replayed_by": by,
                    "at": datetime.now(UTC).isoformat(timespec="seconds"),
                    "start": start,
                    "version": target.version,
                    "generation": generation,
                }
            ]
        ),
    }
    if sealed is not None and body is not None:
        changes["payload"] = sealed
        changes["size"] = len(body)
    if settled is not None:
        _reopen(connection, changes, settled[6])
    elif start == "failure" and _revive(connection, changes, target):
        connection.execute(_GO_ON, changes)
    else:
        connection.execute(_FORGET_HAND_OVERS, changes)
        connection.execute(_FORGET_GROUPS, changes)
        replies.forget_parts(connection, organization_id, message_id)
        connection.execute(_START_AGAIN, changes)
    flows.add(f"{organization_id}/{environment}/{flow}")
    return Replayed(message_id, target.version, generation)


_START_AGAIN = """
UPDATE bridge.messages
SET state = 'accepted', dead_at = NULL, attempts = 0, epoch = epoch + 1, batch_id = NULL, available_at = now(),
    replays = replays + 1, version = %(version)s, mode = %(mode)s, holds_order = %(holds_order)s,
    trigger_id = %(trigger)s, generation = %(generation)s, trace = trace || %(note)s,
    payload = coalesce(%(payload)b, payload), size_bytes = coalesce(%(size)s, size_bytes)
WHERE organization_id = %(organization)s AND message_id = %(message)s
"""
_GO_ON = """
UPDATE bridge.messages
SET state = 'handed_over', dead_at = NULL, batch_id = NULL, replays = replays + 1, version = %(version)s,
    mode = %(mode)s, holds_order = %(holds_order)s, trigger_id = %(trigger)s, generation = %(generation)s,
    trace = trace || %(note)s
WHERE organization_id = %(organization)s AND message_id = %(message)s
"""
_FORGET_HAND_OVERS = """
DELETE FROM bridge.hand_overs WHERE organization_id = %(organization)s AND message_id = %(message)s
"""
# It will gather anew within itself; what it gathered across messages it finds again.
_FORGET_GROUPS = """
WITH gone AS (
    DELETE FROM bridge.wait_groups WHERE organization_id = %(organization)s AND message_id = %(message)s
)
DELETE FROM bridge.wait_parts p WHERE p.organization_id = %(organization)s AND p.message_id = %(message)s
  AND NOT EXISTS (SELECT FROM bridge.wait_groups g WHERE g.organization_id = p.organization_id
                  AND g.group_id = p.wait_id AND g.message_id IS NULL)
"""
_REOPEN = """
INSERT INTO bridge.messages
    (organization_id, message_id, environment, flow, version, source, trigger_id, endpoint, payload, headers,
     content_type, size_bytes, keys, ordering_key, parent_id, generation, replays, trace, retention_class,
     legal_hold, accepted_at, mode, holds_order)
SELECT organization_id, message_id, environment, flow, %(version)s, source, %(trigger)s, endpoint,
       coalesce(%(payload)b, payload), headers, content_type, coalesce(%(size)s, size_bytes), keys, ordering_key,
       parent_id, %(generation)s, replays + 1, %(note)s, retention_class, placement = 'held', accepted_at,
       %(mode)s, %(holds_order)s
FROM bridge.settled_messages
WHERE organization_id = %(organization)s AND message_id = %(message)s AND settled_at = %(settled_at)s
ORDER BY replays DESC LIMIT 1
ON CONFLICT (organization_id, message_id) DO NOTHING
"""


def _reopen(connection: Connection, changes: dict[str, Any], settled_at: datetime) -> None:
    made = connection.execute(_REOPEN, {**changes, "settled_at": settled_at}).rowcount
    if not made:
        raise Conflict(f"message {changes['message']} is under way", message_id=changes["message"])


def _revive(connection: Connection, changes: dict[str, Any], target: _Target) -> bool:
    """Make the dead hand-overs available, beside those that wait; false when the message died as a whole."""
    rows = connection.execute(
        "SELECT hand_over_id, node_id, stage, state FROM bridge.hand_overs"
        " WHERE organization_id = %(organization)s AND message_id = %(message)s AND state IN ('dead', 'waiting')",
        changes,
    ).fetchall()
    for hand_over_id, node_id, stage, state in rows:
        if target.stages is not None:
            if node_id not in target.stages:
                raise Conflict(
                    f"version {target.version} has no node {node_id!r}, where the message "
                    f"{'failed' if state == 'dead' else 'waits'}; replay it from the beginning, or on its own "
                    "version",
                    node_id=node_id,
                    version=target.version,
                )
            stage = target.stages[node_id]
        connection.execute(
            "UPDATE bridge.hand_overs SET state = CASE state WHEN 'dead' THEN 'available' ELSE state END,"
            " attempts = 0, epoch = epoch + 1, batch_id = NULL, available_at = now(), version = %s, stage = %s,"
            " mode = %s WHERE organization_id = %s AND hand_over_id = %s",
            (target.version, stage, target.mode, changes["organization"], hand_over_id),
        )
    return any(row[3] == "dead" for row in rows)


def _target(
    connection: Connection, organization_id: UUID, environment: str, flow: str, old: str, wanted: str
) -> _Target:
    deployed = connection.execute(
        "SELECT version FROM bridge.deployments WHERE organization_id = %s AND environment = %s AND flow = %s"
        " AND status <> 'removed'",
        (organization_id, environment, flow),
    ).fetchone()
    if deployed is None:
        # Nobody claims of it: a replayed message would leave triage, and stay where nobody looks.
        raise Conflict(
            f"flow {flow!r} is not deployed in {environment}, where nothing of it would run: deploy it first",
            flow=flow,
        )
    version = {ORIGINAL: old, NEWEST: deployed[0]}.get(wanted, wanted)
    row = connection.execute(
        "SELECT mode, holds_order, CASE WHEN version <> %s THEN plan::text END FROM bridge.flow_versions"
        " WHERE organization_id = %s AND flow = %s AND version = %s",
        (old, organization_id, flow, version),
    ).fetchone()
    if row is None:
        raise Conflict(f"flow {flow!r} has no version {version}", flow=flow, version=version)
    if version == old:
        return _Target(old, row[0], row[1], None, ())
    plan = json.loads(row[2])
    stages = {node["id"]: node["stage"] for node in plan["nodes"]}
    return _Target(version, row[0], row[1], stages, tuple(plan["triggers"]))


def _trigger(target: _Target, trigger: str | None, message_id: str) -> str | None:
    """The trigger by which the message enters the target version."""
    if trigger is None or target.stages is None or trigger in target.triggers:
        return trigger
    if len(target.triggers) == 1:
        return target.triggers[0]
    raise Conflict(
        f"version {target.version} has no trigger {trigger!r}, by which message {message_id} came",
        trigger=trigger,
        version=target.version,
    )
