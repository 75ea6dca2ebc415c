"""Steps that a person watches: what is being done, how far it is, how long it took."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class Progress:
    """Prints one line per step. Plain text, no control characters: the same on a terminal and in a log."""

    def __init__(self, stream: TextIO | None = None, *, width: int = 58) -> None:
        self._stream = stream or sys.stdout
        self._width = width
        self._column = 0
        self._began = time.monotonic()

    @contextmanager
    def step(self, title: str) -> Iterator[Progress]:
        """A step: its title now, its seconds when it ends, `failed` when it raises."""
        began = time.monotonic()
        self._write(f"  {title} ")
        try:
            yield self
        except BaseException:
            self._write(" failed\n")
            raise
        self._write(f"{'.' * max(self._width - self._column, 2)} {time.monotonic() - began:5.1f} s\n")

    def note(self, text: str) -> None:
        """A word within the running step (what became ready, what was skipped)."""
        self._write(f"{text} ")

    def say(self, text: str = "") -> None:
        """A line between steps."""
        self._write(f"{text}\n")

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
        self._column = 0 if text.endswith("\n") else self._column + len(text)
