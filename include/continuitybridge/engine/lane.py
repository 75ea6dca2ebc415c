"""Runs one plan in one node process from within an asyncio event loop, for as long as messages keep coming."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from continuitybridge.engine import frames
from continuitybridge.engine.destinations import DestinationState
from continuitybridge.engine.limits import Limits
from continuitybridge.engine.message import Message, Outcome
from continuitybridge.engine.nursery import Obituary
from continuitybridge.engine.processes import BUSY_PAUSE_S, NodeProcess
from continuitybridge.engine.runner import OnCircuit, Runner
from continuitybridge.engine.session import Job, Session, not_told, refused
from continuitybridge.errors import BridgeError, Unavailable
from continuitybridge.flows.plan import Plan
from continuitybridge.nodes.base import ConnectionInfo

CONNECTION_TIME_LIMIT_S = 10.0
"""So long a node process, and every message in it, waits for a connection to be looked up."""
SUCCESSOR_PAUSE_S = 10.0
"""So long a worn process goes on after no other could be started in its place."""

log = logging.getLogger(__name__)


class AsyncServices(Protocol):
    """What the outside world offers to nodes, as `nodes.base.Services`, to a lane."""

    async def connection(self, name: str, *, refused: int | None = None) -> ConnectionInfo:
        """As `nodes.base.Services.connection`."""

    def log(self, level: str, text: str, fields: dict[str, Any]) -> None:
        """A line in the flow's log. Called from the event loop: it must not block."""


