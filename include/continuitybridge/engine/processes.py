"""The pool of node processes: the nursery that forks them, and idle ones that wait for their plan's next run."""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Hashable
from time import monotonic
from typing import Any, Literal

from continuitybridge.engine import frames
from continuitybridge.engine.limits import Limits
from continuitybridge.engine.nursery import Obituary, clean_environment, serve_forked
from continuitybridge.errors import Unavailable
from continuitybridge.flows.plan import Plan

MIN_BUILD_LIMIT_S = 30.0
IDLE_CHILDREN = 16
BUSY_MESSAGES = 32
BUSY_PAUSE_S = 0.0005
"""With more than `BUSY_MESSAGES` under way nobody waits for one answer: who listens to a process lets some come
together for so long rather than be woken for each."""
_HANG_UP_S = 2.0

Start = Literal["auto", "fork", "exec"]
"""How the nursery comes up: `fork` of this process (milliseconds; what is imported is there already), `exec` of a
new interpreter (a third of a second; safe whatever threads this process has), `auto`: fork while this process has
one thread, else exec."""


class Pool:
    """Node processes, each for one built plan of one organization and environment. The `idle_children` used last
    are kept for the next run of theirs.

    May be used from several threads: who takes a process has it alone. After a fork the copy starts afresh; the
    node processes stay the original's.
    """

    def __init__(self, start: Start, idle_children: int) -> None:
        self.start: Start = start
        self._idle_children = idle_children
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._nursery: _NurseryHandle | None = None
        self._idle: OrderedDict[int, NodeProcess] = OrderedDict()
        self._number = 0

    def warm(self, plan: Plan | None) -> None:
        """Start the nursery, and let it import what the plan's nodes need. Returns at once."""
        types = sorted({node.type for node in plan.nodes.values()}) if plan is not None else []
        with self._lock:
            self._ready_nursery().tell({"do": "warm", "types": types})

    def close(self) -> None:
        """End all idle node processes and the nursery, and with it those that are at work."""
        with self._lock:
            idle, self._idle = list(self._idle.values()), OrderedDict()
            nursery, self._nursery = self._nursery, None
        if self._pid != os.getpid():
            return
        for process in idle:
            process.hang_up()
        for process in idle:
            process.await_end(_HANG_UP_S)
        if nursery is not None:
            nursery.close()

    def take(self, key: Hashable, plan: Plan, limits: Limits) -> NodeProcess:
        """An idle process of `key`, or a new one that has yet to be told its plan (`fresh`). Raises
        `Unavailable`."""
        with self._lock:
            self._after_fork()
            for number, process in reversed(self._idle.items()):
                if process.key == key:
                    del self._idle[number]
                    if process.alive():
                        return process
                    process.release()
                    break
            self._number += 1
            try:
                return self._fork(self._number, key, plan, limits)
            except OSError as error:  # no more descriptors, processes or memory
                raise Unavailable(f"no node process can be started: {error.strerror}") from None

    def _fork(self, number: int, key: Hashable, plan: Plan, limits: Limits) -> NodeProcess:
        ours, theirs = socket.socketpair()
        try:
            obituary, obituary_write = os.pipe()
        except OSError:
            ours.close()
            theirs.close()
            raise
        request = {
            "do": "fork",
            "number": number,
            "types": sorted({node.type for node in plan.nodes.values()}),
            "time_limit_s": limits.node_time_limit_s,
            "build_limit_s": max(MIN_BUILD_LIMIT_S, limits.node_time_limit_s),
            "memory_limit_bytes": limits.node_memory_limit_bytes,
        }
        process = NodeProcess(number, key, ours, obituary)
        try:
            for attempt in range(2):
                nursery = self._ready_nursery()
                try:
                    nursery.tell(request, theirs.fileno(), obituary_write)
                    break
                except (ConnectionError, TimeoutError) as error:
                    self._nursery = None
                    reason = nursery.close()
                    if attempt:
                        raise Unavailable(f"no node process can be started: {reason or error}") from None
        except BaseException:
            process.release()
            raise
        finally:
            theirs.close()
            os.close(obituary_write)
        return process

    def _ready_nursery(self) -> _NurseryHandle:
        self._after_fork()
        if self._nursery is None or not self._nursery.alive():
            self._nursery = _NurseryHandle(self.start)
        return self._nursery

    def _after_fork(self) -> None:
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        for process in self._idle.values():
            process.release()
        self._idle.clear()
        if self._nursery is not None:
            self._nursery.abandon()
            self._nursery = None

    def give_back(self, process: NodeProcess) -> None:
        """Keep a process with nothing under way for the next run."""
        surplus: list[NodeProcess] = []
        with self._lock:
            if self._nursery is None or self._pid != os.getpid():
                surplus.append(process)
            else:
                self._idle[process.number] = process
                while len(self._idle) > self._idle_children:
                    surplus.append(self._idle.popitem(last=False)[1])
        for former in surplus:
            former.hang_up()
            former.release()

    def kill(self, process: NodeProcess) -> None:
        """End a process whatever it does."""
        with self._lock:
            if self._nursery is not None and self._pid == os.getpid():
                with contextlib.suppress(OSError):
                    self._nursery.tell({"do": "kill", "number": process.number})
        process.release()


