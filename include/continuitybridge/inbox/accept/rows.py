"""What accepting writes: rows of `messages` and `idempotency_keys`, in one statement whatever their number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol
from uuid import UUID

from continuitybridge.database.arrays import (
    BoolArray,
    ByteaArray,
    Float8Array,
    Int4Array,
    TimestamptzArray,
    UuidArray,
    texts,
)
from continuitybridge.errors import Conflict, LimitExceeded
from continuitybridge.flows.ordering import HOLD, Ordering, key_reader
from continuitybridge.inbox import payloads
from continuitybridge.inbox.accept.ids import new_message_id
from continuitybridge.inbox.pauses import NOT_PAUSED
from continuitybridge.settings import get_settings
from continuitybridge.vault.keyring import Cipher

CHANNEL = "bridge_accepted"
"""NOTIFY channel; the payload is `<organization_id>/<environment>/<flow>`. A hint: who waits on it also looks."""

Source = Literal["webhook", "api", "schedule", "manual", "poller", "flow"]
Mode = Literal["stream", "batch"]


# These three are made for every message that comes in; frozen ones take three times as long to make.
@dataclass(slots=True)
class Acceptance:
    """A message that asks to be accepted. Not to be changed afterwards.

    `version` is the flow version deployed now, on which the message finishes, and `mode` is that version's (its
    plan's): whether stream workers take the message or a batch. `headers` are kept with the message (encrypted);
    leave out what carries secrets. `endpoint` is the webhook's slug. `idempotency_key` is remembered per
    organization, environment and endpoint for `idempotency_window_days` (None: as
    `BRIDGE_IDEMPOTENCY_WINDOW_DAYS` says); `changed_body` says what comes under it with another body: a
    conflict, or the same message. `message_id` is given when the caller can name the message for ever, and is
    then its idempotency key unless there is another; else one is made (UUIDv7). `ordering` is the version's: its
    key is read here, and `headers` must hold the header that it names. `keys` are the search keys its flow
    declares. `trigger` is the id of the flow's trigger (None: its first). `reply_until` is set when the caller is
    held until then at most, or a repetition of his may be, for the message's result: it is answered by whoever
    settles the message.
    """

    organization_id: UUID
    environment: str
    flow: str
    version: str
    source: Source
    body: bytes = field(repr=False)
    content_type: str = "application/octet-stream"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    endpoint: str | None = None
    idempotency_key: str | None = None
    message_id: str | None = None
    keys: Mapping[str, Any] | None = None
    trigger: str | None = None
    mode: Mode = "batch"
    ordering: Ordering | None = None
    idempotency_window_days: int | None = None
    changed_body: Literal["refuse", "same"] = "refuse"
    reply_until: datetime | None = None


@dataclass(slots=True)
class Accepted:
    """The message's id; `duplicate` when it had been accepted before."""

    message_id: str
    duplicate: bool


class Lease(Protocol):
    """Of somebody who will run a message himself as soon as it is accepted, and so claims it with the acceptance:
    `owner` names him in the lease, which holds for `lease_s`."""

    @property
    def owner(self) -> str: ...

    @property
    def lease_s(self) -> float: ...

    def claimed(self, message_id: str) -> None:
        """The message is on disk, and his. Not called where it is not: it was accepted before, or its flow is
        paused, disabled, or of a suspended organization."""


Key = tuple[UUID, str, str, bytes]
"""Organization, environment, endpoint and hash of an idempotency key."""


@dataclass(slots=True, eq=False)
class Row:
    """An acceptance ready to be written. `route` is what many messages have in common: it is sent once for all of
    them."""

    acceptance: Acceptance
    message_id: str
    payload: bytes
    headers: bytes | None
    key: Key | None
    body_hash: bytes | None
    route: tuple[Any, ...]
    ordering_key: str | None = None
    lease: Lease | None = None
    is_claimed: bool = False

    def claim(self) -> None:
        """It is on disk under its lease."""
        self.is_claimed = True
        if self.lease is not None:
            self.lease.claimed(self.message_id)


