"""Runs plans: in killable child processes (`run`, `Runner`), or in this one (`run_inline`).

Guarantees of `run`, for each input message: exactly one `Outcome`, yielded as soon as the message is finished.
Whatever a node does (raises, loops for ever, takes all memory, ends its process) becomes a typed failure of the
message it did it with; the messages beside it are finished. Where that stops: when a node process dies, the
unfinished messages beside the culprit run again from their entry, so an outside call one of them had made is
made again, with the same idempotency key. When the caller's own process dies, its node processes die with it and
nothing is told of what was under way.
"""

from __future__ import annotations

import asyncio
import atexit
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
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, field
from time import monotonic
from typing import Any, Literal

from continuitybridge.engine import frames
from continuitybridge.engine.chain import Chain, Progress, Walk, copy_of
from continuitybridge.engine.limits import Limits, too_large, too_long, too_much_memory
from continuitybridge.engine.message import Failure, Message, NodeTrace, Outcome
from continuitybridge.engine.nursery import Obituary, clean_environment, serve_forked
from continuitybridge.errors import (
    BridgeError,
    ConfigurationError,
    InvalidPayload,
    LimitExceeded,
    NodeCrashed,
    Unavailable,
    Verdict,
)
from continuitybridge.flows.plan import Plan
from continuitybridge.nodes.base import Services

WINDOW_MESSAGES = 256
WINDOW_BYTES = 2 * 1024 * 1024
"""How far ahead of its outcomes a node process is fed."""
FRAME_MESSAGES = 32
BUSY_MESSAGES = 32
BUSY_PAUSE_S = 0.0005
MAX_DEATHS = 3
"""So many processes may die of one message before it fails as a whole."""
MIN_BUILD_LIMIT_S = 30.0
IDLE_CHILDREN = 16
_HANG_UP_S = 2.0

Start = Literal["auto", "fork", "exec"]
"""How the nursery comes up: `fork` of this process (milliseconds; what is imported is there already), `exec` of a
new interpreter (a third of a second; safe whatever threads this process has), `auto`: fork while this process has
one thread, else exec."""


class Runner:
    """A pool of node processes. Each holds one built plan of one organization and environment and is kept for the
    next run of it; the `idle_children` used last are kept. Use as a context manager, or `close` it.

    May be used from several threads: each run has a process of its own while it lasts. After a fork the copy
    starts afresh; the node processes stay the original's.
    """

    def __init__(self, *, start: Start = "auto", idle_children: int = IDLE_CHILDREN) -> None:
        self._start: Start = start
        self._idle_children = idle_children
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._nursery: _NurseryHandle | None = None
        self._idle: OrderedDict[int, _Child] = OrderedDict()
        self._number = 0

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def warm(self, plan: Plan | None = None) -> None:
        """Start the nursery, and let it import what the plan's nodes need. Returns at once."""
        types = sorted({node.type for node in plan.nodes.values()}) if plan is not None else []
        with self._lock:
            self._ready_nursery().tell({"do": "warm", "types": types})

    def run(
        self,
        plan: Plan,
        messages: Iterable[Message],
        *,
        services: Services,
        limits: Limits,
        stage: str | None = None,
        entry: Mapping[str, str] | None = None,
        emulate: bool = False,
        organization: str = "",
        environment: str = "",
        concurrency: int = 8,
    ) -> Iterator[Outcome]:
        """Run `messages` through `plan` (or its `stage`), one `Outcome` per message as each completes.

        `messages` is consumed as room comes up (at most `WINDOW_MESSAGES` ahead), so it may be a generator.
        `entry` maps a message id to the node it begins at; `concurrency` bounds the messages under way at once
        where nodes wait for the outside world. Under `emulate` no node calls outside. `services` are asked while
        the caller waits for the next outcome: a node that needs a connection waits for a caller that does not.
        Closing the iterator early ends what is under way.

        Raises `ConfigurationError` when the plan cannot be built, `Unavailable` when no process can be started.
        """
        key = (plan.digest, stage, emulate, organization, environment, limits)
        session = _Session(
            self, key, plan, services, limits, stage, dict(entry or {}), emulate, organization, environment,
            max(1, concurrency),
        )  # fmt: skip
        try:
            yield from session.outcomes(iter(messages))
        finally:
            session.end()

    def close(self) -> None:
        """End all node processes and the nursery. Runs under way in other threads end with `Unavailable`."""
        with self._lock:
            idle, self._idle = list(self._idle.values()), OrderedDict()
            nursery, self._nursery = self._nursery, None
        if self._pid != os.getpid():
            return
        for child in idle:
            child.hang_up()
        for child in idle:
            child.await_end(_HANG_UP_S)
        if nursery is not None:
            nursery.close()

    # -- node processes -----------------------------------------------------------------------------------

    def _take(self, session: _Session) -> _Child:
        with self._lock:
            self._after_fork()
            for number, child in reversed(self._idle.items()):
                if child.key == session.key:
                    del self._idle[number]
                    if child.alive():
                        return child
                    child.release()
                    break
            self._number += 1
            return self._fork(self._number, session)

    def _fork(self, number: int, session: _Session) -> _Child:
        ours, theirs = socket.socketpair()
        obituary, obituary_write = os.pipe()
        request = {
            "do": "fork",
            "number": number,
            "types": sorted({node.type for node in session.plan.nodes.values()}),
            "time_limit_s": session.limits.node_time_limit_s,
            "build_limit_s": max(MIN_BUILD_LIMIT_S, session.limits.node_time_limit_s),
            "memory_limit_bytes": session.limits.node_memory_limit_bytes,
        }
        child = _Child(number, session.key, ours, obituary)
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
                        child.release()
                        raise Unavailable(f"no node process can be started: {reason or error}") from None
        finally:
            theirs.close()
            os.close(obituary_write)
        return child

    def _ready_nursery(self) -> _NurseryHandle:
        self._after_fork()
        if self._nursery is None or not self._nursery.alive():
            self._nursery = _NurseryHandle(self._start)
        return self._nursery

    def _after_fork(self) -> None:
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        for child in self._idle.values():
            child.release()
        self._idle.clear()
        if self._nursery is not None:
            self._nursery.abandon()
            self._nursery = None

    def _give_back(self, child: _Child) -> None:
        surplus: list[_Child] = []
        with self._lock:
            if self._nursery is None or self._pid != os.getpid():
                surplus.append(child)
            else:
                self._idle[child.number] = child
                while len(self._idle) > self._idle_children:
                    surplus.append(self._idle.popitem(last=False)[1])
        for former in surplus:
            former.hang_up()
            former.release()

    def _kill(self, child: _Child) -> None:
        with self._lock:
            if self._nursery is not None and self._pid == os.getpid():
                with contextlib.suppress(OSError):
                    self._nursery.tell({"do": "kill", "number": child.number})
        child.release()


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


