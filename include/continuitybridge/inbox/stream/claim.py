"""Taking units of many flows at once.

A claim is one short transaction that does not wait for the disk (`synchronous_commit` off): a crash of the
database may forget it, and then the units are there for anybody, under an epoch that may be given again. That is
why leases bear their owner too: nothing but the newest claim settles.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg

from continuitybridge.database import aio
from continuitybridge.engine.message import Message
from continuitybridge.errors import Unavailable
from continuitybridge.inbox import offload, ordering, payloads
from continuitybridge.inbox.batches import FlowKey
from continuitybridge.inbox.claim import Claimed
from continuitybridge.inbox.pauses import NOT_PAUSED
from continuitybridge.inbox.waits import resuming
from continuitybridge.vault.keyring import Cipher

_OPTIONS = f"-c synchronous_commit=off {aio.STEADY_PLANS}"


LOOK_THROUGH_S = 1.0
"""How often all of a flow's waiting messages are looked through."""
LATE = timedelta(seconds=0.5)
"""How much younger a message may be that is committed before another; one that comes later yet is found when all
are looked through. While the server gathers statistics, each claim passes over what was claimed so long ago."""
MAX_BEGUN = 10_000
"""Flows of which is remembered how far they were claimed."""


@dataclass(slots=True)
class _Begun:
    """How far a flow was claimed (`at`), to be believed until that moment."""

    until: float
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A flow of which up to `most` units are wanted. `concurrency`: so many of it may be under way everywhere."""

    organization_id: UUID
    environment: str
    flow: str
    most: int
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Sealed:
    """A claimed unit that has yet to be decrypted. `organization` is the organization's slug."""

    organization_id: UUID
    organization: str
    environment: str
    flow: str
    version: str
    message_id: str
    hand_over_id: UUID | None
    entry: str | None
    epoch: int
    attempts: int
    generation: int
    trigger: str | None
    content_type: str | None
    size_bytes: int
    ordered: bool
    lease_until: datetime
    accepted_at: datetime
    payload: bytes
    headers: bytes | None
    called: bool
    child_id: str | None
    resume: dict[str, Any] | None
    parts: Sequence[Any] = ()
    """What a hand-over that waited goes on with: rows of `resuming.LOAD_PARTS`."""

    @property
    def flow_key(self) -> FlowKey:
        return self.organization_id, self.environment, self.flow

    @property
    def is_outside(self) -> bool:
        """Whether its content stands in the payload store: opening it takes time, and belongs into a thread."""
        return bool(self.parts) or offload.is_reference(self.payload)

    def open(self, keys: Cipher, owner: str) -> Claimed:
        """The unit as the engine runs it. Raises `DecryptionFailed`, `NotFound` when the key is not held, and what
        the payload store raises (`offload.unseal`)."""
        organization_id, message_id = self.organization_id, self.message_id
        if self.hand_over_id is None:
            message = Message(
                message_id,
                payloads.open_body(keys, organization_id, message_id, self.payload),
                {
                    "content-type": self.content_type or "",
                    **payloads.decrypt_headers(keys, organization_id, message_id, self.headers),
                },
                {} if self.trigger is None else {"trigger": self.trigger},
                self.generation,
                called=self.called,
            )
        else:
            place = payloads.hand_over_place(message_id, self.hand_over_id)
            message = payloads.decrypt_message(keys, organization_id, place, self.payload)
            parts = resuming.by_wait(self.parts)
            resuming.resumed(message, self.child_id or message.id, self.resume, parts, keys, organization_id)
            message.generation, message.called = self.generation, self.called
        return Claimed(
            organization_id,
            self.environment,
            self.flow,
            self.version,
            message_id,
            message,
            self.epoch,
            self.attempts,
            entry=self.entry,
            hand_over_id=self.hand_over_id,
            batch_id=None,
            owner=owner,
            lease_until=self.lease_until,
            accepted_at=self.accepted_at,
        )


