"""The clean parent of node processes: forks them, watches over them, reaps them, and dies with its owner.

A runner's process may hold threads, sockets and secrets, and must neither be forked for each plan nor watch a
clock while its caller works. So it starts one nursery: a single-threaded process with an empty environment and
no inherited descriptors, which

- forks a node process on request (milliseconds: what the nodes import is imported here, once),
- kills one that has been busy with one message in one node for longer than its limit,
- writes an obituary for each one that ended: how, why, and where it stood,
- ends, and all node processes with it, as soon as its owner's process ends, however that ends.

A node process that loses its nursery is killed by the kernel (`PR_SET_PDEATHSIG`).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import marshal
import mmap
import os
import select
import signal
import socket
import sys
import traceback
from dataclasses import dataclass, field
from time import clock_gettime, monotonic, monotonic_ns
from typing import Any, NoReturn

from continuitybridge.engine.progress import BUILDING, CHILD_ID_AT, CHILD_ID_BYTES, PROGRESS_BYTES

MAX_REQUEST_BYTES = 64 * 1024
IDLE_FACTOR = 4
"""A node that works not even half of its time limit is stopped only after so many times the limit."""
STDERR_BYTES = 2048

_KEPT_ENVIRONMENT = frozenset(
    {
        "PATH", "LANG", "TZ", "TZDIR", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
        "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy",
        "no_proxy", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONHASHSEED",
        "LD_LIBRARY_PATH", "VIRTUAL_ENV",
    }
)  # fmt: skip

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15


def clean_environment() -> dict[str, str]:
    """What node processes get of the environment: nothing that could be a secret, for programs can read it."""
    return {
        name: value for name, value in os.environ.items() if name in _KEPT_ENVIRONMENT or name.startswith("LC_")
    }


@dataclass(frozen=True)
class Obituary:
    """How a node process ended. `message` is the sequence number it worked on, None when it was idle;
    `node` the node's index in the plan; `child` the id of the child message, "" for the message itself."""

    cause: str
    """`time` (killed by the watchdog), `killed` (on request of the runner), `ended` (by itself, see `signal` and
    `status`), `not-forked` (see `text`), `lost` (the nursery itself ended)."""
    message: int | None = None
    building: bool = False
    node: int = 0
    busy_s: float = 0.0
    child: str = ""
    signal: int = 0
    status: int = 0
    memory_bytes: int = 0
    """The largest resident size it ever had."""
    text: str = ""

    def pack(self) -> bytes:
        return marshal.dumps({name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def unpack(cls, data: bytes) -> Obituary:
        return cls(**marshal.loads(data)) if data else cls("lost")  # noqa: S302  (own bytes)


@dataclass
class _Charge:
    """A living node process, as the nursery sees it."""

    pid: int
    obituary: int
    errors: int
    progress: mmap.mmap
    time_limit_s: float
    build_limit_s: float
    cause: str = "ended"
    seen: tuple[int, int, int] = (0, 0, 0)
    """The progress words at the last look, and the processor time the process had taken when they were new."""
    spent_before_s: float = 0.0
    words: memoryview = field(init=False)

    def __post_init__(self) -> None:
        self.words = memoryview(self.progress).cast("Q")


class _Nursery:
    def __init__(self, control: socket.socket, owner: int) -> None:
        self.control = control
        self.owner = owner
        self.charges: dict[int, _Charge] = {}
        self.waker, self.wakened = os.pipe()
        os.set_blocking(self.wakened, False)
        os.set_blocking(self.waker, False)
        try:
            self.owner_fd: int | None = os.pidfd_open(owner)
        except OSError:  # an old kernel, or a sandbox without the call: ask for the parent now and then
            self.owner_fd = None

    def serve(self) -> None:
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(self.waker, select.POLLIN)
        if self.owner_fd is not None:
            poll.register(self.owner_fd, select.POLLIN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wakened, warn_on_full_buffer=False)
        while os.getppid() == self.owner:
            for fd, _ in poll.poll(self.tick_ms()):
                if fd == self.owner_fd:
                    return
                if fd == self.waker:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self.waker, 4096)
                elif not self.obey():
                    return
            self.reap()
            self.watch()

    def tick_ms(self) -> int | None:
        """How long to sleep: a fraction of the shortest limit while there is somebody to watch."""
        if not self.charges:
            return None if self.owner_fd is not None else 1000
        shortest = min(charge.time_limit_s for charge in self.charges.values())
        return round(1000 * min(0.5, max(0.01, shortest / 10)))

    def obey(self) -> bool:
        """Carry out one request; False when the runner has hung up."""
        data, fds, _, _ = socket.recv_fds(self.control, MAX_REQUEST_BYTES, 2)
        if not data:
            return False
        request = marshal.loads(data)  # noqa: S302  (from our owner)
        if request["do"] == "fork":
            self.fork(request, *fds)
        elif request["do"] == "kill":
            charge = self.charges.get(request["number"])
            if charge is not None:
                self.kill(charge, "killed")
        elif request["do"] == "warm":
            _import_nodes(request["types"])
        return True

    def fork(self, request: dict[str, Any], data_fd: int, obituary_fd: int) -> None:
        _import_nodes(request["types"])
        opened = [data_fd, obituary_fd]
        try:
            progress = mmap.mmap(-1, PROGRESS_BYTES)
            errors, child_errors = os.pipe()
            opened += [errors, child_errors]
            gc.freeze()
            nursery = os.getpid()
            pid = os.fork()
        except OSError as error:
            os.write(obituary_fd, Obituary("not-forked", text=str(error)).pack())
            for fd in opened:
                os.close(fd)
            return
        if pid == 0:
            _become_node_process(request, nursery, data_fd, child_errors, progress)
        os.close(data_fd)
        os.close(child_errors)
        os.set_blocking(errors, False)
        self.charges[request["number"]] = _Charge(
            pid, obituary_fd, errors, progress, request["time_limit_s"], request["build_limit_s"]
        )

    def watch(self) -> None:
        for charge in self.charges.values():
            busy = (charge.words[0], charge.words[1], charge.words[2])
            message, _, since = busy
            if not message or not since or charge.cause != "ended":
                continue
            spent_s = _processor_time_s(charge.pid)
            if busy != charge.seen:
                charge.seen, charge.spent_before_s = busy, spent_s
                continue
            limit_s = charge.build_limit_s if message == BUILDING else charge.time_limit_s
            busy_s = (monotonic_ns() - since) / 1e9
            if busy_s < limit_s:
                continue
            # On a machine that gives the process no time, the time that passes is not the node's doing.
            worked = spent_s - charge.spent_before_s >= limit_s / 2
            # The words are written one by one: only what still stands there is what it was.
            still = (charge.words[0], charge.words[1], charge.words[2]) == busy
            if still and (worked or busy_s > IDLE_FACTOR * limit_s):
                self.kill(charge, "time")

    def kill(self, charge: _Charge, cause: str) -> None:
        charge.cause = cause
        os.kill(charge.pid, signal.SIGKILL)

    def reap(self) -> None:
        for number, charge in list(self.charges.items()):
            pid, status, usage = os.wait4(charge.pid, os.WNOHANG)
            if pid:
                del self.charges[number]
                self.report(charge, status, usage.ru_maxrss * 1024)

    def report(self, charge: _Charge, status: int, memory_bytes: int) -> None:
        message, node, since, length = charge.words[0], charge.words[1], charge.words[2], charge.words[3]
        child = charge.progress[CHILD_ID_AT : CHILD_ID_AT + min(length, CHILD_ID_BYTES)]
        text = b""
        with contextlib.suppress(BlockingIOError):
            text = os.read(charge.errors, 64 * 1024)[-STDERR_BYTES:]
        obituary = Obituary(
            cause=charge.cause,
            message=None if message in (0, BUILDING) else message - 1,
            building=message == BUILDING,
            node=node,
            busy_s=(monotonic_ns() - since) / 1e9 if message else 0.0,
            child=child.decode(errors="replace"),
            signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
            status=os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0,
            memory_bytes=memory_bytes,
            text=text.decode(errors="replace"),
        )
        with contextlib.suppress(OSError):
            os.write(charge.obituary, obituary.pack())
        charge.words.release()
        charge.progress.close()
        os.close(charge.obituary)
        os.close(charge.errors)

    def end(self) -> None:
        for charge in self.charges.values():
            with contextlib.suppress(OSError):
                os.kill(charge.pid, signal.SIGKILL)
        until = monotonic() + 1
        while self.charges and monotonic() < until:
            with contextlib.suppress(ChildProcessError):
                self.reap()
            select.select([], [], [], 0.002)


def serve(control_fd: int, owner: int) -> NoReturn:
    """Be the nursery of process `owner`, asked over the connected socket `control_fd`. Never returns."""
    code = 0
    control = socket.socket(fileno=control_fd)
    try:
        # Its life is bound to its owner's: a signal to the whole process group must not take the node
        # processes from an owner that finishes its work first.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        set_process_name("bridge-nursery")
        nursery = _Nursery(control, owner)
        try:
            nursery.serve()
        finally:
            nursery.end()
    except BaseException:
        code = 70
        with contextlib.suppress(OSError):
            control.send(traceback.format_exc()[-8192:].encode())
    os._exit(code)


def serve_forked(control_fd: int, owner: int) -> NoReturn:
    """`serve` in a fork of the owner: first leave behind what it had."""
    try:
        gc.disable()
        gc.freeze()  # nothing of the owner's is ever finalized here
        sys.settrace(None)
        sys.setprofile(None)
        signal.set_wakeup_fd(-1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        logging.disable(logging.CRITICAL)  # the owner's handlers write to what is closed here
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}:
            if signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN, None):
                signal.signal(number, signal.SIG_DFL)
        _close_all_but(control_fd)
        kept = clean_environment()
        os.environ.clear()
        os.environ.update(kept)
        gc.enable()
        serve(control_fd, owner)
    finally:
        os._exit(70)


