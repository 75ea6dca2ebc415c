"""What a worker says of itself: a file that it writes anew every few seconds.

`<state_dir>/run/stream/<pid>.json`: `owner`, `pid`, `at` (when it was written), `since`, `listening` (whether
notifications arrive), `under_way` (units that are held), `lanes` (node processes), `counts` (units since the start
by what became of them, and `claimed`). A file whose `at` is older than `STALE_S` is of a worker that is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import psutil

from continuitybridge.settings import Settings
from continuitybridge.stream.worker import StreamWorker

EVERY_S = 5.0
STALE_S = 20.0


def directory(settings: Settings) -> Path:
    """Where the files stand."""
    return settings.state_dir / "run" / "stream"


def workers(settings: Settings) -> list[dict[str, Any]]:
    """What the stream workers of this machine said last, oldest worker first; those that are gone are left out."""
    found = []
    for file in directory(settings).glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            told = orjson.loads(file.read_bytes())
            age = datetime.now(UTC) - datetime.fromisoformat(told["at"])
            if age.total_seconds() < STALE_S and psutil.pid_exists(told["pid"]):
                found.append(told)
    return sorted(found, key=lambda told: str(told["since"]))


async def report(worker: StreamWorker, settings: Settings) -> None:
    """Write the file until cancelled; it is removed then."""
    file = directory(settings) / f"{os.getpid()}.json"
    since = datetime.now(UTC)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        while True:
            with contextlib.suppress(OSError):
                _write(file, worker, since)
            if worker.listening:
                await asyncio.sleep(EVERY_S)
                continue
            # Whoever starts the platform waits for a worker that says so.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await worker.wait_listening()
    finally:
        file.unlink(missing_ok=True)


def _write(file: Path, worker: StreamWorker, since: datetime) -> None:
    told = {
        "owner": worker.owner,
        "pid": os.getpid(),
        "since": since,
        "at": datetime.now(UTC),
        "listening": worker.listening,
        "under_way": worker.under_way,
        "lanes": worker.lanes,
        "counts": dict(worker.counts),
    }
    fresh = file.with_suffix(".new")
    fresh.write_bytes(orjson.dumps(told) + b"\n")
    fresh.replace(file)
