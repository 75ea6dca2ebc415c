"""The log of a task that runs for a long time: bounded in lines, removed after some days."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BURST_LINES = 500
LINES_PER_S = 0.2
"""So a generation of half an hour writes at most 860 lines, and as many warnings."""

KEPT_S = 7 * 86_400

_DECIDED = "bridge_bounded"


@dataclass
class _Allowance:
    """A bucket of lines that fills at `LINES_PER_S`."""

    left: float = BURST_LINES
    at: float = 0.0
    omitted: int = 0

    def take(self, now: float) -> bool:
        self.left = min(float(BURST_LINES), self.left + (now - self.at) * LINES_PER_S) if self.at else self.left
        self.at = now
        if self.left < 1.0:
            self.omitted += 1
            return False
        self.left -= 1.0
        return True


class BoundedLines(logging.Filter):
    """Lets `BURST_LINES` through at once and `LINES_PER_S` after that; warnings and errors have an allowance of
    their own, which chatter cannot use up. What was left out is counted in the next line that goes through."""

    def __init__(self) -> None:
        super().__init__()
        self._chatter, self._warnings = _Allowance(), _Allowance()

    def filter(self, record: logging.LogRecord) -> bool:
        # Each handler asks.
        decided: bool | None = getattr(record, _DECIDED, None)
        if decided is None:
            decided = self._decide(record)
            setattr(record, _DECIDED, decided)
        return decided

    def _decide(self, record: logging.LogRecord) -> bool:
        allowance = self._warnings if record.levelno >= logging.WARNING else self._chatter
        if not allowance.take(time.monotonic()):
            return False
        if allowance.omitted:
            record.msg, record.args = f"{record.getMessage()} ({allowance.omitted} lines before it left out)", ()
            allowance.omitted = 0
        return True


@contextmanager
def bounded_lines() -> Iterator[None]:
    """Whatever is logged meanwhile in this process is bounded as `BoundedLines` says."""
    bound = BoundedLines()
    handlers = list(logging.getLogger().handlers)
    for handler in handlers:
        handler.addFilter(bound)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(bound)


def remove_old_logs(base: Path, dag_id: str) -> int:
    """Remove the log directories of this DAG's runs that nobody has written to for `KEPT_S`; returns how many.
    Each machine that runs the DAG's tasks holds logs of its own, so a task of it calls this."""
    removed = 0
    for directory in (base / f"dag_id={dag_id}").glob("run_id=*"):
        try:
            if time.time() - max(each.stat().st_mtime for each in (directory, *directory.rglob("*"))) < KEPT_S:
                continue
        except FileNotFoundError:
            # Another worker is at it.
            continue
        shutil.rmtree(directory, ignore_errors=True)
        removed += 1
    return removed
