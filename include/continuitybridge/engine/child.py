"""A node process: builds one plan and runs messages through it until its runner hangs up.

Without outside calls it is a plain loop; with them, an event loop in which several messages are under way and
outside calls overlap while everything that computes runs one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import mmap
import os
import resource
import select
import socket
import threading
import traceback
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import astuple
from time import monotonic_ns, time
from typing import Any, NoReturn

from continuitybridge import egress
from continuitybridge.engine import frames, replies
from continuitybridge.engine.calls import Calls
from continuitybridge.engine.chain import Chain
from continuitybridge.engine.circuit import CircuitState
from continuitybridge.engine.copies import plain
from continuitybridge.engine.destinations import OF_OTHERS, Destinations, DestinationState
from continuitybridge.engine.gate import Gate
from continuitybridge.engine.limits import Limits
from continuitybridge.engine.progress import (
    BUILDING,
    CHILD_ID_AT,
    CHILD_ID_BYTES,
    SLOT_MESSAGE,
    SLOT_NODE,
    SLOT_SINCE,
    Progress,
)
from continuitybridge.engine.walk import Walk
from continuitybridge.errors import BridgeError, Unavailable
from continuitybridge.flows.plan import Plan
from continuitybridge.nodes.base import ConnectionInfo

_M_ARENA_MAX = -8
_M_MMAP_THRESHOLD = -3
_SHUTDOWN_S = 1.0
GROWTH_CHECKED_EVERY = 256
"""Messages between two looks at the memory that finished messages have left behind."""
GROWTH_SHARE = 0.5
"""The share of the memory limit that may be left behind before a process is worn."""
WORN_MESSAGES = 10_000
WORN_BYTES = 16 * 1024 * 1024
"""After so many messages a process is worn when they left more than so many bytes behind: libraries keep what
they have seen (the names of all XML elements, say), and heaps get holes. A new process costs less than these
messages."""


def serve(data_fd: int, progress_map: mmap.mmap, memory_limit_bytes: int) -> NoReturn:
    """Serve the runner behind `data_fd`; never returns."""
    _limit_memory(memory_limit_bytes)
    # Messages make few circles but many containers: collecting at every 700 of them costs a tenth of the time.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    view = memoryview(progress_map)
    progress = Progress(view[:CHILD_ID_AT].cast("Q"), view[CHILD_ID_AT : CHILD_ID_AT + CHILD_ID_BYTES])
    process = _NodeProcess(_Channel(socket.socket(fileno=data_fd), progress), progress)
    process.build()
    if process.chain.is_async:
        asyncio.run(process.serve_async())
    else:
        process.serve()
    os._exit(0)


def _limit_memory(limit_bytes: int) -> None:
    """Allow `limit_bytes` above what is taken now. Data is what counts (private, writable); address space, where
    libraries also reserve what they never use, is bounded more widely."""
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, 2)
        # Fixed, so that a large block goes back to the system when it is freed, and leaves no holes.
        libc.mallopt(_M_MMAP_THRESHOLD, 1024 * 1024)
    data, address_space = _taken_bytes()
    for name, taken, allowed in (
        (resource.RLIMIT_DATA, data, limit_bytes),
        (resource.RLIMIT_AS, address_space, 2 * limit_bytes),
    ):
        _, hard = resource.getrlimit(name)
        wanted = taken + allowed
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        resource.setrlimit(name, (wanted, wanted))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # If the machine itself runs short, this process goes before its owner.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("500")


def _taken_bytes() -> tuple[int, int]:
    """Data and address space of this process."""
    with open("/proc/self/statm") as statm:
        pages = [int(word) for word in statm.read().split()]
    page = os.sysconf("SC_PAGE_SIZE")
    return pages[5] * page, pages[0] * page


class _HungUp(Exception):
    """The runner has closed its end."""


class _Channel:
    """Frames to and from the runner. Blocking unless `loop` is set; then what cannot be written at once is
    written when the loop finds room."""

    def __init__(self, sock: socket.socket, progress: Progress) -> None:
        self.socket = sock
        self.loop: asyncio.AbstractEventLoop | None = None
        self.received: deque[tuple[int, Any]] = deque()
        self._reader = frames.FrameReader()
        self._progress = progress
        self._unsent = bytearray()

    def read(self) -> tuple[int, Any]:
        """The next frame, waiting for it."""
        while not self.received:
            self.fill()
        return self.received.popleft()

    def fill(self) -> None:
        """Receive what is there, or wait for something when blocking."""
        data = self.socket.recv(frames.READ_BYTES)
        if not data:
            raise _HungUp
        self.received.extend(self._reader.feed(data))

    def send(self, data: bytes) -> None:
        if self.loop is None:
            self.socket.sendall(data)
            return
        if not self._unsent:
            with contextlib.suppress(BlockingIOError):
                sent = self.socket.send(data)
                if sent == len(data):
                    return
                data = data[sent:]
            self.loop.add_writer(self.socket, self._flush)
        self._unsent += data

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            del self._unsent[: self.socket.send(self._unsent)]
        if not self._unsent and self.loop is not None:
            self.loop.remove_writer(self.socket)

    def flush(self) -> None:
        """Write everything now."""
        while self._unsent:
            _wait(self.socket, select.POLLOUT)
            self._flush()

    def log(self, data: bytes) -> None:
        """Send from within a node; time spent waiting for the runner is not the node's."""
        node = self._pause()
        self.send(data)
        self._resume(node)

    def request(self, data: bytes) -> Any:
        """Ask the runner and wait for the answer, from within a node."""
        node = self._pause()
        self.send(data)
        self.flush()
        others: list[tuple[int, Any]] = []
        while True:
            while self.received:
                kind, content = self.received.popleft()
                if kind == frames.REPLY:
                    self.received.extendleft(reversed(others))
                    self._resume(node)
                    return content
                others.append((kind, content))
            if self.loop is not None:
                _wait(self.socket, select.POLLIN)
            self.fill()

    def _pause(self) -> int:
        slots = self._progress.slots
        busy: int = slots[SLOT_MESSAGE]
        slots[SLOT_MESSAGE] = 0
        return busy

    def _resume(self, busy: int) -> None:
        slots = self._progress.slots
        slots[SLOT_SINCE] = monotonic_ns()
        slots[SLOT_MESSAGE] = busy


