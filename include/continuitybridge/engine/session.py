"""What runs of a plan have in common, whoever waits for their node process: which messages are under way in it,
what is to be sent, what an answer means, and whose doing a death was. Knows no clock, no descriptor and no event
loop: `runner.Runner.run` drives it by blocking, `lane.Lane` from an event loop.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, field, replace
from typing import Any

from continuitybridge.engine import frames, replies
from continuitybridge.engine.circuit import CircuitState
from continuitybridge.engine.destinations import OF_OTHERS, DestinationState
from continuitybridge.engine.limits import Limits, too_large, too_long, too_much_memory
from continuitybridge.engine.message import Failure, Message, NodeTrace, Outcome, Reply
from continuitybridge.engine.nursery import Obituary
from continuitybridge.engine.processes import NodeProcess
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
from continuitybridge.nodes import hidden
from continuitybridge.nodes.base import ConnectionInfo
from continuitybridge.settings import egress_policy

WINDOW_MESSAGES = 256
WINDOW_BYTES = 2 * 1024 * 1024
"""How far ahead of its outcomes a node process is fed."""
FRAME_MESSAGES = 32
MAX_HIDDEN = 500
"""Of so many forms of credentials those that are no more may be forgotten: tokens come and go."""
HIDDEN = "[scrubbed]"
MAX_DEATHS = 3
"""So many processes may die of one message before it fails as a whole."""


@dataclass(slots=True)
class Job:
    """One input message. `token` is its giver's mark."""

    message: Message
    entry: str | None = None
    token: Any = None
    sequence: int = 0
    size: int = 0
    outcome: Outcome | None = None
    """It ended so; its answer is being made."""
    deaths: int = 0
    poison: dict[tuple[str, str], BridgeError] = field(default_factory=dict)


