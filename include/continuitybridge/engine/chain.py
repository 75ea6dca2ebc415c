"""A compiled chain: the built nodes of a plan (or of one of its stages), and where their ports lead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from continuitybridge.engine.destinations import destination_name
from continuitybridge.engine.gate import Gate
from continuitybridge.engine.index import Index
from continuitybridge.engine.limits import Limits, too_large_together
from continuitybridge.engine.message import TOO_LARGE, Message, Resume
from continuitybridge.errors import (
    ConfigurationError,
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

CLOCK_S = 0.1
"""How exact the time is that nodes see, in seconds."""


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


class Resumed(Step):
    """A step that goes on with a message which waited at it: in everything else the step itself."""

    __slots__ = ("repeats", "resume")

    def __init__(self, step: Step, resume: Resume, limits: Limits) -> None:
        for name in Step.__slots__:
            setattr(self, name, getattr(step, name))
        node = step.node
        if not isinstance(node, WaitNode):
            raise ConfigurationError(f"no message waits at the node {step.id!r}", node_id=step.id)
        self.resume = resume
        self.repeats = node.repeats
        self.counts = 0

        def process(message: Message, context: RunContext) -> Any:
            if resume.how == TOO_LARGE:
                raise too_large_together(limits)
            return node.resume(message, resume, context)

        self.process = process


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


def _leading(plan: Plan) -> dict[str, tuple[tuple[str, ...], frozenset[str]]]:
    return graph.leading(plan.edges, {node.id: node.type for node in plan.nodes.values()})


def _names_origin(planned: PlanNode) -> bool:
    found: Any = registry.get(planned.type)
    return bool(issubclass(found, WaitNode) and found.names_origin)


def _telling_origin(step_id: str, process: Callable[[Message, RunContext], Any]) -> Callable[..., Any]:
    """`process`, leaving with the message that it passed this step."""

    def told(message: Message, context: RunContext) -> Any:
        message.vars = {**message.vars, "from": step_id}
        return process(message, context)

    return told