def _wait(sock: socket.socket, event: int) -> None:
    poll = select.poll()
    poll.register(sock, event)
    poll.poll()


class _RemoteServices:
    """The runner's services, asked over the channel. Connections are remembered for one run, or until they are to
    be forgotten."""

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel
        self._connections: dict[str, ConnectionInfo] = {}
        self._thread = threading.get_ident()

    def connection(self, name: str, *, refused: int | None = None) -> ConnectionInfo:
        found = self._connections.get(name)
        if found is None or not found.holds(time(), refused):
            if threading.get_ident() != self._thread:
                raise Unavailable("a node asked for a connection outside of its own call")
            info, error = self._channel.request(frames.frame(frames.CALL, (name, refused)))
            if error is not None:
                raise frames.unpack_error(error)
            found = self._connections[name] = ConnectionInfo(*info)
        return found

    def forget(self) -> None:
        self._connections.clear()

    def log(self, level: str, text: str, fields: Mapping[str, Any]) -> None:
        try:
            data = frames.frame(frames.LOG, (level, text, dict(fields)))
        except ValueError:
            data = frames.frame(frames.LOG, (str(level), str(text), plain(fields)))
        self._channel.log(data)


class _NodeProcess:
    chain: Chain
    limits: Limits

    def __init__(self, channel: _Channel, progress: Progress) -> None:
        self._channel = channel
        self._progress = progress
        self._concurrency = 1
        self._calls = Calls(1)
        self._reported = 0
        self._data_at_start, _ = _taken_bytes()
        self._data_when_warm: int | None = None
        self._worn = False
        self._results = True
        self._services: _RemoteServices | None = None
        self._ready: deque[frames.Work] = deque()
        self._under_way: set[asyncio.Task[None]] = set()
        self._over: asyncio.Event

    def build(self) -> None:
        """Build the plan that comes first. A refusal is told, and ends the process."""
        try:
            _, (text, stage, emulate, limits, may_call) = self._channel.read()
        except _HungUp:
            os._exit(0)
        egress.install(egress.Policy.from_data(may_call))
        slots = self._progress.slots

        def building(index: int) -> None:
            slots[SLOT_NODE] = index
            slots[SLOT_SINCE] = monotonic_ns()
            slots[SLOT_MESSAGE] = BUILDING

        self.limits = Limits(*limits)
        try:
            building(0)
            self.chain = Chain(
                Plan.from_json(text),
                stage=stage,
                emulate=emulate,
                limits=self.limits,
                before_build=building,
            )
        except BridgeError as error:
            slots[SLOT_MESSAGE] = 0
            self._channel.send(frames.frame(frames.REFUSED, frames.pack_error(error)))
            os._exit(0)
        slots[SLOT_MESSAGE] = 0
        self._channel.send(frames.frame(frames.READY, self.chain.is_async))

    def serve(self) -> None:
        chain, channel = self.chain, self._channel
        while True:
            try:
                kind, content = channel.read()
            except (_HungUp, ConnectionError):
                return
            if kind != frames.WORK:
                self._told(kind, content)
            else:
                now, items = content
                chain.tick(now)
                for item in items:
                    sequence, message, entry, poison = self._unpacked(item)
                    walk = Walk(chain, sequence, message, self._progress, poison)
                    walk.run(entry)
                    self._report(sequence, walk)

    def _told(self, kind: int, content: Any) -> None:
        if kind == frames.RUN:
            self._begin(content)
        elif kind == frames.FORGET and self._services is not None:
            self._services.forget()
        elif kind == frames.DESTINATION and self.chain.gate is not None:
            self.chain.gate.put(DestinationState.from_data(content))

    def _unpacked(self, item: Any) -> frames.Work:
        # From here on a death is this message's doing: reading it back may need more memory than there is.
        self._progress.enter(item[0])
        return frames.unpack_work(item)

    def _begin(self, content: Any) -> None:
        organization, environment, concurrency, destinations, self._results = content
        self._concurrency = concurrency
        self._calls = Calls(concurrency)
        self._services = _RemoteServices(self._channel)
        self.chain.begin(
            self._services,
            now=0.0,
            organization=organization,
            environment=environment,
            gate=None if destinations is None else self._gate(map(DestinationState.from_data, destinations)),
        )

    def _gate(self, states: Iterable[DestinationState]) -> Gate:
        """A gate that tells the runner when a circuit opens or closes."""

        def tell(name: str, circuit: CircuitState) -> None:
            self._channel.send(frames.frame(frames.CIRCUIT, (name, *astuple(circuit))))

        by_name = {state.name: state for state in states}
        default = by_name.pop(OF_OTHERS, None)
        return Gate(Destinations(by_name.values(), default=default, on_change=tell))

    def _report(self, sequence: int, walk: Walk) -> None:
        self._reported += 1
        if self._reported % GROWTH_CHECKED_EVERY == 0:
            self._worn = self._worn or self._is_worn()
        try:
            data = frames.pack_outcome(sequence, walk, self.limits, worn=self._worn, results=self._results)
        except MemoryError:
            walk.give_up()
            data = frames.pack_outcome(sequence, walk, self.limits, worn=self._worn, results=self._results)
        self._progress.leave()
        self._channel.send(data)
        asked = replies.wanted(walk)
        if asked is not None:
            reply = replies.make(walk, asked, self.limits)
            self._progress.leave()
            self._channel.send(frames.pack_answer(sequence, reply))
        if walk.out_of_memory:
            # Out of memory: what else lacked it at that moment is not known.
            self._channel.flush()
            os._exit(0)

    def _is_worn(self) -> bool:
        """Whether earlier messages left behind so much memory that another process should go on: so much of the
        limit that a later message would be blamed for it, or more than so many messages should."""
        data, _ = _taken_bytes()
        if data - self._data_at_start > GROWTH_SHARE * self.limits.node_memory_limit_bytes:
            return True
        if self._data_when_warm is None:
            self._data_when_warm = data
        return self._reported >= WORN_MESSAGES and data - self._data_when_warm > WORN_BYTES

    # -- with outside calls -------------------------------------------------------------------------------

    async def serve_async(self) -> None:
        loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._channel.loop = loop
        self._channel.socket.setblocking(False)
        loop.add_reader(self._channel.socket, self._receive)
        self._take()
        await self._over.wait()
        loop.remove_reader(self._channel.socket)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self.chain.aclose(), _SHUTDOWN_S)
        os._exit(0)  # not by way of the loop's own end, which waits for threads that resolve names

    def _receive(self) -> None:
        try:
            self._channel.fill()
        except BlockingIOError:
            return
        except (_HungUp, ConnectionError):
            self._over.set()
            return
        self._take()

    def _take(self) -> None:
        received = self._channel.received
        while received:
            kind, content = received.popleft()
            if kind != frames.WORK:
                self._told(kind, content)
            else:
                now, items = content
                self.chain.tick(now)
                self._ready.extend(self._unpacked(item) for item in items)
                self._progress.leave()
        self._start()

    def _start(self) -> None:
        while self._ready and len(self._under_way) < self._concurrency:
            task = asyncio.ensure_future(self._walk(*self._ready.popleft()))
            self._under_way.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and task.exception() is not None:
            traceback.print_exception(task.exception())
            os._exit(70)
        # A node that asked the runner something may have read work meanwhile.
        self._take()

    async def _walk(self, sequence: int, message: Any, entry: str | None, poison: Any) -> None:
        walk = Walk(self.chain, sequence, message, self._progress, poison)
        await walk.run_async(entry, self._calls)
        self._report(sequence, walk)