class _Child:
    """A node process, as its runner holds it."""

    def __init__(self, number: int, key: Any, sock: socket.socket, obituary: int) -> None:
        self.number = number
        self.key = key
        self.socket = sock
        self.obituary = obituary
        self.fresh = True
        self.retired = False
        self.ready = False
        self.calls_outside = False
        self.reader = frames.FrameReader()
        self.unsent = bytearray()
        sock.setblocking(False)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def send(self, data: bytes) -> None:
        if not self.unsent:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                sent = self.socket.send(data)
                if sent == len(data):
                    return
                data = data[sent:]
            self._poll.modify(self.socket, select.POLLIN | select.POLLOUT)
        self.unsent += data

    def receive(self) -> bytes | None:
        """Wait until something can be read or written; what was read, None when the process has ended."""
        for _, event in self._poll.poll():
            if event & select.POLLOUT and self.unsent:
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    del self.unsent[: self.socket.send(self.unsent)]
                if not self.unsent:
                    self._poll.modify(self.socket, select.POLLIN)
            if event & ~select.POLLOUT:
                try:
                    return self.socket.recv(frames.READ_BYTES) or None
                except BlockingIOError:
                    return b""
                except ConnectionError:
                    return None
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


@dataclass(slots=True)
class _Job:
    """One input message under way."""

    sequence: int
    message: Message
    entry: str | None
    size: int
    deaths: int = 0
    poison: dict[tuple[str, str], BridgeError] = field(default_factory=dict)


