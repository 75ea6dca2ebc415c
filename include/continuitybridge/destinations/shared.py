"""What the processes that deliver know of destinations, and tell each other by way of the table. As the relay
role; nothing that serves a person's request uses it."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

from continuitybridge import database
from continuitybridge.engine.circuit import CircuitPolicy, CircuitState
from continuitybridge.engine.destinations import OF_OTHERS, DestinationState
from continuitybridge.inbox import turned_back
from continuitybridge.settings import get_settings

CHANNEL = "bridge_destinations"
"""NOTIFY channel; the payload is `<organization_id>/<environment>/<name>`. A hint: who waits on it also looks."""

Place = tuple[UUID, str]
"""Organization and environment."""

_STATES = """
SELECT organization_id, environment, name, status = 'paused', max_concurrency, circuit_failures, circuit_wait_s,
       circuit_max_wait_s, failures, openings, extract(epoch FROM opened_until - now())::float8
FROM bridge.destinations
"""

# Told by several workers at about the same time: the one that saw more openings in a row knows better, and whoever
# saw a success knows best.
_OPENED = """
INSERT INTO bridge.destinations (organization_id, environment, name, failures, openings, opened_until)
VALUES (%(organization)s, %(environment)s, %(name)s, %(failures)s, %(openings)s,
        now() + make_interval(secs => %(s)s))
ON CONFLICT (organization_id, environment, name) DO UPDATE
SET failures = excluded.failures, openings = excluded.openings, opened_until = excluded.opened_until,
    updated_at = now()
WHERE (excluded.openings, excluded.opened_until) > (destinations.openings, destinations.opened_until)
   OR destinations.openings = 0
"""
_CLOSED = """
UPDATE bridge.destinations SET failures = 0, openings = 0, opened_until = NULL, updated_at = now()
WHERE organization_id = %(organization)s AND environment = %(environment)s AND name = %(name)s AND openings > 0
"""


def default_state() -> DestinationState:
    """What holds for a destination of which nothing else is said (`OF_OTHERS`), from the settings."""
    settings = get_settings()
    policy = CircuitPolicy(settings.circuit_failures, settings.circuit_wait_s, settings.circuit_max_wait_s)
    return DestinationState(OF_OTHERS, max_concurrency=settings.destination_max_concurrency, policy=policy)


def states(organization_id: UUID, environment: str) -> list[DestinationState]:
    """What is said of the destinations of one environment, and first what holds for all others (`OF_OTHERS`)."""
    with database.relay() as connection:
        rows = connection.execute(
            _STATES + " WHERE organization_id = %s AND environment = %s", (organization_id, environment)
        ).fetchall()
    return [default_state(), *(_state_of(row)[1] for row in rows)]


def all_states() -> dict[Place, list[DestinationState]]:
    """What is said of destinations everywhere, for a process that delivers for all organizations; what holds for
    others is `default_state`."""
    with database.relay() as connection:
        rows = connection.execute(_STATES).fetchall()
    found: dict[Place, list[DestinationState]] = {}
    for row in rows:
        place, state = _state_of(row)
        found.setdefault(place, []).append(state)
    return found


def _state_of(row: tuple[Any, ...]) -> tuple[Place, DestinationState]:
    """A row of `_STATES`."""
    organization_id, environment, name, paused, most, failures_to_open, wait_s, max_wait_s, *circuit = row
    default = default_state()
    policy = CircuitPolicy(
        default.policy.failures_to_open if failures_to_open is None else failures_to_open,
        wait_s or default.policy.wait_s,
        max_wait_s or default.policy.max_wait_s,
    )
    failures, openings, left_s = circuit
    state = CircuitState(failures, openings, time.time() + left_s if openings else 0.0)
    return (organization_id, environment), DestinationState(
        name, paused, most or default.max_concurrency, policy, state
    )


def record(organization_id: UUID, environment: str, name: str, circuit: CircuitState) -> None:
    """Tell the others that a circuit opened or closed here; what waits for a destination whose circuit closed is
    woken. Raises `Unavailable`: then they do not know, and find out for themselves."""
    place = {"organization": organization_id, "environment": environment, "name": name}
    with database.relay() as connection:
        if circuit.openings:
            told = connection.execute(
                _OPENED,
                {
                    **place,
                    "failures": circuit.failures,
                    "openings": circuit.openings,
                    "s": max(0.0, circuit.opened_until - time.time()),
                },
            ).rowcount
        else:
            told = connection.execute(_CLOSED, place).rowcount
        if told:
            connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, f"{organization_id}/{environment}/{name}"))
    if not circuit.openings:
        turned_back.wake(organization_id, environment, name)
