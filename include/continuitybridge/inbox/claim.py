"""Claiming: taking units of work under a lease, so that one worker at a time holds each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from continuitybridge import database
from continuitybridge.engine.message import Message
from continuitybridge.errors import BridgeError, Unavailable
from continuitybridge.inbox import payloads, units
from continuitybridge.inbox.batches import Batch
from continuitybridge.inbox.objects import PayloadLost
from continuitybridge.inbox.ordering import MAY_BEGIN, MAY_GO_ON
from continuitybridge.inbox.pauses import NOT_PAUSED
from continuitybridge.inbox.replies import Notices
from continuitybridge.inbox.waits import resuming
from continuitybridge.settings import get_settings
from continuitybridge.vault.cipher import DecryptionFailed
from continuitybridge.vault.keyring import Cipher


@dataclass(frozen=True, slots=True)
class Claimed:
    """One unit of work under lease.

    `message` is what the engine runs: the accepted message, or what a hand-over holds of it (then its id may be a
    child's). `message_id` is the accepted message's. `entry` is the node to start at (None: where the message's
    trigger leads). `epoch` proves the lease; `attempts` counts this one.
    """

    organization_id: UUID
    environment: str
    flow: str
    version: str
    message_id: str
    message: Message = field(repr=False)
    epoch: int
    attempts: int
    entry: str | None
    hand_over_id: UUID | None
    batch_id: str | None
    owner: str
    lease_until: datetime
    accepted_at: datetime


# Concurrent claims pass each other's rows over instead of waiting.
_MESSAGES = f"""
WITH taken AS (
    SELECT organization_id, message_id FROM bridge.messages
    WHERE organization_id = %(organization)s AND batch_id = %(batch)s AND state = 'accepted'
      AND available_at <= now() AND {MAY_BEGIN.format(row="messages")}
    ORDER BY available_at, message_id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE bridge.messages m
SET state = 'claimed', epoch = m.epoch + 1, attempts = m.attempts + 1, lease_owner = %(owner)s,
    lease_until = now() + %(lease)s
FROM taken WHERE m.organization_id = taken.organization_id AND m.message_id = taken.message_id
RETURNING m.message_id, m.environment, m.flow, m.version, m.payload, m.headers, m.content_type, m.trigger_id,
          m.generation, m.source = 'flow', m.epoch, m.attempts, m.lease_until, m.accepted_at
"""  # noqa: S608  (constants)
_HAND_OVERS = f"""
WITH taken AS (
    SELECT organization_id, hand_over_id FROM bridge.hand_overs
    WHERE organization_id = %(organization)s AND batch_id = %(batch)s AND state = 'available'
      AND available_at <= now() AND (%(stage)s::text IS NULL OR stage = %(stage)s)
      AND EXISTS (SELECT FROM bridge.messages m WHERE m.organization_id = hand_overs.organization_id
                  AND m.message_id = hand_overs.message_id AND {MAY_GO_ON.format(row="m")})
    ORDER BY available_at, hand_over_id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE bridge.hand_overs h
SET state = 'claimed', epoch = h.epoch + 1, attempts = h.attempts + 1, lease_owner = %(owner)s,
    lease_until = now() + %(lease)s
FROM taken, bridge.messages m
WHERE h.organization_id = taken.organization_id AND h.hand_over_id = taken.hand_over_id
  AND m.organization_id = h.organization_id AND m.message_id = h.message_id
RETURNING h.message_id, h.environment, h.flow, h.version, h.hand_over_id, h.node_id, h.payload, m.generation,
          m.source = 'flow', h.child_id, h.resume, h.epoch, h.attempts, h.lease_until, m.accepted_at
"""  # noqa: S608
_ACTIVE = f"""
UPDATE bridge.batches b SET status = 'started', started_at = coalesce(started_at, now()), active_at = now()
WHERE organization_id = %(organization)s AND batch_id = %(batch)s AND status IN ('created', 'started')
  AND {NOT_PAUSED.format(row="b")}
"""  # noqa: S608  (constants)


def claim(
    batch: Batch,
    owner: str,
    lease_s: float,
    limit: int,
    stage: str | None = None,
    *,
    keys: Cipher,
) -> list[Claimed]:
    """Take up to `limit` units of a batch that are available: of one stage, or (`stage` None) of all.

    New messages belong to the flow's first stage. When this returns, each unit is leased to `owner` for `lease_s`
    seconds under an epoch that no former holder has: whatever a former holder still does, it cannot settle. Of the
    messages of an ordering key it gets the first alone, once those in front of it have ended (`ordering`). Units
    that others hold or are just claiming are passed over. An empty list means that nothing is available now; it
    may be later, when a lease ends, a stage before this one hands over, or the flow, which is paused, is resumed.

    A crash after the claim costs the units one attempt and the rest of the lease. A unit that cannot be decrypted,
    or whose payload is lost, becomes a dead letter here and does not hold up the others; one whose payload cannot
    be had now comes back later and loses no attempt.
    """
    parameters = {
        "organization": batch.organization_id,
        "batch": batch.batch_id,
        "stage": stage,
        "owner": owner,
        "lease": timedelta(seconds=lease_s),
        "limit": limit,
    }
    with database.relay() as connection:
        if connection.execute(_ACTIVE, parameters).rowcount == 0:
            return []
        rows: list[Any] = []
        if stage is None or batch.first_stage is None or stage == batch.first_stage:
            rows = connection.execute(_MESSAGES, parameters).fetchall()
        parameters["limit"] = limit - len(rows)
        parts = connection.execute(_HAND_OVERS, parameters).fetchall() if len(rows) < limit else []
        waited = resuming.load_parameters((batch.organization_id, row[10]) for row in parts)
        brought = resuming.by_wait(connection.execute(resuming.LOAD_PARTS, waited) if waited else ())
    claimed: list[Claimed] = []
    # Decrypted after the commit, so that the transaction stays short.
    for row in rows:
        try:
            claimed.append(_of_message(batch, owner, row, keys))
        except (DecryptionFailed, PayloadLost) as error:
            _bury(batch, owner, row[0], None, row[10], error)
        except Unavailable:
            _postpone(batch, owner, row[0], None, row[10])
    for row in parts:
        try:
            claimed.append(_of_hand_over(batch, owner, row, brought, keys))
        except (DecryptionFailed, PayloadLost) as error:
            _bury(batch, owner, row[0], row[4], row[11], error)
        except Unavailable:
            _postpone(batch, owner, row[0], row[4], row[11])
    return claimed


def renew(claimed: Sequence[Claimed], lease_s: float) -> list[Claimed]:
    """Extend the leases, counted from now. Returns the units still held, with their new leases; what is missing
    was lost to somebody else: stop working on it, its settlement would be refused."""
    if not claimed:
        return []
    lease = timedelta(seconds=lease_s)
    with database.relay() as connection:
        kept: dict[tuple[UUID, str, UUID | None], datetime] = {}
        for table, id_column, of in (
            ("messages", "message_id", [unit for unit in claimed if unit.hand_over_id is None]),
            ("hand_overs", "hand_over_id", [unit for unit in claimed if unit.hand_over_id is not None]),
        ):
            if not of:
                continue
            id_type = "text" if table == "messages" else "uuid"
            rows = connection.execute(
                f"UPDATE bridge.{table} u SET lease_until = now() + %s"  # noqa: S608  (names from above)
                f" FROM unnest(%s::uuid[], %s::{id_type}[], %s::int8[], %s::text[])"
                " AS t (organization_id, id, epoch, owner)"
                f" WHERE u.organization_id = t.organization_id AND u.{id_column} = t.id AND u.epoch = t.epoch"
                " AND u.lease_owner = t.owner AND u.lease_until IS NOT NULL"  # claimed, and found by its id
                " RETURNING u.organization_id, u.message_id,"
                f" {'NULL::uuid' if table == 'messages' else 'u.hand_over_id'}, u.lease_until",
                (
                    lease,
                    [unit.organization_id for unit in of],
                    [unit.message_id if table == "messages" else unit.hand_over_id for unit in of],
                    [unit.epoch for unit in of],
                    [unit.owner for unit in of],
                ),
            )
            kept |= {(row[0], row[1], row[2]): row[3] for row in rows}
        connection.execute(
            "UPDATE bridge.batches b SET active_at = now() FROM unnest(%s::uuid[], %s::text[])"
            " AS t (organization_id, batch_id) WHERE b.organization_id = t.organization_id"
            " AND b.batch_id = t.batch_id AND b.status = 'started'",
            _batches(claimed),
        )
    return [
        replace(unit, lease_until=kept[key])
        for unit in claimed
        if (key := (unit.organization_id, unit.message_id, unit.hand_over_id)) in kept
    ]


def release(claimed: Sequence[Claimed]) -> int:
    """Give back units that were not begun: they are available at once, and the attempt does not count. Returns
    how many were still held."""
    released = 0
    with database.relay() as connection:
        for table, id_column, id_type, state, of in (
            ("messages", "message_id", "text", "accepted", [u for u in claimed if u.hand_over_id is None]),
            ("hand_overs", "hand_over_id", "uuid", "available", [u for u in claimed if u.hand_over_id]),
        ):
            if not of:
                continue
            released += connection.execute(
                f"UPDATE bridge.{table} u SET state = %s, attempts = u.attempts - 1,"  # noqa: S608
                " lease_owner = NULL, lease_until = NULL"
                f" FROM unnest(%s::uuid[], %s::{id_type}[], %s::int8[], %s::text[])"
                " AS t (organization_id, id, epoch, owner)"
                f" WHERE u.organization_id = t.organization_id AND u.{id_column} = t.id AND u.epoch = t.epoch"
                " AND u.lease_owner = t.owner AND u.lease_until IS NOT NULL",
                (
                    state,
                    [unit.organization_id for unit in of],
                    [unit.message_id if table == "messages" else unit.hand_over_id for unit in of],
                    [unit.epoch for unit in of],
                    [unit.owner for unit in of],
                ),
            ).rowcount
    return released


def fence(batch: Batch, owner: str, stage: str | None = None) -> int:
    """End every lease on the batch's units (of one stage) that is not `owner`'s; returns how many.

    For a task that begins anew and knows that former tries of it are dead, or running as duplicates that Airflow
    has given up: their units are available at once, and they cannot settle them any more. The lost try counts as
    an attempt, so that a message that kills its worker ends as a dead letter.
    """
    with database.relay() as connection:
        parameters = {
            "organization": batch.organization_id,
            "batch": batch.batch_id,
            "owner": owner,
            "stage": stage,
        }
        fenced = 0
        if stage is None or batch.first_stage is None or stage == batch.first_stage:
            fenced += connection.execute(
                "UPDATE bridge.messages SET lease_until = now() WHERE organization_id = %(organization)s"
                " AND batch_id = %(batch)s AND state = 'claimed' AND lease_owner <> %(owner)s",
                parameters,
            ).rowcount
        fenced += connection.execute(
            "UPDATE bridge.hand_overs SET lease_until = now() WHERE organization_id = %(organization)s"
            " AND batch_id = %(batch)s AND state = 'claimed' AND lease_owner <> %(owner)s"
            " AND (%(stage)s::text IS NULL OR stage = %(stage)s)",
            parameters,
        ).rowcount
        if fenced:
            units.expire(
                connection,
                max_attempts=get_settings().max_attempts,
                organization_id=batch.organization_id,
                batch_id=batch.batch_id,
                limit=fenced,
            )
    return fenced


def _of_message(batch: Batch, owner: str, row: Any, keys: Cipher) -> Claimed:
    message_id, environment, flow, version, payload, headers, content_type, trigger, generation, *rest = row
    organization_id = batch.organization_id
    message = Message(
        message_id,
        payloads.open_body(keys, organization_id, message_id, payload),
        {"content-type": content_type, **payloads.decrypt_headers(keys, organization_id, message_id, headers)},
        {} if trigger is None else {"trigger": trigger},
        generation,
    )
    message.called, epoch, attempts, lease_until, accepted_at = rest
    return Claimed(
        organization_id,
        environment,
        flow,
        version,
        message_id,
        message,
        epoch,
        attempts,
        entry=None,
        hand_over_id=None,
        batch_id=batch.batch_id,
        owner=owner,
        lease_until=lease_until,
        accepted_at=accepted_at,
    )


def _of_hand_over(batch: Batch, owner: str, row: Any, parts: resuming.Parts, keys: Cipher) -> Claimed:
    message_id, environment, flow, version, hand_over_id, node_id, payload, generation, *rest = row
    called, child_id, resume, epoch, attempts, lease_until, accepted_at = rest
    organization_id = batch.organization_id
    place = payloads.hand_over_place(message_id, hand_over_id)
    message = payloads.decrypt_message(keys, organization_id, place, payload)
    message = resuming.resumed(message, child_id, resume, parts, keys, organization_id)
    message.generation, message.called = generation, called
    return Claimed(
        organization_id,
        environment,
        flow,
        version,
        message_id,
        message,
        epoch,
        attempts,
        entry=node_id,
        hand_over_id=hand_over_id,
        batch_id=batch.batch_id,
        owner=owner,
        lease_until=lease_until,
        accepted_at=accepted_at,
    )


def _bury(
    batch: Batch, owner: str, message_id: str, hand_over_id: UUID | None, epoch: int, error: BridgeError
) -> None:
    notices = Notices()
    with database.relay(after=notices) as connection:
        units.bury(
            connection,
            batch.organization_id,
            message_id,
            hand_over_id,
            owner,
            epoch,
            error.code,
            notices=notices,
        )


def _postpone(batch: Batch, owner: str, message_id: str, hand_over_id: UUID | None, epoch: int) -> None:
    with database.relay() as connection:
        units.postpone(connection, batch.organization_id, message_id, hand_over_id, owner, epoch)


def _batches(claimed: Sequence[Claimed]) -> tuple[list[UUID], list[str]]:
    keys = sorted({(unit.organization_id, unit.batch_id) for unit in claimed if unit.batch_id is not None})
    return [key[0] for key in keys], [key[1] for key in keys]