# Jumps through the index from one flow to the next, so that a flood of one costs the others nothing.
_HEADS = """
    (SELECT u.organization_id, u.environment, u.flow FROM {table} u
     WHERE {ready} ORDER BY u.organization_id, u.environment, u.flow LIMIT 1)
    UNION ALL
    SELECT following.* FROM {name} CROSS JOIN LATERAL (
        SELECT u.organization_id, u.environment, u.flow FROM {table} u
        WHERE {ready} AND (u.organization_id, u.environment, u.flow)
                        > ({name}.organization_id, {name}.environment, {name}.flow)
        ORDER BY u.organization_id, u.environment, u.flow LIMIT 1) AS following
"""
_DUE = """
SELECT {name}.* FROM {name} CROSS JOIN LATERAL (
    SELECT FROM {table} u WHERE {ready} AND u.organization_id = {name}.organization_id
      AND u.environment = {name}.environment AND u.flow = {name}.flow AND u.available_at <= now() LIMIT 1) AS due
"""
_MESSAGES_READY = "u.state = 'accepted' AND u.batch_id IS NULL AND NOT u.behind AND u.mode = 'stream'"
_HAND_OVERS_READY = "u.state = 'available' AND u.batch_id IS NULL AND u.mode = 'stream'"
_MESSAGES = {"table": "bridge.messages", "ready": _MESSAGES_READY, "name": "of_messages"}
_HAND_OVERS = {"table": "bridge.hand_overs", "ready": _HAND_OVERS_READY, "name": "of_hand_overs"}
_READY_FLOWS = f"""
WITH RECURSIVE of_messages AS ({_HEADS.format(**_MESSAGES)}), of_hand_overs AS ({_HEADS.format(**_HAND_OVERS)})
{_DUE.format(**_MESSAGES)} UNION {_DUE.format(**_HAND_OVERS)}
"""

# Whoever claims of a flow with a bound is alone with it until the commit, so that its count holds.
_LOCK_FLOWS = """
SELECT pg_try_advisory_xact_lock(hashtextextended(organization_id || '/' || environment || '/' || flow, 0))
FROM unnest(%b::uuid[], %b::text[], %b::text[]) AS t (organization_id, environment, flow)
"""