def prepare(acceptance: Acceptance, keys: Cipher, lease: Lease | None = None) -> Row:
    """Encrypt and hash; a large body is in the payload store afterwards. Raises `LimitExceeded` for a body above
    `BRIDGE_MAX_MESSAGE_BYTES`, `Unavailable` when a large one cannot be stored."""
    organization_id, body = acceptance.organization_id, acceptance.body
    allowed = get_settings().max_message_bytes
    if len(body) > allowed:
        raise LimitExceeded(
            f"the message has {len(body)} bytes, {allowed} are allowed (BRIDGE_MAX_MESSAGE_BYTES)",
            limit="max_message_bytes",
            allowed=allowed,
            found=len(body),
        )
    message_id = acceptance.message_id or new_message_id()
    key: Key | None = None
    body_hash: bytes | None = None
    named = acceptance.idempotency_key or (acceptance.message_id and f"message {message_id}")
    if named:
        key_hash = hashlib.sha256(named.encode(errors="surrogatepass")).digest()
        key = (organization_id, acceptance.environment, acceptance.endpoint or "", key_hash)
        body_hash = keys.fingerprint(organization_id, body)
    return Row(
        acceptance,
        message_id,
        payloads.seal_body(keys, organization_id, message_id, body),
        payloads.encrypt_headers(keys, organization_id, message_id, acceptance.headers),
        key,
        body_hash,
        (
            organization_id,
            acceptance.environment,
            acceptance.flow,
            acceptance.version,
            acceptance.source,
            acceptance.trigger,
            acceptance.endpoint,
            acceptance.content_type,
            acceptance.mode,
            acceptance.ordering is not None and acceptance.ordering.after_dead_letter == HOLD,
            acceptance.idempotency_window_days,
        ),
        _ordering_key(acceptance),
        lease,
    )


def _ordering_key(acceptance: Acceptance) -> str | None:
    if acceptance.ordering is None:
        return None
    headers = {name.lower(): value for name, value in acceptance.headers.items()}
    read = key_reader(acceptance.ordering.key)
    return read(acceptance.body, {**headers, "content-type": acceptance.content_type})


