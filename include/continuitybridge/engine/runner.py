"""Runs plans: in killable child processes (`run`, `Runner`), or in this one (`run_inline`).

Guarantees of `run`, for each input message: exactly one `Outcome`, yielded as soon as the message is finished.
Whatever a node does (raises, loops for ever, takes all memory, ends its process) becomes a typed failure of the
message it did it with; the messages beside it are finished. Where that stops: when a node process dies, the
unfinished messages beside the culprit run again from their entry, so an outside call one of them had made is
made again, with the same idempotency key. When the caller's own process dies, its node processes die with it and
nothing is told of what was under way.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from continuitybridge.engine import frames
from continuitybridge.engine.circuit import CircuitState
from continuitybridge.engine.destinations import DestinationState
from continuitybridge.engine.inline import run_inline as run_inline
from continuitybridge.engine.limits import Limits
from continuitybridge.engine.message import Message, Outcome
from continuitybridge.engine.processes import IDLE_CHILDREN, NodeProcess, Pool, Start
from continuitybridge.engine.session import Job, Session, not_told
from continuitybridge.flows.plan import Plan
from continuitybridge.nodes.base import Services

BATCH_PAUSE_S = 0.002
"""How long outcomes of a busy process come together: longer than where each is awaited
(`processes.BUSY_PAUSE_S`), and so short that the process does not run out of messages."""

OnCircuit = Callable[[str, CircuitState], None]
"""Takes the name of a destination and what its circuit is by now."""


def _nobody(name: str, circuit: CircuitState) -> None:
    """Hears it and does nothing."""


class Runner:
    """A pool of node processes. Each holds one built plan of one organization and environment and is kept for the
    next run of it; the `idle_children` used last are kept. Use as a context manager, or `close` it.

    May be used from several threads: each run has a process of its own while it lasts. After a fork the copy
    starts afresh; the node processes stay the original's.
    """

    def __init__(self, *, start: Start = "auto", idle_children: int = IDLE_CHILDREN) -> None:
        self.processes = Pool(start, idle_children)

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def warm(self, plan: Plan | None = None) -> None:
        """Start the nursery, and let it import what the plan's nodes need. Returns at once."""
        self.processes.warm(plan)

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
        destinations: Iterable[DestinationState] | None = None,
        on_circuit: OnCircuit = _nobody,
        results: bool = True,
    ) -> Iterator[Outcome]:
        """Run `messages` through `plan` (or its `stage`), one `Outcome` per message as each completes.

        `messages` is consumed as room comes up (at most `WINDOW_MESSAGES` ahead), so it may be a generator.
        `entry` maps a message id to the node it begins at; `concurrency` bounds the messages under way at once
        where nodes wait for the outside world. Under `emulate` no node calls outside. `services` are asked while
        the caller waits for the next outcome: a node that needs a connection waits for a caller that does not.
        Closing the iterator early ends what is under way. `destinations`: what is said of those that the plan's
        nodes may call, and may not call now (a call then fails with `DestinationClosed`); None lets every call
        begin. `on_circuit` is called, before the outcome that showed it, when a destination failed so often that
        its circuit opens, or when it closes.

        Raises `ConfigurationError` when the plan cannot be built, `Unavailable` when no process can be started.
        """
        session = Session(
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
        drive = _Drive(self.processes, session, services, iter(messages), dict(entry or {}), on_circuit)
        try:
            yield from drive.outcomes()
        finally:
            drive.end()

    def close(self) -> None:
        """End all node processes and the nursery. Runs under way in other threads end with `Unavailable`."""
        self.processes.close()


class _Drive:
    """One run: moves what its session sends and hears, and waits."""

    def __init__(
        self,
        processes: Pool,
        session: Session,
        services: Services,
        source: Iterator[Message],
        entry: dict[str, str],
        on_circuit: OnCircuit,
    ) -> None:
        self._processes = processes
        self._session = session
        self._services = services
        self._source = source
        self._entry = entry
        self._on_circuit = on_circuit
        self._more = True
        self._now = time.time()
        self._process: NodeProcess | None = None
        self._first: Job | None = None

    def outcomes(self) -> Iterator[Outcome]:
        session = self._session
        while True:
            self._feed()
            while session.circuits:
                self._on_circuit(*session.circuits.popleft())
            while session.finished:
                yield session.finished.popleft()[1]
            if self._process is not None and self._process.jobs:
                self._hear(self._process)
            elif not self._more and not session.waiting:
                return

    def end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.jobs or process.unsent or not process.ready:
            self._processes.kill(process)
        elif process.condition != frames.FIT:
            process.release()
        else:
            self._processes.give_back(process)

    def _feed(self) -> None:
        process = self._process
        if process is not None and process.condition != frames.FIT:
            # Worn: it finishes what it has, and another takes over.
            if process.jobs:
                return
            process.release()
            process = self._process = None
        if process is None:
            # Not before there is something to do.
            if self._first is None and not self._session.waiting:
                self._first = self._next()
                if self._first is None:
                    return
            process = self._process = self._take()
        for data in self._session.feed(process, self._next, self._now):
            process.send(data)

    def _take(self) -> NodeProcess:
        session = self._session
        process = self._processes.take(session.key, session.plan, session.limits)
        process.send(session.opening(process))
        return process

    def _next(self) -> Job | None:
        first, self._first = self._first, None
        if first is not None:
            return first
        message = next(self._source, None) if self._more else None
        if message is None:
            self._more = False
            return None
        return Job(message, self._entry.get(message.id))

    def _hear(self, process: NodeProcess) -> None:
        if process.busy:
            time.sleep(BATCH_PAUSE_S)
        data = process.wait()
        if data is None:
            self._process = None
            obituary = process.read_obituary()
            process.release()
            self._session.died(process, obituary)
            return
        for kind, content in process.reader.feed(data):
            if kind == frames.CALL:
                process.send(frames.frame(frames.REPLY, self._connection(*content)))
            elif kind == frames.LOG:
                self._services.log(*self._session.line(*content))
            else:
                self._session.heard(process, kind, content)

    def _connection(self, name: str, refused: int | None) -> tuple[Any, Any]:
        try:
            return self._session.told(self._services.connection(name, refused=refused))
        except Exception as error:
            return not_told(name, error)


# -- the module's own runner ------------------------------------------------------------------------------

_default = Runner()
atexit.register(_default.close)

run = _default.run
"""`Runner.run` on a runner that lives as long as this process."""
close = _default.close
"""End the node processes that `run` keeps for the next run. A later `run` starts afresh."""
