"""Bring the platform up, take it down, say how it is."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import psutil
from pydantic import SecretStr

from continuitybridge.airflow.roles import SUPERADMIN_ROLE
from continuitybridge.database.bootstrap import bootstrap
from continuitybridge.errors import BridgeError, ConfigurationError, Unavailable
from continuitybridge.runtime import keys, ports, readiness
from continuitybridge.runtime.environment import OVERRIDES, airflow_environment, write_airflow_configuration
from continuitybridge.runtime.programs import Program, embedded_postgres, programs
from continuitybridge.runtime.progress import Progress
from continuitybridge.runtime.provisioning import Account, provision
from continuitybridge.runtime.supervisor import ProcessState, Supervisor
from continuitybridge.secrets import backends
from continuitybridge.settings import Settings, get_settings, project_root
from continuitybridge.stream import health
from continuitybridge.vault import master, rotation, sealing

SUPERADMIN = "admin"
_SEALED = {"name": "vault", "state": "sealed", "demo": False}
_UNREADABLE = {"name": "secret stores", "state": "unreadable", "demo": False}


@dataclass(frozen=True, slots=True)
class Started:
    """What `up` did. `new_password` is the superadmin's, on the start that made it; afterwards it stands in
    `password_file` only."""

    settings: Settings
    password_file: Path
    new_password: str | None

    def superadmin(self) -> list[str]:
        """How to sign in, for the person who started it: the password is shown once."""
        if self.new_password is None:
            return [f"Superadmin: {SUPERADMIN}, password in {self.password_file}"]
        return [
            f"Superadmin: {SUPERADMIN}, password {self.new_password}",
            f"  (shown this once; kept in {self.password_file})",
        ]


def up(progress: Progress, *, accounts: Sequence[Account] = (), demo: bool = False) -> Started:
    """Start what does not run yet and wait until all of it is ready.

    Running it again is harmless: running processes are kept, unless settings, code or lock have changed since
    they were started; then they are restarted. Raises `ConfigurationError` (busy port, bad setting) and
    `Unavailable` with the last lines of the right log; what did start is left for inspection.
    """
    with _exclusive() as settings:
        supervisor = Supervisor(settings)
        with progress.step("state and keys"):
            password_file = settings.keys_dir / f"{SUPERADMIN}.password"
            password, made = keys.password(password_file)
            master.open_or_create(settings)
            airflow_environment(settings)
        if supervisor.pid() and _started_from(settings) != _fingerprint(settings):
            with progress.step("settings or code changed: stopping what ran"):
                supervisor.stop(progress.note)
        wanted = [program for program in programs(settings) if demo or not program.part_of_demo]
        _check_ports(supervisor, settings, wanted)
        stores = [program for program in wanted if program.group == "store"]
        with progress.step(", ".join(["supervisor", *(program.name for program in stores)])):
            if settings.database_url is None:
                embedded_postgres(settings).initialise()
            supervisor.start()
            _launch(supervisor, stores)
            readiness.wait_for_stores(supervisor, settings, stores)
        with progress.step("database, roles, migrations, accounts"):
            bootstrap(_admin_url(settings), settings.state_dir)
            settings = _fresh_settings()
            write_airflow_configuration(settings)
            superadmin = Account(
                SUPERADMIN, "Super", "Admin", "admin@localhost.localdomain", SUPERADMIN_ROLE, password
            )
            if not provision(settings, [superadmin, *accounts]):
                progress.note("(up to date)")
            try:
                rotation.require_keys()
            except Unavailable as error:
                # Everything else comes up, and what needs a key answers that it has to wait.
                progress.note(f"the keys could not be checked: {error.detail}")
            if (wrong := _stores_problem()) is not None:
                # Only what draws on a store waits for that.
                progress.note(f"the secret stores are not known: {wrong}")
        keys.write_private(_fingerprint_file(settings), _fingerprint(settings))
        rest = [program for program in wanted if program.group != "store"]
        with progress.step("ready:"):
            _launch(supervisor, rest)
            readiness.wait_until_ready(supervisor, settings, rest, progress)
        if settings.stream_workers:
            with progress.step("stream workers:"):
                progress.note(f"{readiness.wait_for_streams(settings, supervisor)} at work")
    return Started(settings, password_file, password if made else None)


def down(progress: Progress) -> bool:
    """Stop everything; False when nothing ran."""
    with _exclusive() as settings:
        supervisor = Supervisor(settings)
        if not supervisor.pid():
            return False
        with progress.step("stopped:"):
            return supervisor.stop(progress.note)


def status(settings: Settings) -> list[dict[str, Any]]:
    """One row per process, then one per stream worker of this machine: name, state, pid, uptime_s, memory_mb (its
    children included), address, demo. Where none works and some should, a row says so; others, that the vault is
    sealed and that the file of secret stores is bad."""
    supervisor = Supervisor(settings)
    if supervisor.running():
        states = supervisor.states()
    else:
        states = [ProcessState(program, "STOPPED", 0, 0, "") for program in programs(settings)]
    rows: list[dict[str, Any]] = [
        {
            "name": state.program.name,
            "state": state.state.lower(),
            "pid": state.pid or None,
            "uptime_s": int(time.time() - state.started_at) if state.running else None,
            "memory_mb": _memory_mb(state.pid) if state.pid else None,
            "address": _address(settings, state.program),
            "demo": state.program.part_of_demo,
        }
        for state in states
    ]
    rows += _stream_workers(settings)
    nothing = dict.fromkeys(("pid", "uptime_s", "memory_mb", "address"))
    if sealing.is_sealed(settings.master_key_path):
        rows.append({**nothing, **_SEALED})
    # It is asked often, by people who wait.
    if _stores_problem(at_a_glance=True) is not None:
        rows.append({**nothing, **_UNREADABLE})
    return rows


def _stores_problem(*, at_a_glance: bool = False) -> str | None:
    """What is wrong with the file of secret stores."""
    try:
        backends.check(at_a_glance=at_a_glance)
    except ConfigurationError as error:
        return error.detail
    return None


def _stream_workers(settings: Settings) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "name": f"stream-{number}",
            "state": "running" if worker["listening"] else "waiting",
            "pid": worker["pid"],
            "uptime_s": int((datetime.now(UTC) - datetime.fromisoformat(worker["since"])).total_seconds()),
            "memory_mb": _memory_mb(worker["pid"]),
            "address": None,
            "demo": False,
        }
        for number, worker in enumerate(health.workers(settings), 1)
    ]
    if rows or not settings.stream_workers:
        return rows
    nothing = dict.fromkeys(("pid", "uptime_s", "memory_mb", "address"))
    return [{"name": "stream", "state": "stopped", **nothing, "demo": False}]


def _address(settings: Settings, program: Program) -> str | None:
    return f"{settings.host}:{getattr(settings, program.port_setting)}" if program.port_setting else None


def _memory_mb(pid: int) -> int | None:
    """Proportional set size: forked workers share most of their pages, and each page counts once."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        total = 0
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                total += one.memory_full_info().pss
        return total // 1024**2
    return None