# A row that is locked here stays where it is until it is updated here, so that its place finds it again. Rows that
# others lock are passed over. Retries have half of the room at most, so that a flow's new messages pass those that
# fail and fail again.
_CLAIM = f"""
WITH wanted AS (
    SELECT w.organization_id, o.slug, w.environment, w.flow, CASE WHEN w.concurrency IS NULL THEN w.most ELSE
        greatest(0, least(w.most, w.concurrency
            - (SELECT count(*) FROM bridge.messages c
               WHERE c.organization_id = w.organization_id AND c.environment = w.environment AND c.flow = w.flow
                 AND c.state = 'claimed')::int4
            - (SELECT count(*) FROM bridge.hand_overs c
               WHERE c.organization_id = w.organization_id AND c.environment = w.environment AND c.flow = w.flow
                 AND c.state = 'claimed')::int4))
        END AS most, coalesce(w.since, '-infinity') AS since
    FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::int4[], %b::int4[], %b::timestamptz[])
         AS w (organization_id, environment, flow, most, concurrency, since)
    JOIN bridge.organizations o USING (organization_id)
    JOIN bridge.deployments d USING (organization_id, environment, flow)
    WHERE o.status = 'active' AND d.status = 'active' AND {NOT_PAUSED.format(row="w")}
), parts AS MATERIALIZED (
    SELECT w.slug, found.* FROM wanted w CROSS JOIN LATERAL (
        SELECT u.*, row_number() OVER () AS place
        FROM (SELECT u.ctid AS row, u.organization_id, u.environment, u.flow,
                     octet_length(u.payload) AS size_bytes, m.generation, m.ordering_key, m.accepted_at,
                     m.source = 'flow' AS called
              FROM bridge.hand_overs u JOIN bridge.messages m USING (organization_id, message_id)
              WHERE {_HAND_OVERS_READY} AND u.organization_id = w.organization_id
                AND u.environment = w.environment AND u.flow = w.flow AND u.available_at <= now()
                AND {ordering.MAY_GO_ON.format(row="m")}
              ORDER BY u.available_at LIMIT (w.most + 1) / 2 FOR UPDATE OF u SKIP LOCKED) u) AS found
), whole AS MATERIALIZED (
    SELECT w.slug, found.* FROM wanted w CROSS JOIN LATERAL (
        SELECT u.*, row_number() OVER () AS place
        FROM (SELECT u.ctid AS row, u.organization_id, u.environment, u.flow, u.message_id, u.size_bytes,
                     u.ordering_key, u.accepted_at
              FROM bridge.messages u
              WHERE {_MESSAGES_READY} AND u.organization_id = w.organization_id
                AND u.environment = w.environment AND u.flow = w.flow AND u.available_at >= w.since
                AND u.available_at <= now()
              ORDER BY u.available_at
              LIMIT w.most - (SELECT count(*) FROM parts p
                              WHERE p.organization_id = w.organization_id AND p.environment = w.environment
                                AND p.flow = w.flow)
              FOR UPDATE SKIP LOCKED) u) AS found
), waiting AS MATERIALIZED (
    SELECT f.organization_id, f.message_id, front.message_id AS front
    FROM whole f CROSS JOIN LATERAL {ordering.IN_FRONT.format(row="f")} AS front
    WHERE f.ordering_key IS NOT NULL
), {ordering.PUT_BEHIND},
taken AS MATERIALIZED (
    SELECT * FROM (
        SELECT u.*, sum(size_bytes) OVER (ORDER BY place, organization_id, environment, flow) - size_bytes
                    AS before
        FROM (SELECT true AS is_whole, row, slug, organization_id, environment, flow, size_bytes, place,
                     NULL::int4 AS generation, ordering_key, accepted_at, NULL::bool AS called FROM whole f
              WHERE ordering_key IS NULL OR NOT EXISTS (
                  SELECT FROM waiting w
                  WHERE w.organization_id = f.organization_id AND w.message_id = f.message_id)
              UNION ALL
              SELECT false, row, slug, organization_id, environment, flow, size_bytes, place, generation,
                     ordering_key, accepted_at, called FROM parts) AS u) AS counted
    WHERE before < %b
), claimed_whole AS (
    UPDATE bridge.messages m
    SET state = 'claimed', epoch = m.epoch + 1, attempts = m.attempts + 1, lease_owner = %b::text,
        lease_until = now() + %b::interval
    FROM taken t WHERE t.is_whole AND m.ctid = t.row
    RETURNING m.organization_id, t.slug, m.environment, m.flow, m.version, m.message_id,
              NULL::uuid AS hand_over_id, NULL::text AS entry, m.epoch, m.attempts, m.generation, m.trigger_id,
              m.content_type, m.size_bytes, m.ordering_key IS NOT NULL AS ordered, m.lease_until, m.accepted_at,
              m.payload, m.headers, m.source = 'flow' AS called, NULL::text AS child_id, NULL::jsonb AS resume
), claimed_parts AS (
    UPDATE bridge.hand_overs h
    SET state = 'claimed', epoch = h.epoch + 1, attempts = h.attempts + 1, lease_owner = %b::text,
        lease_until = now() + %b::interval
    FROM taken t WHERE NOT t.is_whole AND h.ctid = t.row
    RETURNING h.organization_id, t.slug, h.environment, h.flow, h.version, h.message_id, h.hand_over_id, h.node_id,
              h.epoch, h.attempts, t.generation, NULL::text, NULL::text, t.size_bytes,
              t.ordering_key IS NOT NULL, h.lease_until, t.accepted_at, h.payload, NULL::bytea,
              t.called, h.child_id, h.resume
)
SELECT * FROM claimed_whole UNION ALL SELECT * FROM claimed_parts
"""  # noqa: S608