class _Session:
    """One run: feeds a node process, reads its outcomes, replaces it when it dies."""

    def __init__(
        self,
        runner: Runner,
        key: Any,
        plan: Plan,
        services: Services,
        limits: Limits,
        stage: str | None,
        entry: dict[str, str],
        emulate: bool,
        organization: str,
        environment: str,
        concurrency: int,
    ) -> None:
        self.key = key
        self.plan = plan
        self.limits = limits
        self._runner = runner
        self._services = services
        self._stage = stage
        self._entry = entry
        self._emulate = emulate
        self._organization = organization
        self._environment = environment
        self._concurrency = concurrency
        self._now = time.time()
        self._nodes = list(plan.nodes)
        self._child: _Child | None = None
        self._under_way: dict[int, _Job] = {}
        self._bytes_under_way = 0
        self._again: deque[_Job] = deque()
        self._finished: deque[Outcome] = deque()
        self._sequence = 0
        self._lost_while_building = 0
        self._alone = False

    def outcomes(self, source: Iterator[Message]) -> Iterator[Outcome]:
        more = True
        while True:
            more = self._feed(source, more)
            while self._finished:
                yield self._finished.popleft()
            if self._under_way and self._child is not None:
                self._hear(self._child)
            elif not more and not self._again:
                return

    def end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        if self._under_way or child.unsent:
            self._runner._kill(child)
        elif child.retired:
            child.release()
        else:
            self._runner._give_back(child)

    # -- feeding ------------------------------------------------------------------------------------------

    def _feed(self, source: Iterator[Message], more: bool) -> bool:
        """Send what there is room for; False when the source is exhausted."""
        batch: list[tuple[Any, ...]] = []
        while not self._alone and not self._finished:
            if self._again:
                suspect = self._again[0].deaths >= MAX_DEATHS - 1
                if suspect and self._under_way:
                    break
                job = self._again.popleft()
                # It was there at so many deaths that it goes alone, to see whether it is their cause.
                self._alone = suspect
            elif more and len(self._under_way) < WINDOW_MESSAGES:
                message = next(source, None)
                if message is None:
                    more = False
                    break
                job = self._job(message)
            else:
                break
            if self._under_way and self._bytes_under_way + job.size > WINDOW_BYTES:
                # What waits in the node process takes of the memory its nodes have.
                self._again.appendleft(job)
                break
            packed = self._packed(job)
            if packed is None:
                continue
            self._under_way[job.sequence] = job
            self._bytes_under_way += job.size
            batch.append(packed)
            if len(batch) == FRAME_MESSAGES:
                self._send(batch)
                batch = []
        if batch:
            self._send(batch)
        return more

    def _job(self, message: Message) -> _Job:
        body = message.body
        size = len(body) if isinstance(body, (bytes, str)) else 0
        self._sequence += 1
        return _Job(self._sequence, message, self._entry.get(message.id), size)

    def _packed(self, job: _Job) -> tuple[Any, ...] | None:
        """The message in wire form, or None when it is refused at the door."""
        problem: BridgeError | None = refusal(job.message, self.limits)
        if problem is None:
            try:
                return frames.pack_work(job.sequence, job.message, job.entry, job.poison)
            except ValueError:
                problem = InvalidPayload("the message's body is neither bytes, text nor JSON data")
        self._finished.append(refused(self.plan, job.message, problem, job.entry))
        return None

    def _send(self, batch: list[tuple[Any, ...]]) -> None:
        child = self._child
        if child is None:
            child = self._child = self._runner._take(self)
            data = b""
            if child.fresh:
                child.fresh = False
                plan = (self.plan.to_json(), self._stage, self._emulate, astuple(self.limits))
                data = frames.frame(frames.PLAN, plan)
            run = (self._now, self._organization, self._environment, self._concurrency)
            child.send(data + frames.frame(frames.RUN, run))
        child.send(frames.frame(frames.WORK, batch))

    # -- hearing ------------------------------------------------------------------------------------------

    def _hear(self, child: _Child) -> None:
        if len(self._under_way) > BUSY_MESSAGES:
            # Nobody waits for one answer: let some come together rather than be woken for each.
            time.sleep(BUSY_PAUSE_S)
        data = child.receive()
        if data is None:
            self._died(child)
            return
        for kind, content in child.reader.feed(data):
            if kind == frames.OUTCOME:
                sequence, child.retired, *outcome = content
                job = self._leave(sequence)
                self._finished.append(frames.unpack_outcome(job.message.id, self._nodes, *outcome))
            elif kind == frames.READY:
                child.ready, child.calls_outside = True, content
            elif kind == frames.REFUSED:
                raise frames.unpack_error(content)
            elif kind == frames.CALL:
                child.send(frames.frame(frames.REPLY, self._connection(content)))
            elif kind == frames.LOG:
                self._services.log(*content)

    def _leave(self, sequence: int) -> _Job:
        job = self._under_way.pop(sequence)
        self._bytes_under_way -= job.size
        self._alone = False
        return job

    def _connection(self, name: str) -> tuple[Any, Any]:
        try:
            found = self._services.connection(name)
        except BridgeError as error:
            return None, frames.pack_error(error)
        except Exception as error:
            return None, frames.pack_error(
                Unavailable(f"connection {name!r} cannot be looked up: {type(error).__name__}")
            )
        return (found.name, found.base_url, dict(found.headers), dict(found.auth)), None

    # -- deaths -------------------------------------------------------------------------------------------

    def _died(self, child: _Child) -> None:
        self._child = None
        obituary = child.read_obituary()
        child.release()
        if obituary.cause == "not-forked":
            raise Unavailable(f"no node process can be started: {obituary.text}")
        if obituary.building or not child.ready:
            self._died_building(obituary)
        elif not child.retired:
            self._blame(child, obituary)
        # In the order they came in, before anything new.
        self._again.extendleft(reversed(self._under_way.values()))
        self._under_way.clear()
        self._bytes_under_way = 0
        self._alone = False

    def _died_building(self, obituary: Obituary) -> None:
        if not _from_outside(obituary):
            node_id = self._nodes[obituary.node]
            why = f"it took longer than {obituary.busy_s:.0f} s" if obituary.cause == "time" else _end(obituary)
            raise ConfigurationError(f"node {node_id!r} cannot be built: {why}", node_id=node_id)
        self._lost_while_building += 1
        if self._lost_while_building == MAX_DEATHS:
            raise Unavailable(f"no node process can be started: {_end(obituary)}")

    def _blame(self, child: _Child, obituary: Obituary) -> None:
        culprit = self._under_way.get(obituary.message) if obituary.message is not None else None
        if culprit is None:
            # It died between two nodes: one of those that had begun, and it takes them in order.
            begun = self._concurrency if child.calls_outside else 1
            for job in list(self._under_way.values())[:begun]:
                job.deaths += 1
                if job.deaths == MAX_DEATHS:
                    node_id = job.entry or _door(self.plan, job.message)
                    self._fail(job, job.message.id, node_id, _crashed(obituary), 0.0)
            return
        culprit.deaths += 1
        if _from_outside(obituary) and culprit.deaths == 1:
            return
        node_id = self._nodes[obituary.node]
        message_id = obituary.child or culprit.message.id
        error = self._error(obituary)
        # Running it again with the node's failure known gives it its error route, its siblings, its trace. Where
        # that would repeat outside calls it is done only for a route or siblings.
        more_to_do = self.plan.nodes[node_id].on_error is not None or obituary.child
        if culprit.deaths < MAX_DEATHS and (more_to_do or not child.calls_outside):
            culprit.poison[message_id, node_id] = error
        else:
            self._fail(culprit, message_id, node_id, error, obituary.busy_s)

    def _error(self, obituary: Obituary) -> BridgeError:
        if obituary.cause == "time":
            return too_long(obituary.busy_s, self.limits.node_time_limit_s)
        if obituary.signal == signal.SIGABRT and _speaks_of_memory(obituary.text):
            return too_much_memory(self.limits.node_memory_limit_bytes)
        return _crashed(obituary)

    def _fail(self, job: _Job, message_id: str, node_id: str, error: BridgeError, busy_s: float) -> None:
        self._leave(job.sequence)
        node_type = self.plan.nodes[node_id].type if node_id in self.plan.nodes else ""
        failure = Failure.of(job.message, node_id, node_type, error)
        failure.message_id = message_id
        outcome = frames.outcome_of(job.message.id, (), [], [failure], ())
        outcome.trace = [NodeTrace(node_id, 1, 0, 1, round(busy_s * 1e6))]
        self._finished.append(outcome)


