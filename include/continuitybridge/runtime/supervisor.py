"""supervisord: its configuration, starting and stopping it, asking it. It owns every process of the platform,
restarts each within seconds and ends whole process groups.

It listens on a Unix socket of mode 0600 in the state directory (in a private directory under the temporary one
where that path would be longer than the system allows).
"""

from __future__ import annotations

import ctypes
import hashlib
import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
import xmlrpc.client  # nosec B411
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from supervisor.xmlrpc import Faults, SupervisorTransport  # type: ignore[import-untyped]

from continuitybridge.errors import ConfigurationError, Unavailable
from continuitybridge.runtime import keys
from continuitybridge.runtime.environment import interpreter_environment
from continuitybridge.runtime.programs import Program, programs
from continuitybridge.settings import Settings, project_root

START_WAIT_S = 20.0
"""How long supervisord itself may take to answer."""

KILL_WAIT_S = 10.0
"""How long the kernel may take to end what was killed."""

LOG_MAX_BYTES = 10 * 1024 * 1024
LOG_BACKUPS = 5

_MAX_SOCKET_PATH = 100
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One program as supervisord sees it. `state` is supervisord's word (RUNNING, STARTING, BACKOFF, EXITED,
    FATAL, STOPPED, STOPPING); `started_at` in seconds since the epoch, `pid` 0 when it does not run."""

    program: Program
    state: str
    pid: int
    started_at: int
    problem: str

    @property
    def running(self) -> bool:
        return self.state == "RUNNING"


class Supervisor:
    """The supervisord of one state directory, running or not."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.directory = settings.state_dir / "run"
        self.logs = settings.state_dir / "logs"
        self.configuration = self.directory / "supervisord.conf"
        self.log_file = self.logs / "supervisord.log"
        self.socket = _socket_path(self.directory)

    # ------------------------------------------------------------ life
    def start(self) -> None:
        """Start supervisord, without any program, and return when it answers; nothing when it runs already.

        Raises `Unavailable` with the end of its log.
        """
        if self.running():
            return
        for directory in (self.directory, self.logs, self.socket.parent):
            keys.private_directory(directory)
        _check_private(self.socket.parent)
        keys.write_private(self.configuration, self._render())
        output = self.logs / "supervisord.out"
        with output.open("wb") as stream:
            process = subprocess.Popen(  # noqa: S603  (our own command line)
                [sys.executable, "-m", "supervisor.supervisord", "-c", str(self.configuration)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=interpreter_environment(self.settings),
                start_new_session=True,
                preexec_fn=_become_subreaper,
            )
        deadline = time.monotonic() + START_WAIT_S
        while not self.running():
            if process.poll() is not None or time.monotonic() > deadline:
                said = f"{tail(output, 5)}\n{tail(self.log_file, 5)}".strip()
                raise Unavailable(f"supervisord did not start; the end of {self.log_file}:\n{said}")
            time.sleep(0.05)

    def stop(self, note: Callable[[str], None] = lambda text: None) -> bool:
        """Stop every program, then supervisord, and whatever of theirs is left; False when nothing ran."""
        pid = self.pid()
        if not pid:
            return False
        supervisor = psutil.Process(pid)
        if self.running():
            for group in ("demo", "platform", "api", "store"):
                self._stop_group(group, note)
            # Whatever detached itself from its group is still a descendant: supervisord is its subreaper, and
            # reaps it as long as it lives.
            _end(_descendants(supervisor))
            self._call("shutdown")
        else:
            _signal(supervisor, signal.SIGTERM)
        left: list[psutil.Process] = []
        while _lives(supervisor):
            left = _descendants(supervisor) or left
            with suppress(psutil.TimeoutExpired):
                supervisor.wait(0.5)
        _end(left)
        return True

    def _stop_group(self, group: str, note: Callable[[str], None]) -> None:
        members = [state for state in self.states() if state.program.group == group and state.state != "STOPPED"]
        for state in members:
            self._call("stopProcess", state.program.process_name, False, tolerate=(Faults.NOT_RUNNING,))
        for state in members:
            # supervisord itself kills what does not stop in time.
            while self.state(state.program).state not in ("STOPPED", "EXITED", "FATAL"):
                time.sleep(0.05)
            note(state.program.name)

    def died(self) -> bool:
        """Whether supervisord ended without stopping its programs (kill -9, power loss)."""
        return not self.pid() and (self.directory / "supervisord.pid").exists()

    def running(self) -> bool:
        """Whether supervisord answers."""
        try:
            return bool(self._call("getState")["statecode"] == 1)
        except Unavailable:
            return False

    def pid(self) -> int:
        """supervisord's process id, 0 when it does not run."""
        try:
            pid = int((self.directory / "supervisord.pid").read_text())
            return pid if str(self.configuration) in psutil.Process(pid).cmdline() else 0
        except (OSError, ValueError, psutil.Error):
            return 0

    # ------------------------------------------------------------ programs
    def launch(self, program: Program) -> None:
        """Start a program and return at once; nothing when it runs or is starting."""
        self._call("startProcess", program.process_name, False, tolerate=(Faults.ALREADY_STARTED,))

    def halt(self, program: Program) -> None:
        """Stop a program and wait; nothing when it does not run."""
        self._call("stopProcess", program.process_name, True, tolerate=(Faults.NOT_RUNNING,))

    def states(self) -> list[ProcessState]:
        """Every program; raises `Unavailable` when supervisord does not answer."""
        found = {f"{info['group']}:{info['name']}": info for info in self._call("getAllProcessInfo")}
        return [
            _state(program, found[program.process_name])
            for program in programs(self.settings)
            if program.process_name in found
        ]

    def state(self, program: Program) -> ProcessState:
        return _state(program, self._call("getProcessInfo", program.process_name))

    def pids(self) -> set[int]:
        """Process ids of what supervisord started and has not seen end."""
        return {int(info["pid"]) for info in self._call("getAllProcessInfo") if info["pid"]}

    def log_of(self, name: str) -> Path:
        """The log file of a program (`<state_dir>/logs/<name>.log`), or supervisord's own."""
        return self.logs / f"{name}.log"

    # ------------------------------------------------------------ inside
    def _call(self, method: str, *arguments: Any, tolerate: tuple[int, ...] = ()) -> Any:
        transport = SupervisorTransport(serverurl=f"unix://{self.socket}")
        proxy = xmlrpc.client.ServerProxy("http://localhost", transport=transport)
        try:
            return getattr(proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode in tolerate:
                return None
            raise Unavailable(f"supervisord refused {method}{arguments}: {fault.faultString}") from None
        except (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError) as error:
            raise Unavailable(f"supervisord does not answer: {error}") from None
        finally:
            transport.close()

    def _render(self) -> str:
        all_programs = programs(self.settings)
        sections = [
            self._section("unix_http_server", file=self.socket, chmod="0600"),
            self._section(
                "supervisord",
                logfile=self.log_file,
                logfile_maxbytes=LOG_MAX_BYTES,
                logfile_backups=LOG_BACKUPS,
                pidfile=self.directory / "supervisord.pid",
                nodaemon="true",
                silent="true",
                umask="077",
                identifier="continuitybridge",
                **({"user": "root"} if os.geteuid() == 0 else {}),
            ),
            self._section(
                "rpcinterface:supervisor",
                **{"supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"},
            ),
            self._section("supervisorctl", serverurl=f"unix://{self.socket}"),
        ]
        for number, group in enumerate(dict.fromkeys(program.group for program in all_programs)):
            names = ",".join(program.name for program in all_programs if program.group == group)
            sections.append(self._section(f"group:{group}", programs=names, priority=number))
        sections += [self._program_section(program) for program in all_programs]
        return "\n".join(sections)

    def _program_section(self, program: Program) -> str:
        command = f'"{sys.executable}" -m continuitybridge.runtime.launch {program.name}'
        return self._section(
            f"program:{program.name}",
            command=command,
            directory=project_root(),
            # `bridge up` starts them in order and watches; afterwards each is restarted whenever it ends.
            autostart="false",
            autorestart="true",
            startsecs=3,
            startretries=100,
            stopsignal=program.stop_signal.name.removeprefix("SIG"),
            stopwaitsecs=program.stop_wait_s,
            # A signal to PostgreSQL's group would reach each session as a cancel of its statement.
            stopasgroup="false" if program.name == "postgres" else "true",
            killasgroup="true",
            redirect_stderr="true",
            stdout_logfile=self.log_of(program.name),
            stdout_logfile_maxbytes=LOG_MAX_BYTES,
            stdout_logfile_backups=LOG_BACKUPS,
        )

    @staticmethod
    def _section(name: str, **options: Any) -> str:
        # supervisord expands %(name)s in values.
        lines = [f"{key}={str(value).replace('%', '%%')}" for key, value in options.items()]
        return "\n".join([f"[{name}]", *lines, ""])


def tail(path: Path, lines: int) -> str:
    """The last lines of a text file; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - 64 * 1024, 0))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def _state(program: Program, info: dict[str, Any]) -> ProcessState:
    return ProcessState(program, info["statename"], info["pid"], info["start"], info["spawnerr"])


def _socket_path(directory: Path) -> Path:
    path = directory.absolute() / "supervisord.sock"
    if len(str(path)) <= _MAX_SOCKET_PATH:
        return path
    name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"bridge-{os.geteuid()}-{name}" / "supervisord.sock"


def _check_private(directory: Path) -> None:
    status = directory.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ConfigurationError(f"{directory} is not ours alone: others could replace the supervisor's socket")


def _become_subreaper() -> None:
    """What a dead program leaves behind becomes supervisord's child instead of init's, and can be found."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _lives(process: psutil.Process) -> bool:
    """Whether it has not ended. What its parent (or an init that does not care) has not reaped has."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _end(processes: Sequence[psutil.Process]) -> None:
    """Kill the processes and return when they have ended."""
    for process in processes:
        _signal(process, signal.SIGKILL)
    deadline = time.monotonic() + KILL_WAIT_S
    while any(map(_lives, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)
