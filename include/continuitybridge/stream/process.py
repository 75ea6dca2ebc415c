"""Stream workers as processes: one in this process, or several under it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable

from uuid6 import uuid7

from continuitybridge.engine.runner import Runner
from continuitybridge.errors import Unavailable
from continuitybridge.inbox.presence import PREFIX
from continuitybridge.settings import get_settings
from continuitybridge.stream import health
from continuitybridge.stream.access import Access, DirectAccess
from continuitybridge.stream.worker import StreamWorker

IDLE_PROCESSES = 4
"""Node processes of closed lanes that are kept for a while."""
RESTART_S = (0.0, 0.5, 1.0, 2.0, 5.0)
"""Waits before a worker that ended is started again; the last repeats."""
STEADY_S = 30.0
"""A worker that lived for so long is started again at once."""
_PR_SET_PDEATHSIG = 1
_ENDING = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger("continuitybridge.stream")


def owner_here() -> str:
    """A name for a worker that no other has."""
    return f"{PREFIX}{socket.gethostname()[:24]}/{os.getpid()}/{uuid7().hex[-12:]}"


def serve(
    access: Callable[[], Access] = DirectAccess,
    *,
    owner: str | None = None,
    life_s: float | None = None,
    hurry_s: float | None = None,
    relieved: Callable[[], bool] = lambda: True,
) -> dict[str, int]:
    """Be a stream worker until SIGTERM or SIGINT, or for `life_s` seconds and until it is `relieved` (asked about
    each second, in a thread); then finish what is under way, for at most `BRIDGE_STREAM_DRAIN_S` (and for
    `hurry_s` after a signal). Gives its counts of units by what became of them.

    Call it while the process has one thread: its node processes start in milliseconds then. `access` is called in
    the worker's event loop.
    """
    with Runner(idle_children=IDLE_PROCESSES) as runner:
        runner.warm()
        return asyncio.run(_serve(runner, access, owner or owner_here(), life_s, hurry_s, relieved))


async def _serve(
    runner: Runner,
    access: Callable[[], Access],
    owner: str,
    life_s: float | None,
    hurry_s: float | None,
    relieved: Callable[[], bool],
) -> dict[str, int]:
    settings = get_settings()
    worker = StreamWorker(owner, access(), runner, settings)
    loop = asyncio.get_running_loop()

    def told() -> None:
        worker.stop()
        if hurry_s is not None:
            loop.call_later(hurry_s, worker.stop)

    for number in _ENDING:
        loop.add_signal_handler(number, told)
    beside = [asyncio.create_task(health.report(worker, settings))]
    if life_s is not None:
        beside.append(asyncio.create_task(_leave(worker, life_s, relieved)))
    # What is there now stays: a collection need not look through it each time.
    gc.freeze()
    log.info("%s works", owner)
    try:
        await worker.run()
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        log.info("%s stopped: %s", owner, dict(worker.counts))
    return {what: count for what, count in sorted(worker.counts.items()) if count}


async def _leave(worker: StreamWorker, life_s: float, relieved: Callable[[], bool]) -> None:
    await asyncio.sleep(life_s)
    while True:
        # Who cannot know stays.
        with contextlib.suppress(Unavailable):
            if await asyncio.to_thread(relieved):
                return worker.stop()
        await asyncio.sleep(1.0)


def serve_several(workers: int, life_s: float | None = None) -> None:
    """Keep so many workers at work, each a process of its own that ends with this one, until SIGTERM or SIGINT (or
    until each has worked for `life_s`). A worker that dies is started again."""
    _Family(workers, life_s).run()


class _Family:
    def __init__(self, workers: int, life_s: float | None) -> None:
        self._life_s = life_s
        self._born: dict[int, float] = {}
        self._deaths = 0
        self._wanted = workers
        self._stopping = False

    def run(self) -> None:
        for number in _ENDING:
            signal.signal(number, self._stop)
        while len(self._born) < self._wanted:
            self._start()
        while self._born:
            try:
                pid, status = os.wait()
            except InterruptedError:
                continue
            born = self._born.pop(pid, None)
            if born is None or self._stopping or status == 0:
                continue
            self._deaths = 0 if time.monotonic() - born > STEADY_S else self._deaths + 1
            log.error("worker %d ended (%s), another takes its place", pid, _how(status))
            time.sleep(RESTART_S[min(self._deaths, len(RESTART_S) - 1)])
            if not self._stopping:
                self._start()

    def _stop(self, *_: object) -> None:
        self._stopping = True
        for pid in self._born:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _start(self) -> None:
        parent = os.getpid()
        asked = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        pid = os.fork()
        if pid:
            self._born[pid] = time.monotonic()
            signal.pthread_sigmask(signal.SIG_SETMASK, asked)
            return
        status = 1
        try:
            # What it is told from now on is not for the one who keeps them all.
            for number in _ENDING:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, asked)
            die_with_parent(parent)
            serve(life_s=self._life_s)
            status = 0
        except Exception:
            log.exception("the worker failed")
        finally:
            os._exit(status)


def die_with_parent(parent: int) -> None:
    """Have this process end (SIGTERM) when its parent does, or at once if it has by now."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit status {os.waitstatus_to_exitcode(status)}"
