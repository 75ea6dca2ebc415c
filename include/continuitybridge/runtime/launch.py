"""Becomes one of the platform's processes: `python -m continuitybridge.runtime.launch NAME`.

The supervisor starts this rather than the process itself, so that secrets stand neither in its configuration nor
on a command line, each (re)start reads the settings anew, and what a killed predecessor left behind is ended
before its successor works. A Python program runs in this very interpreter: starting another one, and importing
again what is here already, would take a second of every start.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import logging
import os
import pwd
import runpy
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NoReturn

import psutil
import psycopg
import yaml

from continuitybridge.airflow.processes import runs_tasks
from continuitybridge.database.connections import role_url
from continuitybridge.errors import BridgeError, Unavailable
from continuitybridge.runtime import valkey
from continuitybridge.runtime.environment import process_environment
from continuitybridge.runtime.programs import Program, embedded_postgres, programs
from continuitybridge.runtime.supervisor import Supervisor
from continuitybridge.settings import Settings, get_settings

DATABASE_WAIT_S = 60.0
"""How long a process waits for its database before it gives up and is started again."""

COLLECTOR_THRESHOLDS = (50_000, 20, 20)
"""How many new objects make Python look for garbage, and how often it looks among the older ones."""

_PR_SET_PDEATHSIG = 1
_prctl: Any = getattr(ctypes.CDLL(None), "prctl", None)


def main(name: str) -> None:
    """Become the program of that name; does not return."""
    settings = get_settings()
    program = next(program for program in programs(settings) if program.name == name)
    end_orphans(Supervisor(settings))
    if program.argv is not None:
        _run_other(
            program, program.argv(settings), embedded_postgres(settings).user if name == "postgres" else None
        )
    environment = process_environment(settings)
    if settings.redis_embedded and settings.redis_url is None:
        environment["BRIDGE_REDIS_URL"] = valkey.url(settings)
    wait_for_database(settings)
    if name == "scheduler":
        _bury_predecessor(environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"])
    # Not by a signal that it can mind: the database goes at the same moment, and a scheduler that ends because it
    # lost that waits for ever for its workers.
    _die_with_supervisor(signal.SIGKILL)
    _let_children_die_with_their_parent()
    if name == "api-server":
        # No other process needs what this imports.
        from continuitybridge.webhooks import late_requests

        # It may have several workers (`AIRFLOW__API__WORKERS`).
        late_requests.install_above()
    _run_module(program, environment)


def _run_other(program: Program, argv: list[str], user: str | None) -> NoReturn:
    hidden = ("BRIDGE", "AIRFLOW")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    _become(user)
    _die_with_supervisor(program.stop_signal)
    os.execve(argv[0], argv, environment)  # noqa: S606  (our own command line)


def _run_module(program: Program, environment: dict[str, str]) -> NoReturn:
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [program.module, *program.arguments]
    # Importing Airflow makes millions of objects, which stay: looking for garbage among them at every 700th is a
    # tenth of the start.
    gc.set_threshold(*COLLECTOR_THRESHOLDS)
    # Airflow reads its providers' descriptions at every start, with YAML's reader that is written in Python.
    yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # type: ignore[misc]
    status = 1
    # Registered before the program registers anything, so that it comes last.
    atexit.register(lambda: _leave(status))
    try:
        runpy.run_module(program.module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
        raise
    sys.exit()


def _leave(status: int) -> NoReturn:
    """End at once, when all that wanted to be told has been: Python would take all modules and objects of Airflow
    apart first, one by one, for seconds of every stop."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def end_orphans(supervisor: Supervisor) -> None:
    """Kill what dead processes left behind: their children, which the supervisor inherits (it is their subreaper).

    Only children of the supervisor that it did not start are touched, and not those that run tasks: the next
    scheduler takes them over (see `airflow.executor`).
    """
    # In this order: a process that the supervisor starts in between is in the second set, not in the first.
    children = psutil.Process(supervisor.pid()).children()
    started = supervisor.pids()
    for orphan in children:
        if orphan.pid not in started and not runs_tasks(orphan):
            end_tree(orphan)


def end_tree(process: psutil.Process) -> None:
    """Kill a process and everything it started."""
    try:
        family = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue


def wait_for_database(settings: Settings) -> None:
    """Return when the database takes connections; raises `Unavailable` after `DATABASE_WAIT_S`."""
    deadline = time.monotonic() + DATABASE_WAIT_S
    url = role_url("relay", settings)
    while True:
        try:
            psycopg.connect(url, connect_timeout=5).close()
            return
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline:
                raise Unavailable(f"the database does not answer: {error}") from None
            time.sleep(0.2)


def _bury_predecessor(airflow_url: str) -> None:
    """Say in Airflow's table that this machine's former scheduler is dead: the next one takes its tasks over when
    it begins, instead of when it has missed heartbeats for half a minute."""
    with psycopg.connect("postgresql" + airflow_url[airflow_url.index("://") :]) as connection:
        connection.execute(
            "UPDATE public.job SET state = 'failed', end_date = now()"
            " WHERE job_type = 'SchedulerJob' AND state = 'running' AND hostname = %s",
            (socket.gethostname(),),
        )


def _become(user: str | None) -> None:
    if user is not None:
        account = pwd.getpwnam(user)
        os.chdir("/")
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)


def _die_with_supervisor(number: signal.Signals) -> None:
    """Nothing outlives a supervisor killed with -9: nobody would watch it, and it would hold its port. What works
    on messages is made for being killed at any moment; PostgreSQL is stopped in order."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() == 1:  # it died before the call
            sys.exit(1)


def _let_children_die_with_their_parent() -> None:
    """What this process and its children fork (workers, tasks, processors of DAG files) is killed when its parent
    ends, however that ends: it would hold the parent's database session and locks.

    Only forks of a main thread: the kernel takes the end of the forking *thread* for the parent's.
    """
    if sys.platform != "linux":
        return
    forking: list[tuple[bool, int]] = []

    def before() -> None:
        forking[:] = [(threading.current_thread() is threading.main_thread(), os.getpid())]

    def in_child() -> None:
        by_main_thread, parent = forking[0]
        if by_main_thread:
            _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != parent:  # it died before the call
                os._exit(1)

    os.register_at_fork(before=before, after_in_child=in_child)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except BridgeError as error:
        sys.exit(f"{sys.argv[1]}: {error.detail}")
