"""The walk of one message over a compiled chain.

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
import traceback
from collections.abc import Iterable, Mapping
from time import monotonic_ns
from typing import Any

from continuitybridge.engine.calls import Calls
from continuitybridge.engine.chain import Chain, Resumed, Route, Step
from continuitybridge.engine.copies import MAX_DETAIL_CHARACTERS, child_of, plain
from continuitybridge.engine.groups import Groups
from continuitybridge.engine.index import Search
from continuitybridge.engine.limits import too_deep, too_many, too_much_memory
from continuitybridge.engine.message import Emit, Failure, Message, Park, Wait
from continuitybridge.engine.progress import SLOT_CHILD, SLOT_NODE, SLOT_SINCE, Progress
from continuitybridge.errors import (
    BridgeError,
    ConfigurationError,
    DestinationClosed,
    NodeCrashed,
    NodeError,
)
from continuitybridge.nodes.base import (
    WaitNode,
)

Event = tuple[int, int, int, int, int]
"""One visit of a node: its index in the plan, received, emitted, failed, microseconds."""

Poison = Mapping[tuple[str, str], BridgeError]
"""(message id, node id) → what a former try met there; the node is not asked again."""

_NOT_THE_NODES = (KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)

_Item = tuple[Step, Message, frozenset[str]]
"""A message before a step, and the error handlers already taken on its path."""


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
        "_search",
        "_sequence",
        "_waiting",
        "chain",
        "failures",
        "out_of_memory",
        "outputs",
        "progress",
        "root",
    )

    def __init__(
        self, chain: Chain, sequence: int, message: Message, progress: Progress, poison: Poison | None = None
    ) -> None:
        self.chain = chain
        self._sequence = sequence
        self.root = message
        self.progress = progress
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
        self.progress.enter(self._sequence)
        stack = self._start(entry)
        while stack:
            self._advance(stack)
            stack = self._gathered()
        self.progress.leave()

    async def run_async(self, entry: str | None, calls: Calls) -> None:
        """Walk to the end, with outside calls through `calls`."""
        progress = self.progress
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
                [await calls.call(self, waiting[0][0], waiting[0][1])]
                if len(waiting) == 1
                else await asyncio.gather(*(calls.call(self, item[0], item[1]) for item in waiting))
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
        progress = self.progress
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
                steps = (Resumed(steps[0], message.resume, self.chain.limits),)
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
            (step, child_of(message, n, message.body, copy_body=n < len(steps)), none)
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
        limits = self.chain.limits
        return [(Resumed(step, how, limits), message, frozenset()) for step, message, how in reversed(ready)]

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
        slots = self.progress.slots
        search = self._search
        started = monotonic_ns()
        while stack:
            step, message, taken = stack.pop()
            if message.id != root_id:
                self.progress.child(message.id)
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
            emits = self.collect(step, result)
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
                child = child_of(message, n, emit.body, copy_body=id(emit.body) in seen, more_vars=emit.vars)
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

    def collect(self, step: Step, result: Any) -> list[Emit]:
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
            if isinstance(step, Resumed) and not step.repeats:
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


def _failure(message: Message, node_id: str, node_type: str, error: BridgeError) -> Failure:
    failure = Failure.of(message, node_id, node_type, error)
    failure.detail = failure.detail[:MAX_DETAIL_CHARACTERS]
    return failure
