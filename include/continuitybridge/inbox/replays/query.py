"""Which messages are to be replayed. They are found in the order in which they ended, page by page, so that a
job can go on behind the last one whatever happened in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from continuitybridge.errors import ConfigurationError
from continuitybridge.inbox.listing import readings

Connection = psycopg.Connection[Any]

STATES = ("dead", "done", "skipped", "discarded")
"""What a message may be to be replayed; all but the first are settled."""

MAX_IDS = 10_000
COUNT_LIMIT = 100_000
"""Messages are counted up to this number."""


@dataclass(frozen=True, slots=True)
class Query:
    """All that is given must hold. `states`: dead letters unless others are named; what is settled is found only
    when it is asked for by state, with environment and flow, or by id. `node` and `code` are those of the
    message's last final failure; `since` and `until` bound the time of its acceptance; `keys` are search keys, a
    number or truth value by its JSON text; `message_ids` are at most `MAX_IDS`.

    Raises `ConfigurationError`.
    """

    environment: str | None = None
    flow: str | None = None
    states: Sequence[str] = ("dead",)
    node: str | None = None
    code: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    message_ids: Sequence[str] = ()

    def __post_init__(self) -> None:
        unknown = [state for state in self.states if state not in STATES]
        if unknown or not self.states:
            raise ConfigurationError(
                f"state {', '.join(map(repr, unknown)) or 'missing'}: what can be replayed is {', '.join(STATES)}",
                field="states",
                value=list(self.states),
                valid=list(STATES),
            )
        if set(self.states) != {"dead"} and not self.message_ids and not (self.environment and self.flow):
            raise ConfigurationError(
                "settled messages are replayed of one flow in one environment, or by id: name them", field="flow"
            )
        if len(self.message_ids) > MAX_IDS:
            raise ConfigurationError(
                f"{len(self.message_ids)} ids are too many for one query: at most {MAX_IDS}", field="message_ids"
            )
        if len(self.keys) > 4:
            raise ConfigurationError("a query takes at most four keys", field="keys")

    def to_json(self) -> dict[str, Any]:
        """As it is kept with a job."""
        return {
            "environment": self.environment,
            "flow": self.flow,
            "states": list(self.states),
            "node": self.node,
            "code": self.code,
            "since": self.since and self.since.isoformat(),
            "until": self.until and self.until.isoformat(),
            "keys": dict(self.keys),
            "message_ids": list(self.message_ids),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Query:
        """What `to_json` gave."""
        times = {name: data[name] and datetime.fromisoformat(data[name]) for name in ("since", "until")}
        return cls(**{**data, **times})


@dataclass(frozen=True, slots=True)
class Found:
    """A message that the query finds. `place` is where it stands in the order."""

    message_id: str
    environment: str
    flow: str
    version: str
    state: str
    ended_at: datetime
    settled: bool

    @property
    def place(self) -> dict[str, Any]:
        return {"settled": self.settled, "at": self.ended_at.isoformat(), "id": self.message_id}


_FAILED = """
LEFT JOIN LATERAL (
    SELECT f.node_id, f.code FROM bridge.failures f
    WHERE f.organization_id = m.organization_id AND f.message_id = m.message_id AND f.final
    ORDER BY f.at DESC, f.failure_id DESC LIMIT 1) f ON true
"""
_GIVEN = """
  AND (%(environment)s::text IS NULL OR m.environment = %(environment)s)
  AND (%(flow)s::text IS NULL OR m.flow = %(flow)s)
  AND (%(since)s::timestamptz IS NULL OR m.accepted_at >= %(since)s)
  AND (%(until)s::timestamptz IS NULL OR m.accepted_at < %(until)s)
  AND (%(keys)s::jsonb[] IS NULL OR m.keys @> ANY (%(keys)s))
  AND (%(ids)s::text[] IS NULL OR m.message_id = ANY (%(ids)s))
  AND (%(node)s::text IS NULL OR f.node_id = %(node)s)
  AND (%(code)s::text IS NULL OR f.code = %(code)s)
