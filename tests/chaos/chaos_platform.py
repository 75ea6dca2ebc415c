"""The whole world: the platform as `bridge up` runs it, Airflow's processes included, and an intake beside it."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from chaos_processes import Kept
from chaos_world import SETTINGS, family, free_port

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system" / "airflow"))

from trial import Trial

PROCESSES = ("postgres", "api-server", "scheduler", "dispatch")


class Platform:
    """A `World`. The platform's own supervisor starts again what is killed of it."""

    # A stream worker is a task: it, what watches it, and its node processes are somewhere below the scheduler.
    kinds: Sequence[str] = (*PROCESSES, "intake", "below the scheduler")

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ending = threading.Event()
        self.environment: dict[str, str] = {}
        self.urls: list[str] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with Trial.running(**SETTINGS) as self._trial:
            port = free_port()
            self.environment = self._trial.environment
            self.urls = [self._trial.url, f"http://127.0.0.1:{port}"]
            log = self._directory / "intake.log"
            self._intake = Kept(self.environment, log, "intake", "--port", str(port))
            reviver = threading.Thread(target=self._revive)
            reviver.start()
            try:
                yield
            finally:
                self._ending.set()
                reviver.join()
                self._intake.end()
                if sys.exc_info()[0] is not None:
                    self._keep_logs()

    def _revive(self) -> None:
        while not self._ending.wait(0.3):
            self._intake.revive()

    def _keep_logs(self) -> None:
        kept = self._directory / "logs"
        kept.mkdir(exist_ok=True)
        for log in (self._trial.state_dir / "logs").glob("*.log"):
            (kept / log.name).write_bytes(log.read_bytes()[-2_000_000:])

    def victims(self) -> dict[str, list[psutil.Process]]:
        found = self._trial.processes()
        victims = {name: [found[name]] for name in PROCESSES if name in found}
        scheduler = found.get("scheduler")
        victims["below the scheduler"] = family(scheduler) if scheduler is not None else []
        victims["intake"] = self._intake.process()
        return victims
