"""A compiled chain: the built nodes of a plan (or of one of its stages) and the walk of one message over them.

Guarantees of a walk, whichever way it is driven (`runner.run`, `runner.run_inline`):

- One message never touches another: whatever a node raises ends as a `Failure` of that message, or goes along
  the node's error route.
- Ids are deterministic. A message that stays one message keeps its id; where it becomes several (a node emits
  several, a port leads to several nodes) they are `<parent>.<n>`, counted from 1 in the order of emission and,
  within one emission, of the port's targets. Walking again gives the same ids.
- Siblings share nothing that can be changed: headers, vars and JSON bodies are copied where paths part.
- An error route is taken at most once per handler on one path, so that a failing handler cannot loop.
- What waits leaves the walk as an output with its wait; groups whose members all come together in it complete in
  it (`groups`).
"""

from __future__ import annotations

import asyncio
import copy
import marshal
import traceback
import types
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from dataclasses import replace
from time import monotonic_ns
from typing import Any, NamedTuple

from continuitybridge.engine.destinations import destination_name
from continuitybridge.engine.gate import Gate
from continuitybridge.engine.groups import Groups
from continuitybridge.engine.index import Index, Search
from continuitybridge.engine.limits import (
    Limits,
    too_deep,
    too_many,
    too_much_memory,
)
from continuitybridge.engine.message import Body, Emit, Failure, Message, Park, Resume, Wait
from continuitybridge.errors import (
    BridgeError,
    ConfigurationError,
    DeliveryFailed,
    DestinationClosed,
    NodeCrashed,
    NodeError,
)
from continuitybridge.flows import graph
from continuitybridge.flows.plan import Plan, PlanNode
from continuitybridge.nodes import registry
from continuitybridge.nodes.base import (
    AnyNode,
    AsyncNode,
    BuildContext,
    RunContext,
    Services,
    TriggerNode,
    WaitNode,
)

MAX_DETAIL_CHARACTERS = 4_000

CLOCK_S = 0.1
"""How exact the time is that nodes see, in seconds."""

Event = tuple[int, int, int, int, int]
"""One visit of a node: its index in the plan, received, emitted, failed, microseconds."""

Poison = Mapping[tuple[str, str], BridgeError]
"""(message id, node id) → what a former try met there; the node is not asked again."""

SLOT_MESSAGE, SLOT_NODE, SLOT_SINCE, SLOT_CHILD = range(4)


_NOT_THE_NODES = (KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)


class Progress:
    """Where the walk stands, for the watchdog. Four unsigned words: which message (its sequence number plus
    one, 0: none), which node, since when (monotonic ns), length of the child's id that `child` holds."""

    __slots__ = ("_child", "slots")

    def __init__(self, slots: Any = None, child: memoryview | None = None) -> None:
        self.slots: Any = [0, 0, 0, 0] if slots is None else slots
        self._child = child

    def enter(self, sequence: int) -> None:
        self.slots[SLOT_CHILD] = 0
        self.slots[SLOT_SINCE] = monotonic_ns()
        self.slots[SLOT_MESSAGE] = sequence + 1

    def leave(self) -> None:
        self.slots[SLOT_MESSAGE] = 0

    def child(self, message_id: str) -> None:
        if self._child is not None:
            text = message_id.encode(errors="replace")[: len(self._child)]
            self._child[: len(text)] = text
            self.slots[SLOT_CHILD] = len(text)


class Route(NamedTuple):
    """Where a port leads: a step of this chain; or node `node_id` of another stage; or out of the plan (neither
    step nor stage), from `node_id`."""

    step: Step | None
    node_id: str
    stage: str | None


class Step:
    """One built node and where its ports lead."""

    __slots__ = (
        "context",
        "counts",
        "destination",
        "id",
        "index",
        "is_async",
        "node",
        "on_error",
        "process",
        "routes",
        "single",
        "stage",
        "timeout_s",
        "type",
    )

    def __init__(self, index: int, planned: PlanNode, node: AnyNode, emulate: bool) -> None:
        self.index = index
        self.id = planned.id
        self.type = planned.type
        self.node = node
        self.stage = planned.stage
        self.counts = 1
        """What the trace counts as received when the step is asked."""
        self.process: Callable[[Message, RunContext], Any] = node.process
        self.is_async = False
        self.timeout_s = 0.0
        self.destination = ""
        if isinstance(node, WaitNode) and emulate:
            self.process = node.emulate
        if isinstance(node, AsyncNode):
            if emulate and node.emulated:
                self.process = node.emulate
            else:
                self.is_async = True
                self.timeout_s = node.timeout_s()
                self.destination = destination_name(*node.calls())
        self.routes: dict[str, tuple[Route, ...]] = {}
        self.single: dict[str, Route] = {}
        """The routes of the ports that lead to one place only."""
        self.on_error: Route | None = None
        self.context: RunContext


