"""Watching an endpoint: the first message that came in there since a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from continuitybridge import database
from continuitybridge.database import aio
from continuitybridge.errors import NotFound


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message that was accepted; `state` as `status.MessageStatus` has it, `keys` its search keys."""

    message_id: str
    flow: str
    version: str
    state: str
    keys: dict[str, Any]
    accepted_at: datetime


_ENDPOINT = """
SELECT flow FROM bridge.endpoints
WHERE organization_id = %(organization)s AND environment = %(environment)s AND slug = %(endpoint)s
"""
# One statement sees one moment: a message that is just being settled stands in exactly one of the tables.
# A message settled since then may have been accepted before; one accepted since then is settled since then.
_FIRST = """
SELECT message_id, flow, version, state, keys, accepted_at FROM (
    SELECT message_id, flow, version, state, keys, accepted_at FROM bridge.messages
    WHERE organization_id = %(organization)s AND environment = %(environment)s AND endpoint = %(endpoint)s
      AND accepted_at >= %(since)s AND keys @> %(keys)s
    UNION ALL
    SELECT message_id, flow, version, CASE result WHEN 'dead' THEN 'discarded' ELSE result END, keys, accepted_at
    FROM bridge.settled_messages
    WHERE organization_id = %(organization)s AND environment = %(environment)s AND flow = %(flow)s
      AND endpoint = %(endpoint)s AND settled_at >= %(since)s AND accepted_at >= %(since)s AND keys @> %(keys)s
) arrived ORDER BY accepted_at, message_id LIMIT 1
"""


def first_arrival(
    organization_id: UUID,
    environment: str,
    endpoint: str,
    *,
    since: datetime,
    keys: Mapping[str, Any] | None = None,
) -> Arrival | None:
    """The earliest message accepted at the endpoint from `since` (which bears a time zone) on whose search keys
    hold `keys`; None while there is none. Reads as the application role, within the organization.

    Raises `NotFound` for an endpoint that is not there. A message whose acceptance commits while one looks is seen
    by the next look, even if it came before the one seen now.
    """
    place = _place(organization_id, environment, endpoint, since, keys)
    with database.tenant(organization_id) as connection:
        found = connection.execute(_ENDPOINT, place).fetchone()
        if found is None:
            raise _no_endpoint(environment, endpoint)
        row = connection.execute(_FIRST, {**place, "flow": found[0]}).fetchone()
    return None if row is None else Arrival(*row)


async def first_arrival_async(
    organization_id: UUID,
    environment: str,
    endpoint: str,
    *,
    since: datetime,
    keys: Mapping[str, Any] | None = None,
) -> Arrival | None:
    """As `first_arrival`, for coroutines."""
    place = _place(organization_id, environment, endpoint, since, keys)
    async with aio.tenant(organization_id) as connection:
        found = await (await connection.execute(_ENDPOINT, place)).fetchone()
        if found is None:
            raise _no_endpoint(environment, endpoint)
        row = await (await connection.execute(_FIRST, {**place, "flow": found[0]})).fetchone()
    return None if row is None else Arrival(*row)


def _place(
    organization_id: UUID, environment: str, endpoint: str, since: datetime, keys: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "organization": organization_id,
        "environment": environment,
        "endpoint": endpoint,
        "since": since,
        "keys": Jsonb(dict(keys or {})),
    }


def _no_endpoint(environment: str, endpoint: str) -> NotFound:
    return NotFound(f"there is no endpoint {endpoint!r} in {environment}", endpoint=endpoint)
