"""Waiting until started processes are ready, and noticing when they never will be."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import httpx
import psycopg

from continuitybridge.errors import Unavailable
from continuitybridge.runtime.programs import Program, embedded_postgres
from continuitybridge.runtime.progress import Progress
from continuitybridge.runtime.supervisor import ProcessState, Supervisor, tail
from continuitybridge.settings import Settings
from continuitybridge.stream import health

READY_WAIT_S = 300.0
"""How long the processes may take to become ready on a slow machine."""

ANSWER_WAIT_S = 30.0
"""How long a server may take to answer whether it is ready."""

DEATHS_TOLERATED = 1
"""How often a process may end while it starts before the start is given up."""

_AIRFLOW_HEALTH = {"scheduler": "scheduler", "triggerer": "triggerer", "dag-processor": "dag_processor"}


class Watch:
    """Looks at programs that were started; raises `Unavailable` with the last lines of the log of one that
    keeps dying, and when `READY_WAIT_S` is over."""

    def __init__(self, supervisor: Supervisor, watched: Sequence[Program]) -> None:
        self._supervisor = supervisor
        self._watched = {program.name for program in watched}
        self._seen: dict[str, set[int]] = {program.name: set() for program in watched}
        self._deadline = time.monotonic() + READY_WAIT_S

    def look(self, waiting_for: Sequence[str]) -> dict[str, ProcessState]:
        states = {s.program.name: s for s in self._supervisor.states() if s.program.name in self._watched}
        for name, state in states.items():
            if state.pid:
                self._seen[name].add(state.pid)
            deaths = len(self._seen[name]) - (1 if state.pid else 0)
            if state.state == "FATAL" or deaths > DEATHS_TOLERATED:
                raise self._failure(name, f"{name} does not start{': ' + state.problem if state.problem else ''}")
        if time.monotonic() > self._deadline:
            name = waiting_for[0]
            raise self._failure(name, f"{name} was not ready after {READY_WAIT_S:.0f} s")
        return states

    def _failure(self, name: str, what: str) -> Unavailable:
        log = self._supervisor.log_of(name)
        return Unavailable(f"{what}; the end of {log}:\n{tail(log, 15)}", log=str(log))


def wait_for_stores(supervisor: Supervisor, settings: Settings, stores: Sequence[Program]) -> None:
    """Return when PostgreSQL takes connections and the other stores run."""
    watch = Watch(supervisor, stores)
    for program in stores:
        while not (watch.look([program.name])[program.name].pid and _store_answers(program, settings)):
            time.sleep(0.05)


def _store_answers(program: Program, settings: Settings) -> bool:
    if program.name != "postgres":
        return True
    try:
        psycopg.connect(embedded_postgres(settings).admin_url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def wait_until_ready(
    supervisor: Supervisor, settings: Settings, started: Sequence[Program], progress: Progress
) -> None:
    """Return when all of these are ready: Airflow's by their heartbeat, servers by their answer, the rest by
    having run for a second. Notes each as it becomes ready."""
    watch = Watch(supervisor, started)
    waiting = [program.name for program in started]
    with httpx.Client(timeout=ANSWER_WAIT_S) as client:
        while waiting:
            states = watch.look(waiting)
            health = _get(client, f"{settings.base_url}/api/v2/monitor/health")
            for name in list(waiting):
                if states[name].running and _ready(name, states[name], health, client, settings):
                    waiting.remove(name)
                    progress.note(name)
            if waiting:
                time.sleep(0.2)


def wait_for_streams(settings: Settings, supervisor: Supervisor) -> int:
    """Return when a stream worker has begun to claim, and how many have; raises `Unavailable` after
    `READY_WAIT_S`, with the end of the scheduler's log, which starts them."""
    deadline = time.monotonic() + READY_WAIT_S
    while not (working := [each for each in health.workers(settings) if each["listening"]]):
        if time.monotonic() > deadline:
            log = supervisor.log_of("scheduler")
            raise Unavailable(
                f"no stream worker was ready after {READY_WAIT_S:.0f} s; the end of {log}:\n{tail(log, 15)}",
                log=str(log),
            )
        time.sleep(0.2)
    return len(working)


def _ready(
    name: str, state: ProcessState, health: dict[str, Any] | None, client: httpx.Client, settings: Settings
) -> bool:
    if name == "api-server":
        # Its first request from a task makes it build the routes for tasks, which takes seconds (and longer than
        # a task waits, on a busy machine): let it do so now.
        return health is not None and _get(client, f"{settings.base_url}/execution/health") is not None
    if name == "warehouse":
        return _get(client, f"http://{settings.host}:{settings.warehouse_port}/health") is not None
    if name in _AIRFLOW_HEALTH:
        part = (health or {}).get(_AIRFLOW_HEALTH[name]) or {}
        # A predecessor's last heartbeat counts as healthy for some seconds; this must be the new one's.
        beat = part.get(f"latest_{_AIRFLOW_HEALTH[name]}_heartbeat") or "1970-01-01T00:00:00Z"
        return _epoch(beat) >= state.started_at
    return True


def _get(client: httpx.Client, url: str) -> dict[str, Any] | None:
    try:
        answer = client.get(url)
        return dict(answer.json()) if answer.status_code == httpx.codes.OK else None
    except (httpx.HTTPError, ValueError):
        return None


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