class Session:
    """The messages of one plan in a node process, and in those that follow it when it dies or is worn.

    Its driver takes what to send from `feed`, tells it what it read (`heard`) and how a process ended (`died`),
    and takes each job that ended, with its one outcome, from `finished`, and news of destinations from `circuits`.
    """

    def __init__(
        self,
        plan: Plan,
        limits: Limits,
        *,
        stage: str | None,
        emulate: bool,
        organization: str,
        environment: str,
        concurrency: int,
        destinations: Iterable[DestinationState] | None,
        results: bool,
    ) -> None:
        self.key = (plan.digest, stage, emulate, organization, environment, limits)
        """What a process must have been built for, to serve this session."""
        self.plan = plan
        self.limits = limits
        self.finished: deque[tuple[Job, Outcome]] = deque()
        self.circuits: deque[tuple[str, CircuitState]] = deque()
        """What its processes found of destinations, for the driver to take away."""
        self._destinations = None if destinations is None else {state.name: state for state in destinations}
        self._results = results
        self._stage = stage
        self._emulate = emulate
        self._organization = organization
        self._environment = environment
        self._concurrency = max(1, concurrency)
        self._nodes = list(plan.nodes)
        self._again: deque[Job] = deque()
        self._sequence = 0
        self._lost_while_building = 0
        self._was_built = False
        self._hidden: frozenset[str] = frozenset()
        self._hidden_first: tuple[str, ...] = ()
        """The same, the longest first."""

    @property
    def waiting(self) -> int:
        """Jobs that have to run again."""
        return len(self._again)

    # -- feeding ------------------------------------------------------------------------------------------

    def opening(self, process: NodeProcess) -> bytes:
        """What a process is told before its first work for this session."""
        data = b""
        if process.fresh:
            process.fresh = False
            may_call = egress_policy().to_data()
            plan = (self.plan.to_json(), self._stage, self._emulate, astuple(self.limits), may_call)
            data = frames.frame(frames.PLAN, plan)
        destinations = None
        if self._destinations is not None:
            destinations = [state.to_data() for state in self._destinations.values()]
        run = (self._organization, self._environment, self._concurrency, destinations, self._results)
        return data + frames.frame(frames.RUN, run)

    def destination(self, state: DestinationState) -> bytes:
        """What a process is told when something else is said of a destination from now on."""
        if self._destinations is None:
            self._destinations = {}
        self._destinations[state.name] = state
        return frames.frame(frames.DESTINATION, state.to_data())

    def feed(self, process: NodeProcess, following: Callable[[], Job | None], now: float) -> list[bytes]:
        """The work that `process` has room for, as frames to send: first what has to run again, then what
        `following` gives until it gives None. Ends early when a message was refused at the door, and
        `finished`. `now` in seconds since the epoch."""
        given: list[bytes] = []
        batch: list[tuple[Any, ...]] = []
        under_way = process.jobs
        while not process.alone and not self.finished:
            if self._again:
                suspect = self._again[0].deaths >= MAX_DEATHS - 1
                if suspect and under_way:
                    break
                job: Job | None = self._again.popleft()
                # It was there at so many deaths that it goes alone, to see whether it is their cause.
                process.alone = suspect
            elif len(under_way) < WINDOW_MESSAGES:
                job = following()
                if job is not None:
                    self._number(job)
            else:
                break
            if job is None:
                break
            if under_way and process.bytes_under_way + job.size > WINDOW_BYTES:
                # What waits in the node process takes of the memory its nodes have.
                self._again.appendleft(job)
                break
            packed = self._packed(job)
            if packed is None:
                process.alone = False
                continue
            under_way[job.sequence] = job
            process.bytes_under_way += job.size
            batch.append(packed)
            if len(batch) == FRAME_MESSAGES:
                given.append(frames.frame(frames.WORK, (now, batch)))
                batch = []
        if batch:
            given.append(frames.frame(frames.WORK, (now, batch)))
        return given

    def _number(self, job: Job) -> None:
        body = job.message.body
        job.size = len(body) if isinstance(body, (bytes, str)) else 0
        self._sequence += 1
        job.sequence = self._sequence

    def _packed(self, job: Job) -> tuple[Any, ...] | None:
        """The message in wire form, or None when it is refused at the door."""
        problem: BridgeError | None = refusal(job.message, self.limits)
        if problem is None:
            try:
                return frames.pack_work(job.sequence, job.message, job.entry, job.poison)
            except ValueError:
                problem = InvalidPayload("the message's body is neither bytes, text nor JSON data")
        self.finished.append((job, refused(self.plan, job.message, problem, job.entry)))
        return None

    # -- hearing ------------------------------------------------------------------------------------------

    def heard(self, process: NodeProcess, kind: int, content: Any) -> None:
        """One frame of `process` that is neither a call nor a line of the log. Raises the error with which it
        refuses to build the plan."""
        if kind == frames.OUTCOME:
            sequence, process.condition, answer_follows, *told = content
            outcome = frames.unpack_outcome(process.jobs[sequence].message.id, self._nodes, *told)
            for failure in outcome.failures if self._hidden else ():
                self._hide(failure)
            if answer_follows:
                process.jobs[sequence].outcome = outcome
            else:
                self.finished.append((_left(process, sequence), outcome))
        elif kind == frames.ANSWER:
            sequence, *answer = content
            self._answered(process, sequence, Reply(*answer))
        elif kind == frames.READY:
            process.ready, process.calls_outside = True, content
            self._lost_while_building = 0
            self._was_built = True
        elif kind == frames.CIRCUIT:
            name, *circuit = content
            self._circuit(name, CircuitState(*circuit))
        elif kind == frames.REFUSED:
            raise frames.unpack_error(content)

    def told(self, found: ConnectionInfo) -> tuple[Any, Any]:
        """A connection as a node process gets it. What is told of a failure from then on, or to the log, holds
        nothing of its credential."""
        fresh = hidden.of_connection(found)
        if not self._hidden.issuperset(fresh):
            self._hidden = frozenset({*self._hidden, *fresh} if len(self._hidden) < MAX_HIDDEN else fresh)
            self._hidden_first = tuple(sorted(self._hidden, key=len, reverse=True))
        ends = (found.expires_at, found.token, found.renew_on)
        return (found.name, found.base_url, dict(found.headers), dict(found.auth), *ends), None

    def line(self, level: str, text: str, fields: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
        """A line of the log as it may be written."""
        if not self._hidden:
            return level, text, fields
        hide = self._hidden_first
        return level, hidden.without(text, hide, HIDDEN), hidden.without_any(fields, hide, HIDDEN)

    def _hide(self, failure: Failure) -> None:
        hide = failure.hidden = self._hidden_first
        failure.detail = hidden.without(failure.detail, hide, HIDDEN)
        # By these it is found what the message waits for.
        names: dict[str, Any] = {
            name: failure.facts[name] for name in ("destination", "connection") if name in failure.facts
        }
        failure.facts = {**hidden.without_any(failure.facts, hide, HIDDEN), **names}
        if failure.traceback is not None:
            failure.traceback = hidden.without(failure.traceback, hide, HIDDEN)

    def _circuit(self, name: str, circuit: CircuitState) -> None:
        """A process found that a destination fails, or works again. The process that follows it must know too."""
        if self._destinations is not None:
            others = self._destinations.get(OF_OTHERS) or DestinationState(OF_OTHERS)
            known = self._destinations.get(name) or others.named(name)
            self._destinations[name] = replace(known, circuit=circuit)
        self.circuits.append((name, circuit))

    def _answered(self, process: NodeProcess, sequence: int, reply: Reply) -> None:
        job = _left(process, sequence)
        if job.outcome is not None:
            job.outcome.reply = reply
            self.finished.append((job, job.outcome))

    def _answers_lost(self, process: NodeProcess) -> list[int | None]:
        """What had ended when the process did stays so: it does not run again for its answer. Returns which."""
        ended = [job for job in process.jobs.values() if job.outcome is not None]
        for job in ended:
            self._answered(process, job.sequence, replies.lost(job.message))
        return [job.sequence for job in ended]

    # -- deaths -------------------------------------------------------------------------------------------

    def died(self, process: NodeProcess, obituary: Obituary) -> None:
        """Settle whose doing the death was; whoever else was under way runs again, in the order they came in,
        before anything new. Raises `ConfigurationError` when the plan cannot be built, `Unavailable` when no
        process can be started."""
        answering = self._answers_lost(process)
        if obituary.cause == "not-forked":
            raise Unavailable(f"no node process can be started: {obituary.text}")
        if obituary.building or not process.ready:
            self._died_building(obituary)
        elif process.condition != frames.ENDS and obituary.message not in answering:
            self._blame(process, obituary)
        self._again.extendleft(reversed(process.jobs.values()))
        process.jobs.clear()

    def give_up(self, error: BridgeError) -> None:
        """End all that is to run again with `error`."""
        while self._again:
            job = self._again.popleft()
            self.finished.append((job, refused(self.plan, job.message, error, job.entry, kept=True)))

    def _died_building(self, obituary: Obituary) -> None:
        # What could be built before is not the plan's doing now: that is tried again.
        if not _from_outside(obituary) and not self._was_built:
            node_id = self._nodes[obituary.node]
            why = f"it took longer than {obituary.busy_s:.0f} s" if obituary.cause == "time" else _end(obituary)
            raise ConfigurationError(f"node {node_id!r} cannot be built: {why}", node_id=node_id)
        self._lost_while_building += 1
        if self._lost_while_building == MAX_DEATHS:
            self._lost_while_building = 0
            raise Unavailable(f"no node process can be started: {_end(obituary)}")

    def _blame(self, process: NodeProcess, obituary: Obituary) -> None:
        culprit = process.jobs.get(obituary.message) if obituary.message is not None else None
        if culprit is None:
            # It died between two nodes: one of those that had begun, and it takes them in order.
            begun = self._concurrency if process.calls_outside else 1
            for job in list(process.jobs.values())[:begun]:
                job.deaths += 1
                if job.deaths == MAX_DEATHS:
                    node_id = job.entry or _door(self.plan, job.message)
                    self._fail(_left(process, job.sequence), job.message.id, node_id, _crashed(obituary), 0.0)
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
        if culprit.deaths < MAX_DEATHS and (more_to_do or not process.calls_outside):
            culprit.poison[message_id, node_id] = error
        else:
            self._fail(_left(process, culprit.sequence), message_id, node_id, error, obituary.busy_s)

    def _error(self, obituary: Obituary) -> BridgeError:
        if obituary.cause == "time":
            return too_long(obituary.busy_s, self.limits.node_time_limit_s)
        if obituary.signal == signal.SIGABRT and _speaks_of_memory(obituary.text):
            return too_much_memory(self.limits.node_memory_limit_bytes)
        return _crashed(obituary)

    def _fail(self, job: Job, message_id: str, node_id: str, error: BridgeError, busy_s: float) -> None:
        node_type = self.plan.nodes[node_id].type if node_id in self.plan.nodes else ""
        failure = Failure.of(job.message, node_id, node_type, error)
        failure.message_id = message_id
        if self._hidden:
            self._hide(failure)
        outcome = frames.outcome_of(job.message.id, (), [], [failure], ())
        outcome.trace = [NodeTrace(node_id, 1, 0, 1, round(busy_s * 1e6))]
        self.finished.append((job, outcome))


def _left(process: NodeProcess, sequence: int) -> Job:
    """The job, which is no longer under way there."""
    job: Job = process.jobs.pop(sequence)
    process.bytes_under_way -= job.size
    process.alone = False
    return job


def refusal(message: Message, limits: Limits) -> LimitExceeded | None:
    """Why a message may not even begin: bytes or text beyond the limit. (JSON data was bounded where it left.)"""
    body = message.body
    if isinstance(body, (bytes, str)) and len(body) > limits.max_message_bytes:
        return too_large(len(body), limits.max_message_bytes)
    return None


def refused(
    plan: Plan, message: Message, error: BridgeError, entry: str | None = None, *, kept: bool = False
) -> Outcome:
    """The outcome of a message that may not begin. Its body is `kept` only where it is not what was wrong."""
    failure = Failure.of(message, entry or _door(plan, message), "", error)
    if not kept:
        failure.body = None
    return frames.outcome_of(message.id, (), [], [failure], ())


def _door(plan: Plan, message: Message) -> str:
    return str(message.vars.get("trigger") or next(iter(plan.triggers), ""))


def not_told(name: str, error: Exception) -> tuple[Any, Any]:
    """Why there is none; what went wrong inside a look-up may hold secrets."""
    if not isinstance(error, BridgeError):
        error = Unavailable(f"connection {name!r} cannot be looked up: {type(error).__name__}")
    return None, frames.pack_error(error)


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