class _NurseryHandle:
    """The nursery, as its owner holds it."""

    def __init__(self, start: Start) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(10)
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        if start == "fork" or (start == "auto" and _single_threaded()):
            self._fork(theirs)
        else:
            self._exec(theirs)
        theirs.close()

    def _fork(self, theirs: socket.socket) -> None:
        owner = os.getpid()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            serve_forked(theirs.fileno(), owner)
        self._pid = pid

    def _exec(self, theirs: socket.socket) -> None:
        environment = clean_environment()
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(  # noqa: S603  (this interpreter, our own code)
            [
                sys.executable,
                "-P",
                "-c",
                "from continuitybridge.engine.nursery import main; main()",
                str(theirs.fileno()),
                str(os.getpid()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            pass_fds=(theirs.fileno(),),
        )
        self._pid = self._process.pid

    def tell(self, request: dict[str, Any], *fds: int) -> None:
        socket.send_fds(self._control, [marshal.dumps(request)], fds)

    def alive(self) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        try:
            return os.waitpid(self._pid, os.WNOHANG) == (0, 0)
        except ChildProcessError:
            return False

    def close(self) -> str:
        """End it; what it had to say of its own failure, if anything."""
        said = b""
        with contextlib.suppress(OSError):
            self._control.settimeout(0)
            said = self._control.recv(16 * 1024)
        self._control.close()
        until = monotonic() + _HANG_UP_S
        while self.alive():
            if monotonic() > until:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGKILL)
            time.sleep(0.001)
        return said.decode(errors="replace").strip().rpartition("\n")[2]

    def abandon(self) -> None:
        """Forget it, in a fork of its owner."""
        self._control.close()
        if self._process is not None:
            self._process.returncode = 0  # not ours to wait for


def _single_threaded() -> bool:
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return threading.active_count() == 1


class NodeProcess:
    """A node process, as its runner holds it. What the reader of its frames learns of it stands in `ready`
    (built), `calls_outside` and `condition` (`frames.FIT`, `WORN` or `ENDS`); what its session has under way in
    it, by sequence number, in `jobs`; `alone` says that nothing may join what is."""

    def __init__(self, number: int, key: Hashable, sock: socket.socket, obituary: int) -> None:
        self.number = number
        self.key = key
        self.socket = sock
        self.obituary = obituary
        self.fresh = True
        self.condition = frames.FIT
        self.jobs: dict[int, Any] = {}
        self.bytes_under_way = 0
        self.alone = False
        self.ready = False
        self.calls_outside = False
        self.reader = frames.FrameReader()
        self.unsent = bytearray()
        sock.setblocking(False)

    @property
    def busy(self) -> bool:
        """Whether so much is under way that nobody waits for one outcome."""
        return len(self.jobs) > BUSY_MESSAGES

    def send(self, data: bytes) -> None:
        """Send what can be sent at once; the rest is `unsent`, for `flush`."""
        if not self.unsent:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                sent = self.socket.send(data)
                if sent == len(data):
                    return
                data = data[sent:]
        self.unsent += data

    def flush(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            del self.unsent[: self.socket.send(self.unsent)]

    def receive(self) -> bytes | None:
        """What is there to read, None when the process has ended."""
        try:
            return self.socket.recv(frames.READ_BYTES) or None
        except BlockingIOError:
            return b""
        except ConnectionError:
            return None

    def wait(self) -> bytes | None:
        """Wait until something can be read or written, and do; as `receive`."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN | select.POLLOUT if self.unsent else select.POLLIN)
        for _, event in poll.poll():
            if event & select.POLLOUT:
                self.flush()
            if event & ~select.POLLOUT:
                return self.receive()
        return b""

    def alive(self) -> bool:
        """Whether it still holds its end. It has nothing to say between two runs."""
        try:
            self.socket.recv(1, socket.MSG_PEEK)
            return False  # the end, or a late word from a call that was given up
        except BlockingIOError:
            return True
        except OSError:
            return False

    def read_obituary(self) -> Obituary:
        """Wait for what the nursery says of its end."""
        data = b""
        while chunk := os.read(self.obituary, 65536):
            data += chunk
        return Obituary.unpack(data)

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def await_end(self, timeout_s: float) -> None:
        poll = select.poll()
        poll.register(self.obituary, select.POLLIN)
        poll.poll(timeout_s * 1000)
        self.release()

    def release(self) -> None:
        """Let go of it; a process that is idle then ends by itself."""
        self.socket.close()
        if self.obituary >= 0:
            os.close(self.obituary)
            self.obituary = -1