class StreamClaims:
    """Claims of one worker, on one connection. `owner` names the worker in its leases, for its whole life; the
    connection bears the name too (see `presence`). One call at a time; every method raises `Unavailable` when the
    database does not answer, and connects anew at the next.
    """

    def __init__(self, owner: str, lease_s: float) -> None:
        self.owner = owner
        self._lease = timedelta(seconds=lease_s)
        self._connection: aio.AsyncConnection | None = None
        self._begun: dict[FlowKey, _Begun] = {}

    async def ready_flows(self) -> list[FlowKey]:
        """The flows that have units to be claimed now, whether or not they are held or disabled. Costs by the
        number of flows with waiting units, not by the number of units."""
        return [(row[0], row[1], row[2]) for row in await self._run(_READY_FLOWS, ())]

    async def claim(self, wanted: Sequence[Wanted], max_bytes: int) -> list[Sealed]:
        """Take units of these flows, oldest first, under a lease and an epoch each.

        At most `max_bytes` of content altogether (but always one unit). None of flows that are paused, disabled or
        of a suspended organization; of a flow with `concurrency` none beyond it, and none while another worker is
        just claiming of it. Of the messages of an ordering key, the first one alone.
        """
        bounded = [each for each in wanted if each.concurrency is not None]
        if not bounded:
            return await self._claim(wanted, max_bytes)
        connection = await self._ready()
        try:
            async with connection.transaction():
                rows = await self._run(_LOCK_FLOWS, _columns(bounded)[:3])
                mine = {id(each) for each, (locked,) in zip(bounded, rows, strict=True) if locked}
                free = [each for each in wanted if each.concurrency is None or id(each) in mine]
                return await self._claim(free, max_bytes) if free else []
        except psycopg.OperationalError as error:
            raise self._lost(error) from error

    async def _claim(self, wanted: Sequence[Wanted], max_bytes: int) -> list[Sealed]:
        lease = (self.owner, self._lease)
        since = [self._since(each) for each in wanted]
        rows = await self._run(_CLAIM, (*_columns(wanted), since, max_bytes, *lease, *lease))
        sealed = [Sealed(*row) for row in rows]
        self._note(sealed)
        waited = resuming.load_parameters((each.organization_id, each.resume) for each in sealed)
        if waited is None:
            return sealed
        parts = resuming.by_wait(await self._run(resuming.LOAD_PARTS, waited))
        return [
            each
            if (wait_id := resuming.wait_id_of(each.resume)) is None
            else replace(each, parts=parts.get((each.organization_id, wait_id), ()))
            for each in sealed
        ]

    def _since(self, wanted: Wanted) -> datetime | None:
        """From which time on messages are looked for. What was claimed leaves its entry in the index until that is
        tidied up, which a long transaction of whomever holds off: it is passed over. Once in a while all are
        looked through, for what came to stand in between."""
        now = time.monotonic()
        flow = (wanted.organization_id, wanted.environment, wanted.flow)
        begun = self._begun.get(flow)
        if begun is None or now >= begun.until:
            if len(self._begun) >= MAX_BEGUN:
                self._begun.clear()
            begun = self._begun[flow] = _Begun(now + LOOK_THROUGH_S)
            return None
        return begun.at

    def _note(self, sealed: Sequence[Sealed]) -> None:
        for each in sealed:
            begun = self._begun.get(each.flow_key)
            if begun is not None and each.hand_over_id is None:
                at = each.accepted_at - LATE
                begun.at = at if begun.at is None else max(at, begun.at)

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _ready(self) -> aio.AsyncConnection:
        if self._connection is None or self._connection.closed:
            self._connection = await aio.connect("relay", application_name=self.owner, options=_OPTIONS)
            self._connection.prepare_threshold = 0
        return self._connection

    async def _run(self, statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        connection = await self._ready()
        try:
            cursor = await connection.execute(statement, parameters, binary=True)
            return await cursor.fetchall()
        except psycopg.OperationalError as error:
            raise self._lost(error) from error

    def _lost(self, error: psycopg.Error) -> Unavailable:
        return Unavailable("the database did not finish the claim", sqlstate=error.sqlstate)


def _columns(wanted: Sequence[Wanted]) -> tuple[list[Any], ...]:
    return (
        [each.organization_id for each in wanted],
        [each.environment for each in wanted],
        [each.flow for each in wanted],
        [each.most for each in wanted],
        [each.concurrency for each in wanted],
    )
