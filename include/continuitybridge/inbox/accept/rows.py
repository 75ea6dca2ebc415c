"""What accepting writes: rows of `messages` and `idempotency_keys`, in one statement whatever their number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from uuid6 import uuid7

from continuitybridge.errors import Conflict, LimitExceeded
from continuitybridge.inbox import payloads
from continuitybridge.settings import get_settings
from continuitybridge.vault.keyring import Cipher

CHANNEL = "bridge_accepted"
"""NOTIFY channel; the payload is `<organization_id>/<environment>/<flow>`. A hint: who waits on it also looks."""

Source = Literal["webhook", "api", "schedule", "manual", "poller", "flow"]
Mode = Literal["stream", "batch"]


@dataclass(frozen=True, slots=True)
class Acceptance:
    """A message that asks to be accepted.

    `version` is the flow version deployed now, on which the message finishes, and `mode` is that version's (its
    plan's): whether stream workers take the message or a batch. `headers` are kept with the message (encrypted);
    leave out what carries secrets. `endpoint` is the webhook's slug. `idempotency_key` is remembered per
    organization, environment and endpoint for `idempotency_window_days` (None: as
    `BRIDGE_IDEMPOTENCY_WINDOW_DAYS` says); `changed_body` says what comes under it with another body: a
    conflict, or the same message. `message_id` is given when the caller can name the message for ever, and is
    then its idempotency key unless there is another; else one is made (UUIDv7). `keys` are the search keys its
    flow declares. `trigger` is the id of the flow's trigger (None: its first). `reply_until` is set when the
    caller is held until then at most, or a repetition of his may be, for the message's result: it is answered by
    whoever settles the message.
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
    idempotency_window_days: int | None = None
    changed_body: Literal["refuse", "same"] = "refuse"
    reply_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """The message's id; `duplicate` when it had been accepted before."""

    message_id: str
    duplicate: bool


Key = tuple[UUID, str, str, bytes]
"""Organization, environment, endpoint and hash of an idempotency key."""


@dataclass(frozen=True, slots=True)
class Row:
    """An acceptance ready to be written."""

    acceptance: Acceptance
    message_id: str
    payload: bytes
    headers: bytes | None
    key: Key | None
    body_hash: bytes | None

    @property
    def identity(self) -> tuple[UUID, str]:
        return self.acceptance.organization_id, self.message_id


def prepare(acceptance: Acceptance, keys: Cipher) -> Row:
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
    message_id = acceptance.message_id or str(uuid7())
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
    )


# One statement, hence one transaction even in autocommit: a key and its message are there together or not at
# all. A key whose window is over counts as absent. Keys are written in one order by everybody, so that two
# statements with the same keys wait for each other instead of deadlocking. A message that its caller named is not
# accepted again after its key's window either, as long as it is kept.
INSERT = """
WITH input AS (
    SELECT * FROM unnest(
        %b::uuid[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[],
        %b::bytea[], %b::bytea[], %b::text[], %b::int4[], %b::text[], %b::text[], %b::bytea[], %b::bytea[],
        %b::bool[], %b::text[], %b::timestamptz[], %b::timestamptz[]
    ) AS t (organization_id, message_id, environment, flow, version, source, trigger_id, endpoint,
            payload, headers, content_type, size_bytes, keys, batch_id, key_hash, body_hash, named, mode,
            expires_at, reply_until)
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
)
INSERT INTO bridge.messages
    (organization_id, message_id, environment, flow, version, source, trigger_id, endpoint, payload, headers,
     content_type, size_bytes, keys, batch_id, mode, reply_until)
SELECT organization_id, message_id, environment, flow, version, source, trigger_id, endpoint, payload, headers,
       content_type, size_bytes, keys::jsonb, batch_id, mode, reply_until
FROM input
WHERE (key_hash IS NULL OR (organization_id, message_id) IN (SELECT organization_id, message_id FROM keyed))
  AND NOT (named AND EXISTS (SELECT FROM bridge.settled_messages s
                             WHERE s.organization_id = input.organization_id AND s.message_id = input.message_id))
ON CONFLICT (organization_id, message_id) DO NOTHING
RETURNING organization_id, message_id
"""

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


def insert_parameters(rows: Sequence[Row], batch_id: str | None = None) -> tuple[Any, ...]:
    """The parameters of `INSERT`."""
    now, window_days = datetime.now(UTC), get_settings().idempotency_window_days
    of = [row.acceptance for row in rows]
    return (
        [each.organization_id for each in of],
        [row.message_id for row in rows],
        [each.environment for each in of],
        [each.flow for each in of],
        [each.version for each in of],
        [each.source for each in of],
        [each.trigger for each in of],
        [each.endpoint for each in of],
        [row.payload for row in rows],
        [row.headers for row in rows],
        [each.content_type for each in of],
        [len(each.body) for each in of],
        [search_keys(each.keys) for each in of],
        [batch_id] * len(rows),
        [row.key and row.key[3] for row in rows],
        [row.body_hash for row in rows],
        [each.message_id is not None for each in of],
        [each.mode for each in of],
        [now + timedelta(days=each.idempotency_window_days or window_days) for each in of],
        [each.reply_until for each in of],
    )


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
        marks = {row.identity, row.key} - {None}
        if marks.isdisjoint(seen):
            first.append(row)
        seen |= marks
    return first