# One statement, hence one transaction even in autocommit: a key and its message are there together or not at
# all. A key whose window is over counts as absent. Keys are written in one order by everybody, so that two
# statements with the same keys wait for each other instead of deadlocking. A message that its caller named is not
# accepted again after its key's window either, as long as it is kept.
# What comes back are the positions (from 1) of the rows that were not written, or null, and of those that were
# claimed with it, or null.
_INSERT = """
WITH route AS (
    SELECT * FROM unnest(
        %b::uuid[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[],
        %b::text[], %b::bool[], %b::timestamptz[]
    ) WITH ORDINALITY AS r (organization_id, environment, flow, version, source, trigger_id, endpoint,
                            content_type, mode, holds_order, expires_at, route)
), input AS (
    SELECT * FROM unnest(
        %b::int4[], %b::text[], %b::bytea[], %b::bytea[], %b::int4[], %b::bytea[], %b::bytea[],
        %b::text[], %b::timestamptz[], %b::text[]{named_type}{asked_types}
    ) WITH ORDINALITY AS t (route, message_id, payload, headers, size_bytes, key_hash, body_hash,
                            keys, reply_until, ordering_key{named}{asked}, position)
    JOIN route USING (route){open}
), keyed AS (
    INSERT INTO bridge.idempotency_keys AS known
        (organization_id, environment, endpoint, key_hash, body_hash, message_id, expires_at)
    SELECT organization_id, environment, coalesce(endpoint, ''), key_hash, body_hash, message_id, expires_at
    FROM input WHERE key_hash IS NOT NULL
    ORDER BY organization_id, environment, coalesce(endpoint, ''), key_hash
    ON CONFLICT (organization_id, environment, endpoint, key_hash) DO UPDATE
    SET body_hash = excluded.body_hash, message_id = excluded.message_id, expires_at = excluded.expires_at
    WHERE known.expires_at <= now()
    RETURNING organization_id, message_id
), written AS (
    INSERT INTO bridge.messages
        (organization_id, message_id, environment, flow, version, source, trigger_id, endpoint, payload, headers,
         content_type, size_bytes, keys, batch_id, mode, reply_until, ordering_key, holds_order{lease_columns})
    SELECT organization_id, message_id, environment, flow, version, source, trigger_id, endpoint, payload, headers,
           content_type, size_bytes, coalesce(keys, '{{}}')::jsonb, %b::text, mode, reply_until,
           ordering_key, holds_order{lease_values}
    FROM input
    WHERE (key_hash IS NULL OR (organization_id, message_id) IN (SELECT organization_id, message_id FROM keyed))
      {unless_settled}
    ON CONFLICT (organization_id, message_id) DO NOTHING
    RETURNING organization_id, message_id
)
SELECT array_agg(position), {claimed} FROM input
WHERE (organization_id, message_id) NOT IN (SELECT organization_id, message_id FROM written)
"""
_LEASED = {
    "asked": ", asked, lease_s",
    "asked_types": ", %b::text[], %b::float8[]",
    "open": f"""
    LEFT JOIN (
        SELECT r.route, true AS runs FROM route r
        JOIN bridge.deployments d USING (organization_id, environment, flow)
        JOIN bridge.organizations o USING (organization_id)
        WHERE o.status = 'active' AND d.status = 'active' AND {NOT_PAUSED.format(row="d")}
    ) AS open USING (route)""",  # noqa: S608  (constants)
    "lease_columns": ", state, epoch, attempts, lease_owner, lease_until",
    "lease_values": """,
           CASE WHEN runs AND asked IS NOT NULL THEN 'claimed' ELSE 'accepted' END,
           CASE WHEN runs AND asked IS NOT NULL THEN 1 ELSE 0 END,
           CASE WHEN runs AND asked IS NOT NULL THEN 1 ELSE 0 END, CASE WHEN runs THEN asked END,
           CASE WHEN runs AND asked IS NOT NULL THEN now() + make_interval(secs => lease_s) END""",
    "claimed": "(SELECT array_agg(position) FROM input WHERE runs AND asked IS NOT NULL)",
}
"""For rows of which some have a `Lease`."""
_NOT_LEASED = {**dict.fromkeys(_LEASED, ""), "claimed": "NULL::int8[]"}
_NAMED = {
    "named": ", named",
    "named_type": ", %b::bool[]",
    "unless_settled": """AND NOT (named IS TRUE
               AND EXISTS (SELECT FROM bridge.settled_messages s WHERE s.organization_id = input.organization_id
                           AND s.message_id = input.message_id))""",
}
"""For rows of which some were named by their callers. Not for others: only to have it in the plan locks all
partitions, which takes longer than the rest."""
_NOT_NAMED = dict.fromkeys(_NAMED, "")
_STATEMENTS = {
    (leased, named): _INSERT.format_map(
        {**(_LEASED if leased else _NOT_LEASED), **(_NAMED if named else _NOT_NAMED)}
    )
    for leased in (False, True)
    for named in (False, True)
}

LOOK_UP_KEYS = """
SELECT k.organization_id, k.environment, k.endpoint, k.key_hash, k.message_id, k.body_hash
FROM bridge.idempotency_keys k
JOIN unnest(%b::uuid[], %b::text[], %b::text[], %b::bytea[])
     AS wanted (organization_id, environment, endpoint, key_hash)
     USING (organization_id, environment, endpoint, key_hash)
WHERE k.expires_at > now()
"""

NOTIFY = "SELECT pg_notify(%b, payload) FROM unnest(%b::text[]) AS t (payload)"

TRIES = 3
"""How often a key may vanish between losing to it and looking it up before the caller is told to come again."""