def _close_all_but(*kept: int) -> None:
    """Close every descriptor but `kept`; 0, 1 and 2 lead to /dev/null unless kept."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        if fd not in kept:
            os.dup2(null, fd)
    low = 3
    for fd in sorted(fd for fd in kept if fd > 2):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, max(low, os.sysconf("SC_OPEN_MAX")))


def _processor_time_s(pid: int) -> float:
    """What the process and its threads have taken of the processors, in seconds."""
    try:
        return clock_gettime(
            (~pid << 3) | 2
        )  # the kernel's number of a process's clock; see clock_getcpuclockid(3)
    except OSError:
        return 0.0


def set_process_name(name: str) -> None:
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def _import_nodes(types: list[str]) -> None:
    from continuitybridge.engine import child  # noqa: F401  (what every node process needs)
    from continuitybridge.nodes import registry

    for name in types:
        with contextlib.suppress(Exception):  # building the plan says it better
            registry.get(name)


def _become_node_process(
    request: dict[str, Any], nursery: int, data_fd: int, errors_fd: int, progress: mmap.mmap
) -> NoReturn:
    try:
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != nursery:
            os._exit(0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.set_blocking(errors_fd, False)  # who writes more than the pipe holds must not wait for a reader
        os.dup2(errors_fd, 2)
        _close_all_but(2, data_fd)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (for the process's life)
        sys.stderr = open(2, "w", buffering=1, errors="replace", closefd=False)  # noqa: SIM115
        set_process_name("bridge-nodes")
        from continuitybridge.engine import child

        child.serve(data_fd, progress, request["memory_limit_bytes"])
    except BaseException:
        with contextlib.suppress(OSError):
            os.write(2, traceback.format_exc()[-STDERR_BYTES:].encode(errors="replace"))
        os._exit(70)
    os._exit(0)


def main() -> None:
    """`python -c "…main()" <control fd> <owner pid>`: a nursery in an interpreter of its own."""
    _import_nodes([])
    serve(int(sys.argv[1]), int(sys.argv[2]))
