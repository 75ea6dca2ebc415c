"""Messages of an organization, page by page."""

from __future__ import annotations

import binascii
import contextlib
import itertools
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
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


# What a listing costs must not depend on how much is settled: each branch walks an index in the order of the ids
# and ends when the page is full, or reads the rows that have a search key.
_HOT = """
SELECT message_id, environment, flow, version, source, endpoint, state, attempts, size_bytes, keys, accepted_at,
       dead_at AS ended_at
FROM bridge.messages s WHERE {conditions}
ORDER BY message_id DESC LIMIT %(limit)s
"""
_COLUMNS = """
SELECT message_id, environment, flow, version, source, endpoint,
       CASE result WHEN 'dead' THEN 'discarded' ELSE result END AS state, attempts, size_bytes, keys, accepted_at,
       settled_at AS ended_at
"""
_SETTLED = (
    _COLUMNS  # noqa: S608  (constants)
    + """
FROM bridge.settled_messages s WHERE {conditions}
  AND NOT EXISTS (SELECT FROM bridge.messages m
                  WHERE m.organization_id = s.organization_id AND m.message_id = s.message_id)
  AND NOT EXISTS (SELECT FROM bridge.settled_messages l
                  WHERE l.organization_id = s.organization_id AND l.message_id = s.message_id
                    AND l.settled_at >= s.settled_at AND l.replays > s.replays)
ORDER BY message_id DESC LIMIT %(limit)s
"""
)
_SETTLED_BY_KEYS = (
    _COLUMNS
    + """
FROM bridge.settled_by_keys((%(keys)s)[{n}], %(environment)s, %(flow)s, %(source)s, %(result)s, %(since)s,
                            %(until)s, %(below)s, %(limit)s)
"""
)
_SETTLED_STATES = {"done": "done", "skipped": "skipped", "discarded": "dead"}


def _statement(given: Mapping[str, Any], environments: Sequence[str]) -> str:
    """The query for what is given. `environments` are all of the organization's: an index leads by them."""
    common = ["s.organization_id = %(organization)s"]
    if given["below"] is not None:
        common.append("s.message_id < %(below)s")
    if given["environment"] is not None:
        common.append("s.environment = %(environment)s")
    if given["flow"] is not None:
        common.append("s.flow = %(flow)s")
    if given["source"] is not None:
        common.append("s.source = %(source)s")
    if given["since"] is not None:
        common.append("s.accepted_at >= %(since)s")
    if given["until"] is not None:
        common.append("s.accepted_at < %(until)s")
    branches = []
    state = given["state"]
    if state not in _SETTLED_STATES:
        hot = [
            *common,
            *(["s.state = %(state)s"] if state else []),
            *(["s.keys @> ANY (%(keys)s)"] if given["keys"] else []),
        ]
        branches.append(_HOT.format(conditions=" AND ".join(hot)))
    if state is None or state in _SETTLED_STATES:
        branches += _settled_branches(given, common, environments)
    found = " UNION ALL ".join(f"({branch})" for branch in branches)
    return f"SELECT * FROM ({found}) AS found ORDER BY message_id DESC LIMIT %(limit)s"  # noqa: S608


def _settled_branches(given: Mapping[str, Any], common: Sequence[str], environments: Sequence[str]) -> list[str]:
    conditions = list(common)
    if given["state"] is not None:
        conditions.append("s.result = %(result)s")
    if given["since"] is not None:
        # Settled after it was accepted: earlier partitions are not looked at.
        conditions.append("s.settled_at >= %(since)s")
    if given["keys"]:
        return [_SETTLED_BY_KEYS.format(n=n) for n in range(1, len(given["keys"]) + 1)]
    ways = [conditions]
    if given["flow"] is not None and given["environment"] is None:
        ways = [[*conditions, f"s.environment = %(environment_{n})s"] for n in range(len(environments))]
    if given["until"] is not None:
        # The platform's ids begin with their time: those made after `until` need not be looked at. Ids that
        # callers made may sort anywhere; all but those of the time between are looked at.
        ways = [
            [*way, bound]
            for way in ways
            for bound in ("s.message_id < %(made_until)s", "s.message_id >= %(not_made_yet)s")
        ]
    return [_SETTLED.format(conditions=" AND ".join(way)) for way in ways]


def _id_at(moment: datetime) -> str:
    """The beginning of the ids that the platform makes at a moment (UUIDv7)."""
    digits = f"{max(0, int(moment.timestamp() * 1000)):012x}"
    return f"{digits[:8]}-{digits[8:]}"


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
    given: dict[str, Any] = {
        "organization": organization_id,
        "environment": environment,
        "flow": flow,
        "state": state,
        "result": _SETTLED_STATES.get(state or ""),
        "source": source,
        "since": since,
        "until": until,
        "keys": [Jsonb(each) for each in readings(keys)] if keys else None,
        "below": None if cursor is None else _read_cursor(cursor),
        "limit": limit + 1,
    }
    if until is not None:
        # A message is accepted shortly after its id is made.
        given |= {"made_until": _id_at(until), "not_made_yet": _id_at(datetime.now(UTC) + timedelta(days=1))}
    with (
        database.tenant(organization_id) as connection,
        connection.cursor(row_factory=class_row(ListedMessage)) as rows,
    ):
        environments = [
            row[0]
            for row in connection.execute(
                "SELECT environment FROM bridge.environments WHERE organization_id = %s", (organization_id,)
            )
        ]
        given |= {f"environment_{n}": name for n, name in enumerate(environments)}
        rows.execute(_statement(given, environments), given, prepare=False)
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
