"""The small world: PostgreSQL, `bridge intake` and `bridge stream`, without Airflow."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from chaos_world import BRIDGE, SETTINGS, family, free_port, inherited

from continuitybridge.database import connections, migrate
from continuitybridge.database.bootstrap import bootstrap
from continuitybridge.database.embedded import EmbeddedPostgres
from continuitybridge.settings import Settings


class Kept:
    """A process that is started again when it is found dead."""

    def __init__(self, environment: dict[str, str], log: Path, *arguments: str) -> None:
        self._arguments = [str(BRIDGE), *arguments]
        self._environment = environment
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def revive(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._arguments, env=self._environment, stdout=log, stderr=log)

    def process(self) -> list[psutil.Process]:
        if self._process is None or self._process.poll() is not None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return [psutil.Process(self._process.pid)]
        return []

    def end(self) -> None:
        if self._process is None:
            return
        left = [member for parent in self.process() for member in family(parent)]
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


class Processes:
    """A `World` of three programs, one of which has workers with node processes."""

    kinds: Sequence[str] = ("postgres", "intake", "stream", "stream worker", "node process")

    def __init__(self, directory: Path) -> None:
        self._ending = threading.Event()
        self._reviver = threading.Thread(target=self._revive)
        self._state = directory / "state"
        self._postgres = EmbeddedPostgres(self._state / "postgres", free_port())
        self.environment = {
            **inherited(),
            **SETTINGS,
            "BRIDGE_STATE_DIR": str(self._state),
            "BRIDGE_DATABASE_PORT": str(self._postgres.port),
        }
        port = free_port()
        self.urls = [f"http://127.0.0.1:{port}"]
        self._intake = Kept(self.environment, directory / "intake.log", "intake", "--port", str(port))
        self._stream = Kept(self.environment, directory / "stream.log", "stream", "--workers", "2")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self._postgres.initialise()
        self._postgres.start(die_with_parent=True)
        try:
            bootstrap(self._postgres.admin_url, self._state)
            migrate.upgrade(connections.owner_url(Settings(state_dir=self._state)))
            self._start()
            self._reviver.start()
            yield
        finally:
            self._ending.set()
            if self._reviver.is_alive():
                self._reviver.join(60)
            self._intake.end()
            self._stream.end()
            self._postgres.stop()

    def _start(self) -> None:
        self._intake.revive()
        self._stream.revive()
        deadline = time.monotonic() + 120
        while True:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{self.urls[0]}/bridge/health/live", timeout=2),
            ):
                return
            assert time.monotonic() < deadline, "intake did not start"
            time.sleep(0.2)

    def victims(self) -> dict[str, list[psutil.Process]]:
        workers = [child for parent in self._stream.process() for child in _children(parent)]
        nodes = [child for worker in workers for child in family(worker)]
        server = self._postgres._process
        return {
            "postgres": [psutil.Process(server.pid)] if server is not None and server.poll() is None else [],
            "intake": self._intake.process(),
            "stream": self._stream.process(),
            "stream worker": workers,
            "node process": nodes,
        }

    def _revive(self) -> None:
        # The server ends with the thread that started it: this one lives as long as the world.
        while not self._ending.wait(0.3):
            try:
                server = self._postgres._process
                if server is None or server.poll() is not None:
                    self._postgres.start(die_with_parent=True)
                self._intake.revive()
                self._stream.revive()
            except Exception as error:
                print(f"not revived, trying again: {error}", file=sys.stderr)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children()
    except psutil.NoSuchProcess:
        return []