class _Resumed(Step):
    """A step that goes on with a message which waited at it: in everything else the step itself."""

    __slots__ = ("repeats", "resume")

    def __init__(self, step: Step, resume: Resume) -> None:
        for name in Step.__slots__:
            setattr(self, name, getattr(step, name))
        node = step.node
        if not isinstance(node, WaitNode):
            raise ConfigurationError(f"no message waits at the node {step.id!r}", node_id=step.id)
        self.resume = resume
        self.repeats = node.repeats
        self.counts = 0
        self.process = lambda message, context: node.resume(message, resume, context)


_Item = tuple[Step, Message, frozenset[str]]
"""A message before a step, and the error handlers already taken on its path."""


class Chain:
    """The nodes of `plan` (of one `stage`, or all), built. Raises `ConfigurationError` naming the node that
    cannot be built."""

    def __init__(
        self,
        plan: Plan,
        *,
        stage: str | None = None,
        emulate: bool = False,
        limits: Limits | None = None,
        before_build: Callable[[int], None] | None = None,
    ) -> None:
        self.plan = plan
        self.stage = stage
        self.emulate = emulate
        self.limits = limits or Limits()
        known = {s.id for s in plan.stages}
        if stage is not None and stage not in known:
            raise ConfigurationError(
                f"the plan has no stage {stage!r}; it has {', '.join(sorted(known))}", stage=stage
            )
        self.steps: dict[str, Step] = {}
        self._leading = _leading(plan)
        for index, planned in enumerate(plan.nodes.values()):
            if stage is None or planned.stage == stage:
                if before_build is not None:
                    before_build(index)
                self.steps[planned.id] = Step(index, planned, self._build(planned), emulate)
        for step in self.steps.values():
            self._connect(step, plan.nodes[step.id])
        self._repliers = self._triggers_that_reply()
        self.index = Index(plan.index)
        self.gate: Gate | None = None
        """What outside calls pass before they begin; None: each may begin at once."""
        self.is_async = any(step.is_async for step in self.steps.values())
        self.gathers = any(isinstance(step.node, WaitNode) for step in self.steps.values())

    def _build(self, planned: PlanNode) -> AnyNode:
        context = BuildContext(
            flow=self.plan.flow,
            node_id=planned.id,
            files=self.plan.files,
            routes=frozenset(planned.next),
            sources=self._leading[planned.id][0] if planned.id in self._leading else None,
            before=self._leading[planned.id][1] if planned.id in self._leading else None,
        )
        return registry.build(planned.type, planned.config, context)

    def _triggers_that_reply(self) -> dict[str, Step]:
        """Those of the whole plan, as a message that came by one may end in any stage."""
        found: dict[str, Step] = {}
        for index, planned in enumerate(self.plan.nodes.values()):
            if planned.id in self.plan.triggers:
                step = self.steps.get(planned.id) or Step(index, planned, self._build(planned), self.emulate)
                if isinstance(step.node, TriggerNode) and step.node.replies:
                    found[planned.id] = step
        return found

    def replier(self, message: Message) -> Step | None:
        """The trigger that answers the caller of this message, if one waits."""
        if not self._repliers:
            return None
        return self._repliers.get(message.vars.get("trigger") or next(iter(self.plan.triggers), ""))

    def _connect(self, step: Step, planned: PlanNode) -> None:
        leaves = Route(None, step.id, None)
        for port, targets in planned.next.items():
            step.routes[port] = tuple(self._route(target) for target in targets) or (leaves,)
        if not step.routes:
            step.routes["out"] = (leaves,)
        step.single = {port: routes[0] for port, routes in step.routes.items() if len(routes) == 1}
        if planned.on_error is not None:
            step.on_error = self._route(planned.on_error)
        reached = {target for ids in planned.next.values() for target in ids} | {planned.on_error or ""}
        if any(_names_origin(self.plan.nodes[target]) for target in reached if target in self.plan.nodes):
            step.process = _telling_origin(step.id, step.process)

    def _route(self, target: str) -> Route:
        step = self.steps.get(target)
        if step is not None:
            return Route(step, target, None)
        planned = self.plan.nodes.get(target)
        if planned is None:
            raise ConfigurationError(f"the plan leads to {target!r}, which is not one of its nodes")
        return Route(None, target, planned.stage)

    def begin(
        self,
        services: Services,
        *,
        now: float,
        organization: str = "",
        environment: str = "",
        gate: Gate | None = None,
    ) -> None:
        """Set what the nodes see of the run that begins, and the `gate` before outside calls. `now` in seconds
        since the epoch."""
        self.gate = gate
        for step in self.steps.values():
            step.context = RunContext(
                node_id=step.id,
                services=services,
                emulate=self.emulate,
                now=now,
                max_emitted=self.limits.max_emitted_messages,
                max_nesting_depth=self.limits.max_nesting_depth,
                flow=self.plan.flow,
                organization=organization,
                environment=environment,
            )

    def tick(self, now: float) -> None:
        """Set the time that nodes see, if it has moved on by more than `CLOCK_S`."""
        for step in self.steps.values():
            if abs(now - step.context.now) < CLOCK_S:
                return
            step.context = replace(step.context, now=now)

    def entries(self, message: Message, entry: str | None) -> tuple[Step, ...]:
        """The steps at which `message` begins: `entry`; else the trigger that `vars["trigger"]` names, or the
        plan's first; in a stage that does not hold the trigger, what of the stage the trigger leads to, or the
        stage's first node. Raises `ConfigurationError` for a node that is not of this chain."""
        if entry is not None:
            return (self._entry(entry, "the entry"),)
        trigger = message.vars.get("trigger")
        if trigger is None and self.plan.triggers:
            trigger = self.plan.triggers[0]
        if trigger is None:
            return (next(iter(self.steps.values())),)
        if trigger not in self.plan.nodes:
            raise ConfigurationError(
                f"the plan has no trigger {trigger!r}; it has {', '.join(self.plan.triggers)}", trigger=trigger
            )
        if self.stage is None or trigger in self.steps:
            return (self._entry(trigger, "the trigger"),)
        targets = [t for ids in self.plan.nodes[trigger].next.values() for t in ids if t in self.steps]
        return tuple(self.steps[t] for t in targets) or (self._entry(self.stage, "the stage"),)

    def _entry(self, node_id: Any, what: str) -> Step:
        step = self.steps.get(node_id) if isinstance(node_id, str) else None
        if step is None:
            of = f"stage {self.stage!r}" if self.stage is not None else "the plan"
            raise ConfigurationError(f"{what} {node_id!r} is not a node of {of}", entry=node_id)
        return step

    async def aclose(self) -> None:
        """Release what the nodes hold of the outside world."""
        for step in self.steps.values():
            if isinstance(step.node, AsyncNode):
                await step.node.aclose()


