"""Airflow's LocalExecutor, with tasks that outlive their scheduler.

A scheduler that is killed, or that ends because the database went away, leaves its running tasks at work; the next
one takes them over. With Airflow's own executor the first would lose them, and the second would wait for them
before it ends, for as long as a stream worker lives.

- A worker process holds no connection of the scheduler's: a dead scheduler's database session ends with it.
- A worker without a scheduler ends as soon as it has no task (Linux; elsewhere it stays idle).
- A task whose worker was killed is tried again at once, and its slot is free.
- A scheduler that is told to stop ends its tasks: they are tried again by the next one.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil
from airflow.executors.local_executor import LocalExecutor, _run_worker
from airflow.models.taskinstance import TaskInstance
from airflow.utils.net import get_hostname
from airflow.utils.state import TaskInstanceState

from continuitybridge.airflow.processes import WORKER, be_known_as, runs_tasks

STOP_WAIT_S = 8.0
"""How long tasks may take to end when the scheduler is stopped. Airflow kills a task 5 s after asking it."""

_LAST_WORDS_S = 5

_ORPHANED = signal.SIGUSR1
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class _TakenBy:
    """In place of a task's state: the worker that began with it."""

    pid: int


class LastingExecutor(LocalExecutor):
    """See the module."""

    def start(self) -> None:
        # The workers of tasks of former schedulers.
        self._adopted: dict[Any, psutil.Process] = {}
        self._taken: dict[int, Any] = {}
        super().start()

    def try_adopt_task_instances(self, tis: Sequence[TaskInstance]) -> Sequence[TaskInstance]:
        """Take over those that run on this machine under a worker that lives; the others are run again."""
        return [ti for ti in tis if not self._adopt(ti)]

    def sync(self) -> None:
        dead = [process for process in self.workers.values() if not process.is_alive()]
        self._read_results()
        for process in dead:
            self._give_up(process)
        self._check_workers()  # type: ignore[no-untyped-call]
        for key, worker in list(self._adopted.items()):
            if not _runs(worker):
                # It has told the api-server how the task ended, if it could: Airflow believes that first.
                del self._adopted[key]
                self.fail(key, f"the worker {worker.pid} has ended")

    def end(self) -> None:
        if isinstance(sys.exc_info()[1], Exception):
            # Leaving in an orderly way would wait for the tasks.
            self._begin_anew("the scheduler is in trouble")
        for _ in self.workers:
            self.activity_queue.put(None)
        asked = time.monotonic()
        while (left := list(self._left())) and time.monotonic() - asked < STOP_WAIT_S:
            for process in left:
                # Passed on to the task, if it has one by now.
                with suppress(psutil.NoSuchProcess):
                    process.terminate()
            psutil.wait_procs(left, timeout=1.0)
        for process in self._left():
            with suppress(psutil.NoSuchProcess):
                for each in (*process.children(recursive=True), process):
                    each.kill()
        super().end()

    def _read_results(self) -> None:
        while not self.result_queue.empty():
            key, state, error = self.result_queue.get()
            if isinstance(state, _TakenBy):
                self._taken[state.pid] = key
            else:
                self._taken = {pid: taken for pid, taken in self._taken.items() if taken != key}
                self.change_state(key, state, error)

    def _give_up(self, process: multiprocessing.Process) -> None:
        """A worker ended by itself, or was killed."""
        key = self._taken.pop(process.pid or 0, None)
        if key is not None:
            self.fail(key, f"the worker {process.pid} was killed")
        elif process.exitcode is not None and process.exitcode < 0:
            # It may have died with the queue's lock in hand: no worker would ever get a task again.
            self._begin_anew(f"idle worker {process.pid} was killed")

    def _begin_anew(self, why: str) -> None:
        """End this scheduler as if it were killed: its tasks go on."""
        self.log.error("%s: the scheduler ends, its tasks go on", why)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    def _left(self) -> Iterator[psutil.Process]:
        """Workers that still are, one's own and those taken over."""
        for worker in self.workers.values():
            with suppress(psutil.NoSuchProcess):
                if worker.is_alive():
                    yield psutil.Process(worker.pid)
        yield from (worker for worker in self._adopted.values() if _runs(worker))

    def _adopt(self, ti: TaskInstance) -> bool:
        if ti.state != TaskInstanceState.RUNNING or ti.hostname != get_hostname() or not ti.pid:  # type: ignore[no-untyped-call]
            return False
        try:
            worker = psutil.Process(ti.pid).parent()
            if worker is None or not runs_tasks(worker):
                return False
        except psutil.NoSuchProcess:
            return False
        self._adopted[ti.key] = worker
        self.running.add(ti.key)
        return True

    def _spawn_worker(self) -> None:
        process = multiprocessing.Process(
            target=_work,
            args=(os.getpid(), os.getppid()),
            kwargs={
                "logger_name": self.log.name,
                "input": self.activity_queue,
                "output": self.result_queue,
                "unread_messages": self._unread_messages,
                "team_conf": self.conf,
            },
        )
        process.start()
        assert process.pid is not None  # noqa: S101  (it is started)
        self.workers[process.pid] = process


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _work(scheduler: int, above: int, *, input: Any, output: Any, **given: Any) -> None:
    """The worker's process. `above` is the scheduler's parent, to which it belongs when the scheduler is dead."""
    _leave_connections_alone()
    tasks: Any = _Tasks(input, output, scheduler, above)
    _run_worker(input=tasks, output=output, **given)


def _leave_connections_alone() -> None:
    """Let go of the scheduler's connections (to the database) without a word on them: their sockets are shared
    with it. Something else stands in their place, for whoever believes to hold a connection and closes it."""
    if not os.path.isdir("/proc/self/fd"):
        return
    nothing = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as connection:
                connected = connection.type == socket.SOCK_STREAM and bool(connection.getpeername())
            if connected:
                os.dup2(nothing, descriptor)
    os.close(nothing)


class _Tasks:
    """The scheduler's queue, seen by a worker, for as long as there is a scheduler to fill it."""

    def __init__(self, queue: Any, results: Any, scheduler: int, above: int) -> None:
        self._queue = queue
        self._results = results
        self._scheduler = scheduler
        self._above = above
        self._idle = False
        signal.signal(_ORPHANED, self._orphaned)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(_ORPHANED), 0, 0, 0)

    def get(self) -> Any:
        """The next task; None when there will be none."""
        be_known_as(WORKER)
        self._idle = True
        if os.getppid() != self._scheduler:
            return None
        try:
            task = self._queue.get()
        finally:
            self._idle = False
        if task is not None:
            be_known_as(WORKER)
            self._results.put((task.key, _TakenBy(os.getpid()), None))
        return task

    def _orphaned(self, *_: object) -> None:
        if self._idle:
            os._exit(0)
        # Nobody reads the scheduler's output any more, and writing to it would fail. The task's log is another.
        nothing = os.open(os.devnull, os.O_WRONLY)
        for output in (1, 2):
            os.dup2(nothing, output)
        os.close(nothing)
        if os.getppid() not in (self._scheduler, self._above):
            # The supervisor of all is dead too: nobody will take this task over. It is told to end, and this
            # process does not wait for an api-server to tell.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_LAST_WORDS_S)
            os.kill(os.getpid(), signal.SIGTERM)