"""
# What ended after the query's moment is not its business: so no job meets a message again that it has replayed.
_DEAD = f"""
SELECT m.message_id, m.environment, m.flow, m.version, 'dead' AS state, m.dead_at AS ended_at, false AS settled
FROM bridge.messages m {_FAILED}
WHERE m.organization_id = %(organization)s AND m.state = 'dead' AND m.dead_at <= %(before)s
  AND (%(at)s::timestamptz IS NULL OR (m.dead_at, m.message_id) > (%(at)s, %(id)s)) {_GIVEN}
"""  # noqa: S608  (constants, here and below)
_SETTLED = f"""
SELECT m.message_id, m.environment, m.flow, m.version,
       CASE m.result WHEN 'dead' THEN 'discarded' ELSE m.result END AS state, m.settled_at AS ended_at,
       true AS settled
FROM bridge.settled_messages m {_FAILED}
WHERE m.organization_id = %(organization)s AND m.result = ANY (%(results)s) AND m.settled_at <= %(before)s
  AND (%(at)s::timestamptz IS NULL OR (m.settled_at, m.message_id) > (%(at)s, %(id)s)) {_GIVEN}
  AND NOT EXISTS (SELECT FROM bridge.messages h
                  WHERE h.organization_id = m.organization_id AND h.message_id = m.message_id)
  AND NOT EXISTS (SELECT FROM bridge.settled_messages l
                  WHERE l.organization_id = m.organization_id AND l.message_id = m.message_id
                    AND l.replays > m.replays)
"""  # noqa: S608
_ORDER = " ORDER BY ended_at, message_id LIMIT %(limit)s"


def find(
    connection: Connection,
    organization_id: UUID,
    query: Query,
    *,
    before: datetime,
    after: Mapping[str, Any] | None = None,
    limit: int,
) -> list[Found]:
    """The next `limit` messages behind the place `after`, in the caller's transaction: dead letters first, then
    what is settled. Only what ended by `before`."""
    found: list[Found] = []
    behind = dict(after or {})
    if not behind.get("settled") and "dead" in query.states:
        given = _parameters(organization_id, query, before, behind, limit)
        found += [Found(*row) for row in connection.execute(_DEAD + _ORDER, given)]
    if len(found) < limit and set(query.states) != {"dead"}:
        place = behind if behind.get("settled") else {}
        given = _parameters(organization_id, query, before, place, limit - len(found))
        found += [Found(*row) for row in connection.execute(_SETTLED + _ORDER, given)]
    return found


def count(
    connection: Connection, organization_id: UUID, query: Query, *, before: datetime
) -> list[tuple[str, str, str, int]]:
    """How many it finds, by environment, flow and version; up to `COUNT_LIMIT` altogether."""
    parts = ([_DEAD] if "dead" in query.states else []) + ([_SETTLED] if set(query.states) != {"dead"} else [])
    rows = connection.execute(
        "SELECT environment, flow, version, count(*) FROM ("  # noqa: S608
        + " UNION ALL ".join(parts)
        + " LIMIT %(limit)s) AS found GROUP BY environment, flow, version ORDER BY environment, flow, version",
        _parameters(organization_id, query, before, {}, COUNT_LIMIT),
    ).fetchall()
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def _parameters(
    organization_id: UUID, query: Query, before: datetime, behind: Mapping[str, Any], limit: int
) -> dict[str, Any]:
    return {
        "organization": organization_id,
        "environment": query.environment,
        "flow": query.flow,
        "since": query.since,
        "until": query.until,
        "keys": [Jsonb(each) for each in readings(query.keys)] if query.keys else None,
        "ids": list(query.message_ids) or None,
        "node": query.node,
        "code": query.code,
        "results": ["dead" if state == "discarded" else state for state in query.states if state != "dead"],
        "before": before,
        "at": behind.get("at"),
        "id": behind.get("id"),
        "limit": limit,
    }
