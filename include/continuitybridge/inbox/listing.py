"""Messages of an organization, page by page."""

from __future__ import annotations

import binascii
import contextlib
import itertools
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from continuitybridge import database
from continuitybridge.errors import ConfigurationError

STATES = ("accepted", "claimed", "handed_over", "waiting", "dead", "done", "skipped", "discarded")
"""What a message may be; the last three are settled."""

SOURCES = ("webhook", "api", "schedule", "manual", "poller", "flow")
MAX_LIMIT = 500


@dataclass(frozen=True, slots=True)
class ListedMessage:
    """A message as a listing shows it; `inbox.status.status` tells more."""

    message_id: str
    environment: str
    flow: str
    version: str
    source: str
    endpoint: str | None
    state: str
    attempts: int
    size_bytes: int
    keys: dict[str, Any]
    accepted_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class Page:
    """`cursor` asks for the page after this one; None when this is the last."""

    messages: list[ListedMessage]
    cursor: str | None


_LIST = """
WITH hot AS (
    SELECT message_id, environment, flow, version, source, endpoint, state, attempts, size_bytes, keys,
           accepted_at, dead_at AS ended_at
    FROM bridge.messages
    WHERE organization_id = %(organization)s
      AND (%(below)s::text IS NULL OR message_id < %(below)s)
      AND (%(environment)s::text IS NULL OR environment = %(environment)s)
      AND (%(flow)s::text IS NULL OR flow = %(flow)s)
      AND (%(source)s::text IS NULL OR source = %(source)s)
      AND (%(since)s::timestamptz IS NULL OR accepted_at >= %(since)s)
      AND (%(until)s::timestamptz IS NULL OR accepted_at < %(until)s)
      AND (%(keys)s::jsonb[] IS NULL OR keys @> ANY (%(keys)s))
      AND (%(state)s::text IS NULL OR state = %(state)s)
    ORDER BY message_id DESC LIMIT %(limit)s
), settled AS (
    SELECT DISTINCT ON (message_id) message_id, environment, flow, version, source, endpoint,
           CASE result WHEN 'dead' THEN 'discarded' ELSE result END AS state, attempts, size_bytes, keys,
           accepted_at, settled_at AS ended_at
    FROM bridge.settled_messages s
    WHERE organization_id = %(organization)s
      AND (%(below)s::text IS NULL OR message_id < %(below)s)
      AND (%(environment)s::text IS NULL OR environment = %(environment)s)
      AND (%(flow)s::text IS NULL OR flow = %(flow)s)
      AND (%(source)s::text IS NULL OR source = %(source)s)
      AND (%(since)s::timestamptz IS NULL OR accepted_at >= %(since)s)
      AND (%(until)s::timestamptz IS NULL OR accepted_at < %(until)s)
      AND (%(keys)s::jsonb[] IS NULL OR keys @> ANY (%(keys)s))
      AND NOT EXISTS (SELECT FROM bridge.messages m
                      WHERE m.organization_id = s.organization_id AND m.message_id = s.message_id)
    ORDER BY message_id DESC, settled_at DESC, replays DESC
)
SELECT * FROM (
    SELECT * FROM hot
    UNION ALL
    (SELECT * FROM settled WHERE %(state)s::text IS NULL OR state = %(state)s
     ORDER BY message_id DESC LIMIT %(limit)s)
) AS found
ORDER BY message_id DESC LIMIT %(limit)s
"""


def list_messages(
    organization_id: UUID,
    *,
    environment: str | None = None,
    flow: str | None = None,
    state: str | None = None,
    source: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    keys: Mapping[str, str] | None = None,
    cursor: str | None = None,
    limit: int = 50,
) -> Page:
    """Messages by descending id, which for the ids that the platform makes (UUIDv7) is newest first; as the
    application role. `since` and `until` bound the time of acceptance, `keys` are search keys that must all be
    equal, a number or truth value by its JSON text. A replayed message is listed once, as it is now.

    Pages neither repeat nor omit a message that keeps matching. Raises `ConfigurationError` for a cursor that is
    none, or a limit beyond `MAX_LIMIT`.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise ConfigurationError(f"limit must lie between 1 and {MAX_LIMIT}", field="limit", value=limit)
    with (
        database.tenant(organization_id) as connection,
        connection.cursor(row_factory=class_row(ListedMessage)) as rows,
    ):
        rows.execute(
            _LIST,
            {
                "organization": organization_id,
                "environment": environment,
                "flow": flow,
                "state": state,
                "source": source,
                "since": since,
                "until": until,
                "keys": [Jsonb(each) for each in readings(keys)] if keys else None,
                "below": None if cursor is None else _read_cursor(cursor),
                "limit": limit + 1,
            },
        )
        found = rows.fetchall()
    if len(found) <= limit:
        return Page(found, None)
    return Page(found[:limit], urlsafe_b64encode(found[limit - 1].message_id.encode()).decode().rstrip("="))


def readings(keys: Mapping[str, str]) -> list[dict[str, Any]]:
    """Every reading of the given texts: `4711` is the text and the number. Few keys are expected: each that is a
    number or a truth value doubles the list."""
    values = []
    for text in keys.values():
        found: list[Any] = [text]
        with contextlib.suppress(ValueError):
            value = orjson.loads(text)
            if isinstance(value, bool | int | float):
                found.append(value)
        values.append(found)
    return [dict(zip(keys, chosen, strict=True)) for chosen in itertools.product(*values)]


def _read_cursor(cursor: str) -> str:
    try:
        text = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        if not text or "\0" in text:
            raise ValueError
    except (ValueError, binascii.Error):
        raise ConfigurationError("cursor must be one that a page gave", field="cursor") from None
    return text