def insertion(rows: Sequence[Row], batch_id: str | None = None) -> tuple[str, tuple[Any, ...]]:
    """The statement that writes these rows, and its parameters."""
    leased = any(row.lease for row in rows)
    named = any(row.acceptance.message_id for row in rows)
    parameters = _insert_parameters(rows)
    if named:
        parameters.append(BoolArray([row.acceptance.message_id is not None for row in rows]))
    if leased:
        leases = [row.lease for row in rows]
        parameters.append(texts([None if lease is None else lease.owner for lease in leases]))
        parameters.append(Float8Array([None if lease is None else lease.lease_s for lease in leases]))
    return _STATEMENTS[leased, named], (*parameters, batch_id)


def _insert_parameters(rows: Sequence[Row]) -> list[Any]:
    routes: dict[tuple[Any, ...], int] = {}
    places = [routes.setdefault(row.route, len(routes) + 1) for row in rows]
    now, window_days = datetime.now(UTC), get_settings().idempotency_window_days
    organizations, *common, holds_order, windows = zip(*routes, strict=True)
    of = [row.acceptance for row in rows]
    return [
        UuidArray(organizations),
        *map(texts, common),
        BoolArray(holds_order),
        TimestamptzArray([now + timedelta(days=days or window_days) for days in windows]),
        Int4Array(places),
        texts([row.message_id for row in rows]),
        ByteaArray([row.payload for row in rows]),
        ByteaArray([row.headers for row in rows]),
        Int4Array([len(each.body) for each in of]),
        ByteaArray([row.key and row.key[3] for row in rows]),
        ByteaArray([row.body_hash for row in rows]),
        # What few messages have is left out where none has it.
        [search_keys(each.keys) for each in of] if any(each.keys for each in of) else None,
        TimestamptzArray([each.reply_until for each in of]) if any(each.reply_until for each in of) else None,
        [row.ordering_key for row in rows] if any(row.ordering_key for row in rows) else None,
    ]


def key_parameters(rows: Iterable[Row]) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """The parameters of `LOOK_UP_KEYS` for these rows, all of which have a key."""
    keys = [row.key for row in rows if row.key is not None]
    return [k[0] for k in keys], [k[1] for k in keys], [k[2] for k in keys], [k[3] for k in keys]


def notifications(rows: Iterable[Row]) -> list[str]:
    """The payloads of `NOTIFY`, one per flow."""
    return sorted({f"{a.organization_id}/{a.environment}/{a.flow}" for a in (row.acceptance for row in rows)})


def search_keys(keys: Mapping[str, Any] | None) -> str:
    """Search keys as JSON text that `jsonb` takes: no NUL, no lone surrogates, as payloads may hold them."""
    if not keys:
        return "{}"
    text = json.dumps(dict(keys), ensure_ascii=False, default=str)
    text = text.encode(errors="replace").decode()
    return text.replace("\\u0000", "\\ufffd")


def repeated(keys: Cipher, row: Row, message_id: str, body_hash: bytes) -> Accepted | Conflict:
    """What a row is that came under a key already taken."""
    given = row.acceptance
    if given.changed_body == "same" or keys.matches(given.organization_id, given.body, body_hash):
        return Accepted(message_id, duplicate=True)
    return Conflict(
        "the idempotency key was used with another body; a new message needs a new key",
        field="idempotency_key",
        message_id=message_id,
    )


def leaders(rows: Sequence[Row]) -> list[Row]:
    """The rows to write: of those with the same key, or the same id, the first."""
    seen: set[object] = set()
    first: list[Row] = []
    for row in rows:
        # Ids that are made here differ.
        given = row.acceptance.message_id
        marks = [mark for mark in (row.key, given and (row.acceptance.organization_id, given)) if mark]
        if seen.isdisjoint(marks):
            first.append(row)
        seen.update(marks)
    return first


def written(
    leaders: Sequence[Row], lost: Sequence[int] | None, claimed: Sequence[int] | None = None
) -> tuple[set[int], set[int]]:
    """The `id()`s of the rows that were written, and of those of them that were claimed, of what the insertion
    answered."""
    missing = set(lost or ())
    fresh = {id(row) for position, row in enumerate(leaders, start=1) if position not in missing}
    return fresh, fresh & {id(leaders[position - 1]) for position in claimed or ()}
