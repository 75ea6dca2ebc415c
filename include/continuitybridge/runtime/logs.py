"""Reading the supervised processes' log files."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from continuitybridge.errors import ConfigurationError
from continuitybridge.runtime.programs import programs
from continuitybridge.runtime.supervisor import Supervisor, tail
from continuitybridge.settings import Settings

_POLL_S = 0.3


def read(settings: Settings, names: Sequence[str], lines: int, *, follow: bool) -> Iterator[str]:
    """The last lines of each log, under a heading where there are several; then, with `follow`, new lines as
    they are written (rotation included), until the caller stops. Raises `ConfigurationError` for a name."""
    supervisor = Supervisor(settings)
    known = [*(program.name for program in programs(settings)), "supervisord", "provision"]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigurationError(f"no process {unknown[0]!r}; valid: {', '.join(known)}")
    files = {name: supervisor.log_of(name) for name in names or known}
    several = len(files) > 1
    followed = {name: _Followed(path) for name, path in files.items()}
    for name, path in files.items():
        text = tail(path, lines)
        if several and text:
            yield f"==> {name} ({path})"
        if text:
            yield text
    while follow:
        for name, file in followed.items():
            for line in file.new_lines():
                yield f"{name}: {line}" if several else line
        time.sleep(_POLL_S)


class _Followed:
    """Where reading stands in one file; a file that became another one is read from its start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._offset = self._now()
        self._rest = b""

    def _now(self) -> tuple[int, int]:
        try:
            status = self._path.stat()
            return status.st_ino, status.st_size
        except FileNotFoundError:
            return 0, 0

    def new_lines(self) -> list[str]:
        inode, size = self._now()
        if inode != self._inode or size < self._offset:
            self._inode, self._offset = inode, 0
        if size == self._offset:
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = self._rest + file.read(size - self._offset)
        self._offset = size
        *whole, self._rest = data.split(b"\n")
        return [line.decode(errors="replace") for line in whole]