def refusal(message: Message, limits: Limits) -> LimitExceeded | None:
    """Why a message may not even begin: bytes or text beyond the limit. (JSON data was bounded where it left.)"""
    body = message.body
    if isinstance(body, (bytes, str)) and len(body) > limits.max_message_bytes:
        return too_large(len(body), limits.max_message_bytes)
    return None


def refused(plan: Plan, message: Message, error: BridgeError, entry: str | None = None) -> Outcome:
    """The outcome of a message that may not begin. Its body is not kept: it is what was wrong."""
    failure = Failure.of(message, entry or _door(plan, message), "", error)
    failure.body = None
    return frames.outcome_of(message.id, (), [], [failure], ())


def _door(plan: Plan, message: Message) -> str:
    return str(message.vars.get("trigger") or next(iter(plan.triggers), ""))


def _from_outside(obituary: Obituary) -> bool:
    """Whether somebody else ended the process: an operator, the kernel for lack of memory on the machine."""
    if obituary.cause == "lost":
        return True
    return obituary.cause == "ended" and obituary.signal in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def _end(obituary: Obituary) -> str:
    if obituary.signal:
        try:
            name = signal.Signals(obituary.signal).name
        except ValueError:
            name = f"signal {obituary.signal}"
        return f"its process was ended by {name}"
    if obituary.cause == "lost":
        return "its process was lost"
    return f"its process ended with status {obituary.status}"