@contextmanager
def _exclusive() -> Iterator[Settings]:
    """The settings, while no other `up` or `down` works on the same state directory."""
    settings = _fresh_settings()
    keys.private_directory(settings.state_dir)
    with (settings.state_dir / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield settings


def _fresh_settings() -> Settings:
    get_settings.cache_clear()
    return get_settings()


def _admin_url(settings: Settings) -> str:
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    return embedded_postgres(settings).admin_url


def _check_ports(supervisor: Supervisor, settings: Settings, wanted: Sequence[Program]) -> None:
    held = {state.program.name for state in supervisor.states() if state.pid} if supervisor.running() else set()
    needed = [program.port_setting for program in wanted if program.port_setting and program.name not in held]
    # What a supervisor killed with -9 leaves gets its signal at once, but needs a moment to go.
    deadline = time.monotonic() + (15.0 if supervisor.died() else 0.0)
    while True:
        try:
            return ports.check_free(settings, needed)
        except BridgeError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.2)


def _launch(supervisor: Supervisor, wanted: Sequence[Program]) -> None:
    for program in wanted:
        supervisor.launch(program)


def _fingerprint_file(settings: Settings) -> Path:
    return settings.state_dir / "run" / "started-from"


def _started_from(settings: Settings) -> str | None:
    try:
        return _fingerprint_file(settings).read_text()
    except FileNotFoundError:
        return None


def _fingerprint(settings: Settings) -> str:
    """Changes when running processes would be others if they were started now: settings, code, packages."""
    digest = hashlib.sha256()
    for name, value in sorted(settings):
        shown = value.get_secret_value() if isinstance(value, SecretStr) else value
        digest.update(f"{name}={shown}\n".encode())
    variables = airflow_environment(settings) | {k: v for k, v in os.environ.items() if k.startswith(OVERRIDES)}
    digest.update(orjson.dumps(variables, option=orjson.OPT_SORT_KEYS))
    root = project_root()
    for file in [*sorted((root / "include" / "continuitybridge").rglob("*.py")), root / "requirements.txt"]:
        digest.update(file.read_bytes())
    return digest.hexdigest()