class Walk:
    """One input message on its way through a chain. After the walk, `outputs` holds (message, the step that gave
    it, node id, stage, wait) as `message.Output` means the last three, `failures` the failures, and `trace()` the
    counts per node."""

    __slots__ = (
        "_beyond",
        "_branched",
        "_events",
        "_groups",
        "_poison",
        "_progress",
        "_search",
        "_sequence",
        "_waiting",
        "chain",
        "failures",
        "out_of_memory",
        "outputs",
        "root",
    )

    def __init__(
        self, chain: Chain, sequence: int, message: Message, progress: Progress, poison: Poison | None = None
    ) -> None:
        self.chain = chain
        self._sequence = sequence
        self.root = message
        self._progress = progress
        self._poison = poison
        self._events: list[Event] = []
        self._branched = False
        self._beyond: dict[int, int] | None = None
        self._waiting: list[_Item] = []
        self._groups: Groups | None = None
        self._search: Search | None = chain.index.search()
        self.outputs: list[tuple[Message, Step, str, str | None, Wait | None]] = []
        self.failures: list[Failure] = []
        self.out_of_memory = False

    # -- driving ------------------------------------------------------------------------------------------

    def run(self, entry: str | None) -> None:
        """Walk a chain without outside calls to its end."""
        self._progress.enter(self._sequence)
        stack = self._start(entry)
        while stack:
            self._advance(stack)
            stack = self._gathered()
        self._progress.leave()

    async def run_async(self, entry: str | None, calls: asyncio.Semaphore) -> None:
        """Walk to the end; `calls` bounds the outside calls under way at once."""
        progress = self._progress
        progress.enter(self._sequence)
        stack = self._start(entry)
        while stack:
            self._advance(stack)
            progress.leave()
            waiting, self._waiting = self._waiting, []
            if not waiting:
                progress.enter(self._sequence)
                stack = self._gathered()
                continue
            answers = (
                [await self._call(waiting[0], calls)]
                if len(waiting) == 1
                else await asyncio.gather(*(self._call(item, calls) for item in waiting))
            )
            progress.enter(self._sequence)
            onward: list[_Item] = []
            # In the order of the messages, not of the answers: outputs and ids stay deterministic.
            for (step, message, taken), (result, error, micros) in zip(waiting, answers, strict=True):
                if error is None:
                    try:
                        onward += self._route(step, message, taken, result, micros)
                        continue
                    except Exception as routing_error:
                        error = routing_error
                handler = self._fail(step, message, taken, error, micros)
                if handler is not None:
                    onward.append(handler)
            stack = onward[::-1]
        progress.leave()

    def mark(self, step: Step, message: Message) -> None:
        """Mark `step` as busy with `message`, outside of its `process`."""
        progress = self._progress
        progress.slots[SLOT_NODE] = step.index
        progress.enter(self._sequence)
        if message.id != self.root.id:
            progress.child(message.id)

    def refuse(self, step: Step, message: Message, error: BridgeError) -> None:
        """Fail an output that must not leave; its body is not kept, it is what was too much."""
        self.failures.append(
            Failure(message.id, step.id, step.type, error.code, error.detail, error.verdict, error.facts, None)
        )

    @property
    def keys(self) -> dict[str, Any]:
        """The search keys found so far."""
        return {} if self._search is None else self._search.found

    def look_for_keys(self, message: Message) -> None:
        """Look for what has not been found in a message that leaves."""
        if self._search is not None:
            self._search.look(message)

    def give_up(self) -> None:
        """Memory did not even suffice to hand over what the walk gave: keep the reason only."""
        self.out_of_memory = True
        message, step = (
            self.outputs[-1][:2] if self.outputs else (self.root, next(iter(self.chain.steps.values())))
        )
        self.outputs.clear()
        self.failures.clear()
        self.refuse(step, message, too_much_memory(self.chain.limits.node_memory_limit_bytes))

    def trace(self) -> list[Event]:
        """One event per visited node, in the order of the first visit."""
        if not self._branched:
            return self._events
        merged: dict[int, list[int]] = {}
        for index, received, emitted, failed, micros in self._events:
            row = merged.get(index)
            if row is None:
                merged[index] = [received, emitted, failed, micros]
            else:
                row[0] += received
                row[1] += emitted
                row[2] += failed
                row[3] += micros
        return [(index, row[0], row[1], row[2], row[3]) for index, row in merged.items()]

    # -- one step -----------------------------------------------------------------------------------------

    def _start(self, entry: str | None) -> list[_Item]:
        message = self.root
        try:
            steps = self.chain.entries(message, entry)
            if message.resume is not None:
                steps = (_Resumed(steps[0], message.resume),)
                message.resume = None
        except ConfigurationError as error:
            where = entry or str(message.vars.get("trigger") or "")
            self.failures.append(_failure(message, where, "", error))
            return []
        none: frozenset[str] = frozenset()
        if self.chain.gathers:
            self._groups = Groups(whole=entry is None, emulate=self.chain.emulate)
        if len(steps) == 1:
            return [(steps[0], message, none)]
        self._branched = True
        if self._groups is not None:
            self._groups.branched(message.id)
        return [
            (step, _child(message, n, message.body, copy_body=n < len(steps)), none)
            for n, step in enumerate(steps, 1)
        ][::-1]

    def _gathered(self) -> list[_Item]:
        """The groups that nothing more can join, as what goes on with them; what they still wait for when there is
        none leaves as waits."""
        if self._groups is None:
            return []
        ready = self._groups.ready(
            (message.id for message, _, _, stage, _ in self.outputs if stage is not None),
            (failure.message_id for failure in self.failures),
        )
        if not ready:
            self.outputs += [(m.message, m.step, m.step.id, m.step.stage, m.wait) for m in self._groups.leave()]
        return [(_Resumed(step, resume), message, frozenset[str]()) for step, message, resume in reversed(ready)]

    def _park(self, step: Step, message: Message, park: Park) -> None:
        if not isinstance(step.node, WaitNode):
            raise NodeError("the node parked a message; only a wait node may")
        message.body = park.body
        self._branched = True  # the node is visited again, which the trace tells as one
        if self._groups is None or not self._groups.hold(step, message, park.wait):
            self.outputs.append((message, step, step.id, step.stage, park.wait))

    def _advance(self, stack: list[_Item]) -> None:
        """Process until nothing is left but messages that wait for an outside call.

        The hot loop: a message that stays one message is followed here from step to step; everything else goes
        by way of `_route`.
        """
        root_id = self.root.id
        poison = self._poison
        events = self._events
        slots = self._progress.slots
        search = self._search
        started = monotonic_ns()
        while stack:
            step, message, taken = stack.pop()
            if message.id != root_id:
                self._progress.child(message.id)
            else:
                slots[SLOT_CHILD] = 0
            while True:
                slots[SLOT_NODE] = step.index
                slots[SLOT_SINCE] = started
                try:
                    if search is not None:
                        search.look(message)
                    if poison is not None and (message.id, step.id) in poison:
                        raise poison[message.id, step.id]
                    if step.is_async:
                        self._waiting.append((step, message, taken))
                        break
                    result = step.process(message, step.context)
                    kind = type(result)
                    if kind is Message:
                        route = step.single.get("out")
                        if route is not None:
                            message = result
                    elif kind is Emit:
                        route = None if result.child else step.single.get(result.port)
                        if route is not None:
                            message.body = result.body
                            if result.vars is not None:
                                message.vars = {**message.vars, **result.vars}
                    else:
                        route = None
                    ended = monotonic_ns()
                    if route is not None:
                        events.append((step.index, step.counts, 1, 0, (ended - started) // 1000))
                        started = ended
                        following, node_id, stage = route
                        if following is not None:
                            step = following
                            continue
                        self.outputs.append((message, step, node_id, stage, None))
                        break
                    onward = self._route(step, message, taken, result, (ended - started) // 1000)
                except BaseException as error:
                    if isinstance(error, _NOT_THE_NODES):
                        raise
                    ended = monotonic_ns()
                    handler = self._fail(step, message, taken, error, (ended - started) // 1000)
                    onward = [] if handler is None else [handler]
                started = ended
                if len(onward) == 1 and onward[0][1] is message:
                    step, message, taken = onward[0]
                    continue
                stack += reversed(onward)
                break

    def _route(self, step: Step, message: Message, taken: frozenset[str], result: Any, micros: int) -> list[_Item]:
        """Where what a node gave back goes on; what leaves the chain is put into `outputs`. Raises `NodeError`
        for a result that is none, or too many."""
        if isinstance(result, Park):
            self._events.append((step.index, step.counts, 0, 0, micros))
            self._park(step, message, result)
            return []
        emits: list[Emit] = []
        if isinstance(result, Message):
            message, emits = result, [Emit(result.body)]
        elif isinstance(result, Emit):
            emits = [result]
        elif result is not None:
            emits = self._collect(step, result)
        ways = [(emit, route) for emit in emits for route in self._routes(step, emit.port)]
        self._count(step, len(ways) - 1)
        self._events.append((step.index, step.counts, len(emits), 0, micros))
        onward: list[_Item] = []
        if len(ways) == 1 and not ways[0][0].child:
            emit, route = ways[0]
            message.body = emit.body
            if emit.vars is not None:
                message.vars = {**message.vars, **emit.vars}
            self._send(message, step, route, taken, onward)
        elif ways:
            self._branched = True
            if self._groups is not None:
                self._groups.branched(message.id)
            seen: set[int] = set()
            for n, (emit, route) in enumerate(ways, 1):
                child = _child(message, n, emit.body, copy_body=id(emit.body) in seen, more_vars=emit.vars)
                seen.add(id(emit.body))
                self._send(child, step, route, taken, onward)
        return onward

    def _send(
        self, message: Message, step: Step, route: Route, taken: frozenset[str], onward: list[_Item]
    ) -> None:
        if route.step is not None:
            onward.append((route.step, message, taken))
        else:
            self.outputs.append((message, step, route.node_id, route.stage, None))

    def _routes(self, step: Step, port: str) -> tuple[Route, ...]:
        routes = step.routes.get(port)
        if routes is None:
            raise NodeError(
                f"the node emitted on port {port!r}, which leads nowhere; it has "
                f"{', '.join(repr(name) for name in step.routes)}",
                port=port,
            )
        return routes

    def _collect(self, step: Step, result: Any) -> list[Emit]:
        if isinstance(result, (str, bytes, Mapping)) or not isinstance(result, Iterable):
            raise NodeError(f"the node gave back a {type(result).__name__}, not a message or emits")
        limit = self.chain.limits.max_emitted_messages
        emits: list[Emit] = []
        for emit in result:
            if not isinstance(emit, Emit):
                raise NodeError(f"the node emitted a {type(emit).__name__}, not an Emit")
            if len(emits) == limit:
                raise too_many(limit)
            emits.append(emit)
        return emits

    def _count(self, step: Step, beyond: int) -> None:
        """Count what a node made of one message beyond the one; splits in a row cannot multiply past the limit."""
        if beyond <= 0:
            return
        if self._beyond is None:
            self._beyond = {}
        total = self._beyond.get(step.index, 0) + beyond
        limit = self.chain.limits.max_emitted_messages
        if total > limit:
            raise too_many(limit)
        self._beyond[step.index] = total

    def _fail(
        self, step: Step, message: Message, taken: frozenset[str], error: BaseException, micros: int
    ) -> _Item | None:
        """Send a failed message along its error route, or record the failure."""
        self._events.append((step.index, step.counts, 0, 1, micros))
        known, stack = self._known(error)
        route = step.on_error
        # A destination that is closed for now is no failure that a route could mend: the message comes back to it.
        closed = isinstance(known, DestinationClosed)
        if closed or route is None or route.node_id in taken or route.step is step:
            if isinstance(step, _Resumed) and not step.repeats:
                message.resume = step.resume
            failure = _failure(message, step.id, step.type, known)
            failure.traceback = stack
            self.failures.append(failure)
            return None
        message.vars = {
            **message.vars,
            "error": {
                "code": known.code,
                "title": known.title,
                "detail": known.detail[:MAX_DETAIL_CHARACTERS],
                "verdict": str(known.verdict),
                "node_id": step.id,
                "node_type": step.type,
                "facts": plain(known.facts),
            },
        }
        self._branched = True
        onward: list[_Item] = []
        self._send(message, step, route, taken | {route.node_id}, onward)
        return onward[0] if onward else None

    def _known(self, error: BaseException) -> tuple[BridgeError, str | None]:
        if isinstance(error, BridgeError):
            return error, None
        limits = self.chain.limits
        if isinstance(error, RecursionError):
            return too_deep(limits.max_nesting_depth), None
        if isinstance(error, MemoryError):
            self.out_of_memory = True
            return too_much_memory(limits.node_memory_limit_bytes), None
        stack = "".join(traceback.format_exception(error, limit=-12))[-8 * MAX_DETAIL_CHARACTERS :]
        detail = f"{type(error).__name__}: {error}"[:MAX_DETAIL_CHARACTERS]
        # What is no Exception comes from a library in another language that lost its footing (a Rust panic).
        return (NodeError(detail) if isinstance(error, Exception) else NodeCrashed(detail)), stack

    # -- outside calls ------------------------------------------------------------------------------------

    async def _call(self, item: _Item, calls: asyncio.Semaphore) -> tuple[Any, BaseException | None, int]:
        step, message, _ = item
        gate = self.chain.gate if step.destination else None
        if gate is not None:
            try:
                await gate.enter(step.destination)
            except DestinationClosed as closed:
                return None, closed, 0
        error: BaseException | None = asyncio.CancelledError()
        started = monotonic_ns()
        try:
            async with calls:
                started = monotonic_ns()
                result, error = await self._answer(step, message)
        finally:
            if gate is not None:
                gate.leave(step.destination, error)
        return result, error, (monotonic_ns() - started) // 1000

    async def _answer(self, step: Step, message: Message) -> tuple[Any, BaseException | None]:
        task = asyncio.ensure_future(self._outside(step, message))
        done, _ = await asyncio.wait((task,), timeout=step.timeout_s)
        if not done:
            # Not awaited any longer: a call that ignores its cancellation must not hold the message.
            task.cancel()
            return None, _timed_out(step)
        if task.cancelled():
            return None, NodeError("the node's call was cancelled")
        error = task.exception()
        return (None, error) if error is not None else (task.result(), None)

    async def _outside(self, step: Step, message: Message) -> Any:
        return await _marked(self._awaited(step, message), self, step, message)

    async def _awaited(self, step: Step, message: Message) -> Any:
        try:
            result = await step.process(message, step.context)
        except SystemExit as error:  # asyncio would end the loop for it
            raise NodeError("the node asked the process to end") from error
        if result is None or isinstance(result, (Message, Emit, Park)):
            return result
        return self._collect(step, result)


@types.coroutine
def _marked(awaitable: Awaitable[Any], walk: Walk, step: Step, message: Message) -> Generator[Any, Any, Any]:
    """Await, with the node marked as busy while its own code runs and as idle while it waits: a program that
    blocks the loop is found by the watchdog, a slow destination is not."""
    progress = walk._progress
    steps = awaitable.__await__()
    send: Callable[[Any], Any] = steps.send
    argument: Any = None
    while True:
        walk.mark(step, message)
        try:
            waits_for = send(argument)
        except StopIteration as stop:
            return stop.value
        finally:
            progress.leave()
        send, argument = steps.send, None
        try:
            argument = yield waits_for
        except BaseException as error:
            send, argument = steps.throw, error


def _leading(plan: Plan) -> dict[str, tuple[tuple[str, ...], frozenset[str]]]:
    edges = {
        node.id: [*{target: None for ids in node.next.values() for target in ids}, *filter(None, [node.on_error])]
        for node in plan.nodes.values()
    }
    return graph.leading(edges, {node.id: node.type for node in plan.nodes.values()})


def _names_origin(planned: PlanNode) -> bool:
    found: Any = registry.get(planned.type)
    return bool(issubclass(found, WaitNode) and found.names_origin)


def _telling_origin(step_id: str, process: Callable[[Message, RunContext], Any]) -> Callable[..., Any]:
    """`process`, leaving with the message that it passed this step."""

    def told(message: Message, context: RunContext) -> Any:
        message.vars = {**message.vars, "from": step_id}
        return process(message, context)

    return told


def _timed_out(step: Step) -> DeliveryFailed:
    return DeliveryFailed(f"the node did not end within its {step.timeout_s:g} s", timeout_s=step.timeout_s)


def _failure(message: Message, node_id: str, node_type: str, error: BridgeError) -> Failure:
    failure = Failure.of(message, node_id, node_type, error)
    failure.detail = failure.detail[:MAX_DETAIL_CHARACTERS]
    return failure


def _child(
    parent: Message, n: int, body: Body, *, copy_body: bool, more_vars: Mapping[str, Any] | None = None
) -> Message:
    variables = _copied(parent.vars) if parent.vars else {}
    if more_vars is not None:
        variables.update(more_vars)
    return Message(
        f"{parent.id}.{n}",
        _copied(body) if copy_body else body,
        dict(parent.headers),
        variables,
        parent.generation,
    )


def copy_of(message: Message) -> Message:
    """The message, sharing nothing that can be changed."""
    return Message(
        message.id,
        _copied(message.body),
        dict(message.headers),
        _copied(message.vars),
        message.generation,
        message.resume,
    )


def _copied(value: Any) -> Any:
    if type(value) is not dict and type(value) is not list:
        return value
    try:
        return marshal.loads(marshal.dumps(value))  # noqa: S302  (our own bytes; the fastest deep copy)
    except ValueError:
        return copy.deepcopy(value)


def plain(value: Any, depth: int = 8) -> Any:
    """`value` as JSON data, for error facts: what is not, becomes its (shortened) text."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str(value[:MAX_DETAIL_CHARACTERS])
    if depth and isinstance(value, Mapping):
        return {str(key)[:200]: plain(item, depth - 1) for key, item in list(value.items())[:100]}
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item, depth - 1) for item in list(value)[:100]]
    try:
        return repr(value)[:200]
    except Exception:
        return f"<{type(value).__name__}>"