def _crashed(obituary: Obituary) -> NodeCrashed:
    return NodeCrashed(
        _end(obituary),
        verdict=Verdict.TRANSIENT if _from_outside(obituary) else Verdict.TERMINAL,
        signal=obituary.signal,
        status=obituary.status,
        memory_bytes=obituary.memory_bytes,
        said=obituary.text.strip(),
    )


def _speaks_of_memory(text: str) -> bool:
    """What jq, Rust and C++ say when an allocation fails, before they abort."""
    return any(words in text for words in ("allocate memory", "memory allocation of", "bad_alloc"))


# -- the module's own runner ------------------------------------------------------------------------------

_default = Runner()
atexit.register(_default.close)


def run(
    plan: Plan,
    messages: Iterable[Message],
    *,
    services: Services,
    limits: Limits,
    stage: str | None = None,
    entry: Mapping[str, str] | None = None,
    emulate: bool = False,
    organization: str = "",
    environment: str = "",
    concurrency: int = 8,
) -> Iterator[Outcome]:
    """`Runner.run` on a runner that lives as long as this process."""
    return _default.run(
        plan,
        messages,
        services=services,
        limits=limits,
        stage=stage,
        entry=entry,
        emulate=emulate,
        organization=organization,
        environment=environment,
        concurrency=concurrency,
    )


def close() -> None:
    """End the node processes that `run` keeps for the next run. A later `run` starts afresh."""
    _default.close()


def run_inline(
    plan: Plan,
    messages: Iterable[Message],
    *,
    services: Services,
    limits: Limits,
    stage: str | None = None,
    entry: Mapping[str, str] | None = None,
    emulate: bool = False,
    organization: str = "",
    environment: str = "",
    concurrency: int = 8,
) -> Iterator[Outcome]:
    """As `run`, in this process: limits on time and memory do not hold, and a crash is a crash. With outside calls
    in the plan it runs an event loop of its own, so not from within one."""
    chain = Chain(plan, stage=stage, emulate=emulate, limits=limits)
    chain.begin(services, now=time.time(), organization=organization, environment=environment)
    inline = _Inline(chain, entry or {}, limits)
    if chain.is_async:
        yield from inline.run_async(iter(messages), max(1, concurrency))
    else:
        for message in messages:
            yield inline.run(message)


class _Inline:
    def __init__(self, chain: Chain, entry: Mapping[str, str], limits: Limits) -> None:
        self._chain = chain
        self._entry = entry
        self._limits = limits
        self._nodes = list(chain.plan.nodes)
        self._progress = Progress()

    def run(self, message: Message) -> Outcome:
        walk = self._begin(message)
        if isinstance(walk, Outcome):
            return walk
        walk.run(self._entry.get(message.id))
        return self._outcome(message, walk)

    def run_async(self, messages: Iterator[Message], concurrency: int) -> Iterator[Outcome]:
        with asyncio.Runner() as loop_runner:
            loop = loop_runner.get_loop()
            calls = asyncio.Semaphore(concurrency)
            tasks: set[asyncio.Task[Outcome]] = set()
            try:
                more = True
                while more or tasks:
                    while more and len(tasks) < concurrency:
                        message = next(messages, None)
                        if message is None:
                            more = False
                            break
                        tasks.add(loop.create_task(self._walk(message, calls)))
                    if tasks:
                        first = asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                        done, tasks = loop.run_until_complete(first)
                        for task in done:
                            yield task.result()
            finally:
                loop.run_until_complete(self._chain.aclose())

    async def _walk(self, message: Message, calls: asyncio.Semaphore) -> Outcome:
        walk = self._begin(message)
        if isinstance(walk, Outcome):
            return walk
        await walk.run_async(self._entry.get(message.id), calls)
        return self._outcome(message, walk)

    def _begin(self, message: Message) -> Walk | Outcome:
        problem = refusal(message, self._limits)
        if problem is not None:
            return refused(self._chain.plan, message, problem, self._entry.get(message.id))
        return Walk(self._chain, 0, copy_of(message), self._progress)

    def _outcome(self, message: Message, walk: Walk) -> Outcome:
        outputs = frames.unpack_outputs(frames.seal(walk, self._limits))
        return frames.outcome_of(message.id, self._nodes, outputs, walk.failures, walk.trace())