class Lane:
    """One plan in one node process, fed from an event loop. Nothing here blocks the loop, and an idle lane costs
    no processor time at all: it has no timers.

    Guarantees, for each message given to `submit` until `aclose`: exactly one call of
    `on_outcome(token, outcome)`, as soon as the message is finished, in any order. They are told apart by their
    tokens alone, so several may bear the same id. What a node does to its process becomes the outcome of the
    message it did it with, as with `runner.Runner.run`, and the limits named there hold: after a death the
    unfinished ones beside the culprit run again from their entry, and their outside calls are made again with the
    same idempotency keys. Where no process can be started any more, every message under way has the outcome
    `unavailable`, which may pass, and the next `submit` tries again. A process that its messages have worn (memory
    that grew and does not come back) is replaced while it works: nothing waits, is lost or is repeated.

    `destinations` is what is said of those that the plan's nodes call, `set_destination` what is said later;
    where a process finds that one fails, or works again, `on_circuit(name, circuit)` is called before the
    outcome that showed it. `on_outcome` and `on_circuit` are called from the loop and must not raise; what they
    raise goes to the loop's exception handler. Without `results`, outcomes hold what goes on in another stage or
    waits, and not what left the plan. A lane belongs to the loop it was started in, and is no more to be used
    after `aclose`.
    """

    def __init__(
        self,
        runner: Runner,
        plan: Plan,
        *,
        services: AsyncServices,
        limits: Limits,
        on_outcome: Callable[[Any, Outcome], None],
        stage: str | None = None,
        emulate: bool = False,
        organization: str = "",
        environment: str = "",
        concurrency: int = 32,
        destinations: Iterable[DestinationState] = (),
        on_circuit: OnCircuit | None = None,
        results: bool = True,
    ) -> None:
        self.plan = plan
        self._processes = runner.processes
        self._services = services
        self._on_outcome = on_outcome
        self._on_circuit = on_circuit
        self._session = Session(
            plan,
            limits,
            stage=stage,
            emulate=emulate,
            organization=organization,
            environment=environment,
            concurrency=concurrency,
            destinations=destinations,
            results=results,
        )
        self._given: deque[Job] = deque()
        self._loop: asyncio.AbstractEventLoop
        self._held: set[NodeProcess] = set()
        self._process: NodeProcess | None = None
        """The one that is fed. A worn one that is no longer fed is held until what it has is finished."""
        self._coming: NodeProcess | None = None
        """Builds the plan, to be fed next."""
        self._taking = False
        self._no_successor_before = 0.0
        self._dying: set[NodeProcess] = set()
        self._ready: asyncio.Future[None] | None = None
        self._pump_due = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def under_way(self) -> int:
        """Messages whose outcome has not been told yet."""
        return len(self._given) + self._session.waiting + sum(len(process.jobs) for process in self._held)

    async def start(self) -> None:
        """Start the node process and build the plan in it. Raises `ConfigurationError` when the plan cannot be
        built, `Unavailable` when no process can be started; the lane is then closed."""
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        try:
            self._expect()
            await self._ready
        except BaseException:
            await self.aclose()
            raise
        finally:
            self._ready = None

    def submit(self, message: Message, entry: str | None = None, *, token: Any = None) -> None:
        """Run `message` from `entry` (else from its trigger). Never blocks; there is no bound but memory: at most
        `session.WINDOW_MESSAGES` stand in the node process, the rest here."""
        if self._closed:
            raise RuntimeError("the lane is closed")
        self._given.append(Job(message, entry, token))
        self._pump_soon()

    def set_destination(self, state: DestinationState) -> None:
        """What is said of a destination from now on (paused, open, most calls at once); with the name
        `destinations.OF_OTHERS` of all of which nothing else is said. Calls under way end as they would. A
        message that may not make its call fails with `DestinationClosed`."""
        data = self._session.destination(state)
        for process in self._held - self._dying:
            self._send(process, data)

    def forget_connections(self) -> None:
        """Connections changed: calls that begin from now on ask `services` for them again."""
        for process in self._held - self._dying:
            self._send(process, frames.frame(frames.FORGET, None))

    async def aclose(self) -> None:
        """Give the process back for the next run of its plan, or end it when something is under way: of that
        nothing is told any more."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for process in list(self._held):
            self._let_go(process)
            if process.jobs or process.unsent or not process.ready:
                self._processes.kill(process)
            elif process.condition != frames.FIT:
                process.release()
            else:
                self._processes.give_back(process)

    # -- the process --------------------------------------------------------------------------------------

    async def _take(self) -> None:
        """Take a process, in a thread: a nursery that has to be started first takes its time."""
        session = self._session
        taking = self._loop.run_in_executor(None, self._processes.take, session.key, session.plan, session.limits)
        try:
            process = await asyncio.shield(taking)
        except asyncio.CancelledError:
            taking.add_done_callback(self._not_wanted)
            raise
        self._held.add(process)
        self._coming = process
        self._loop.add_reader(process.socket, self._hear, process)
        self._send(process, session.opening(process))
        if process.ready:
            self._comes()

    def _not_wanted(self, taking: asyncio.Future[NodeProcess]) -> None:
        if not taking.cancelled() and taking.exception() is None:
            self._processes.kill(taking.result())

    def _comes(self) -> None:
        """What was coming is fed from now on."""
        former, self._process, self._coming = self._process, self._coming, None
        if former is not None and not former.jobs:
            self._let_go(former)
            former.release()
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)
        self._pump_soon()

    def _let_go(self, process: NodeProcess) -> None:
        self._held.discard(process)
        self._dying.discard(process)
        if self._process is process:
            self._process = None
        if self._coming is process:
            self._coming = None
        self._loop.remove_reader(process.socket)
        self._loop.remove_writer(process.socket)
        self._loop.remove_reader(process.obituary)

    def _send(self, process: NodeProcess, data: bytes) -> None:
        blocked = bool(process.unsent)
        process.send(data)
        if process.unsent and not blocked:
            self._loop.add_writer(process.socket, self._flush, process)

    def _flush(self, process: NodeProcess) -> None:
        process.flush()
        if not process.unsent:
            self._loop.remove_writer(process.socket)

    def _in_background(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- feeding ------------------------------------------------------------------------------------------

    def _pump_soon(self) -> None:
        """What is submitted in one turn of the loop goes together."""
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        if self._closed or self._dying or not (self._given or self._session.waiting):
            return
        process = self._process
        if process is None:
            self._expect()
            return
        for data in self._session.feed(process, self._next, time.time()):
            self._send(process, data)
        if self._session.finished:
            self._tell()
            self._pump_soon()

    def _expect(self) -> None:
        """Let a process come, unless one does."""
        if not self._taking and self._coming is None:
            self._taking = True
            self._in_background(self._take_another())

    def _next(self) -> Job | None:
        return self._given.popleft() if self._given else None

    async def _take_another(self) -> None:
        try:
            await self._take()
        except BridgeError as error:
            self._does_not_come(error)
        except Exception:
            # A mistake of ours must not leave messages without an outcome.
            log.exception("no node process can be opened")
            self._does_not_come(Unavailable("no node process can be opened"))
        finally:
            self._taking = False

    # -- hearing ------------------------------------------------------------------------------------------

    def _hear(self, process: NodeProcess) -> None:
        data = process.receive()
        if data is None:
            self._await_obituary(process)
            return
        try:
            for kind, content in process.reader.feed(data):
                self._heard(process, kind, content)
        except BridgeError as refusal:
            self._let_go(process)
            process.release()
            self._does_not_come(refusal)
            return
        while self._session.circuits:
            name, circuit = self._session.circuits.popleft()
            if self._on_circuit is not None:
                self._guarded(self._on_circuit, name, circuit)
        if self._session.finished:
            self._tell()
            self._pump()
        if process.condition == frames.WORN:
            self._replace(process)
        if process.busy and process in self._held:
            self._loop.remove_reader(process.socket)
            self._loop.call_later(BUSY_PAUSE_S, self._hear_again, process)

    def _hear_again(self, process: NodeProcess) -> None:
        if process in self._held and process not in self._dying:
            self._loop.add_reader(process.socket, self._hear, process)
            self._hear(process)

    def _replace(self, worn: NodeProcess) -> None:
        """It is fed until another is ready; then it finishes what it has, and goes."""
        if worn is self._process:
            if self._loop.time() >= self._no_successor_before:
                self._expect()
        elif not worn.jobs and worn in self._held:
            self._let_go(worn)
            worn.release()

    def _heard(self, process: NodeProcess, kind: int, content: Any) -> None:
        if kind == frames.CALL:
            self._in_background(self._answer(process, *content))
        elif kind == frames.LOG:
            self._guarded(self._services.log, *self._session.line(*content))
        else:
            self._session.heard(process, kind, content)
            if kind == frames.READY and process is self._coming:
                self._comes()

    async def _answer(self, process: NodeProcess, name: str, refused: int | None) -> None:
        try:
            async with asyncio.timeout(CONNECTION_TIME_LIMIT_S):
                answer = self._session.told(await self._services.connection(name, refused=refused))
        except Exception as error:
            answer = not_told(name, error)
        if process in self._held:
            self._send(process, frames.frame(frames.REPLY, answer))

    def _tell(self) -> None:
        finished = self._session.finished
        while finished:
            job, outcome = finished.popleft()
            self._guarded(self._on_outcome, job.token, outcome)

    def _guarded(self, call: Callable[..., None], *arguments: Any) -> None:
        """What goes wrong in a caller's function must not take the frames behind it along."""
        try:
            call(*arguments)
        except Exception as error:
            self._loop.call_exception_handler({"message": f"{call!r} failed", "exception": error})

    # -- deaths -------------------------------------------------------------------------------------------

    def _await_obituary(self, process: NodeProcess) -> None:
        """The nursery writes how the process ended as soon as it has seen it. Nothing new goes before that: what
        it had comes first."""
        self._dying.add(process)
        self._loop.remove_reader(process.socket)
        self._loop.remove_writer(process.socket)
        os.set_blocking(process.obituary, False)
        said = bytearray()

        def read() -> None:
            chunk = os.read(process.obituary, 65536)
            said.extend(chunk)
            if not chunk:
                self._died(process, Obituary.unpack(bytes(said)))

        self._loop.add_reader(process.obituary, read)

    def _died(self, process: NodeProcess, obituary: Obituary) -> None:
        was_coming = process is self._coming
        self._let_go(process)
        process.release()
        try:
            self._session.died(process, obituary)
        except BridgeError as error:
            self._does_not_come(error)
            return
        self._tell()
        if was_coming:
            self._expect()
        self._pump()

    def _does_not_come(self, error: BridgeError) -> None:
        """There will be no process: a worn one goes on; without one, that is how everything under way ends."""
        if self._process is not None:
            self._no_successor_before = self._loop.time() + SUCCESSOR_PAUSE_S
            return
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(error)
            return
        if not isinstance(error, Unavailable):
            # It could be built before, so it is not the plan.
            error = Unavailable(f"the plan cannot be built any more: {error.detail}")
        self._session.give_up(error)
        while self._given:
            job = self._given.popleft()
            self._session.finished.append((job, refused(self.plan, job.message, error, job.entry, kept=True)))
        self._tell()
