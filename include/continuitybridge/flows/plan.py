"""A plan: what the engine runs and the DAG compiler draws. Compiled from a linted flow version."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

import orjson

from continuitybridge.errors import ConfigurationError
from continuitybridge.flows import graph
from continuitybridge.flows.model import BATCH, END, Flow
from continuitybridge.flows.ordering import Ordering


@dataclass(frozen=True, slots=True)
class PlanNode:
    """`next` maps a port to node ids (empty tuple: the message leaves the plan there); `on_error` is already
    resolved (node's own route, else the flow's, else None)."""

    id: str
    type: str
    label: str
    config: dict[str, Any]
    next: dict[str, tuple[str, ...]]
    on_error: str | None
    stage: str


@dataclass(frozen=True, slots=True)
class Stage:
    """Nodes that run in one process without a hand-over, in topological order. `id` is the id of its first
    step (of its first trigger where it holds nothing else); `upstream` are the stages that hand over to it."""

    id: str
    nodes: tuple[str, ...]
    upstream: tuple[str, ...]


_AS_BEFORE: dict[str, Any] = {"mode": BATCH, "concurrency": None, "ordering": None}
"""Keys that plans had not from the beginning, and what was so without them. They are left out where they say that:
a plan that an older release stored is read, and is the same plan still."""


@dataclass(frozen=True)
class Plan:
    """Immutable; equal sources give equal plans and equal `digest` (SHA-256 of the canonical JSON).

    `nodes` and `stages` are in topological order. All triggers stand in the first stage, so that every message
    enters there, whichever trigger it comes from. The order of keys inside a node's configuration carries
    meaning (a conditional takes the first branch that holds): a store that reorders keys, such as `jsonb`,
    must not hold a plan, and `from_json` refuses one that came out of it.
    """

    flow: str
    version: str
    nodes: dict[str, PlanNode]
    stages: tuple[Stage, ...]
    triggers: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)
    mode: str = BATCH
    concurrency: int | None = None
    ordering: Ordering | None = None
    capture: str = "errors"
    index: dict[str, str] = field(default_factory=dict)
    digest: str = ""

    def to_json(self) -> str:
        """The canonical JSON: one text for equal plans, `digest` last."""
        return orjson.dumps({**self._content(), "digest": self.digest}).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """The plan `to_json` wrote; `ConfigurationError` for any other text, an altered plan included."""
        try:
            data = orjson.loads(text)
            plan = cls(
                flow=data["flow"],
                version=data["version"],
                nodes={
                    node["id"]: PlanNode(
                        id=node["id"],
                        type=node["type"],
                        label=node["label"],
                        config=node["config"],
                        next={port: tuple(targets) for port, targets in node["next"].items()},
                        on_error=node["on_error"],
                        stage=node["stage"],
                    )
                    for node in data["nodes"]
                },
                stages=tuple(
                    Stage(stage["id"], tuple(stage["nodes"]), tuple(stage["upstream"])) for stage in data["stages"]
                ),
                triggers=tuple(data["triggers"]),
                files=data["files"],
                mode=data.get("mode", BATCH),
                concurrency=data.get("concurrency"),
                ordering=Ordering(**ordering) if (ordering := data.get("ordering")) else None,
                capture=data["capture"],
                index=data["index"],
                digest=data["digest"],
            )
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"this is not a plan: {error}", field="plan") from None
        if plan._computed_digest() != plan.digest:
            raise ConfigurationError(
                f"the plan of {plan.flow} {plan.version} is not as it was compiled: its digest does not fit",
                field="digest",
                value=plan.digest,
            )
        return plan

    def leading_to(self, node_id: str) -> list[str]:
        """The node and all from which messages can come to it, by errors too."""
        found = graph.reachable(self._back, [node_id])
        return [node for node in self.nodes if node in found]

    @cached_property
    def edges(self) -> dict[str, list[str]]:
        """Node id → the ids it leads to, by any port or by error, each once and in order."""
        return {
            node.id: list(
                dict.fromkeys([*chain.from_iterable(node.next.values()), *filter(None, [node.on_error])])
            )
            for node in self.nodes.values()
        }

    @cached_property
    def _back(self) -> dict[str, list[str]]:
        back: dict[str, list[str]] = {node: [] for node in self.nodes}
        for node, targets in self.edges.items():
            for target in targets:
                back.setdefault(target, []).append(node)
        return back

    def _content(self) -> dict[str, Any]:
        later = {"mode": self.mode, "concurrency": self.concurrency, "ordering": self.ordering}
        return {
            "flow": self.flow,
            "version": self.version,
            **{key: value for key, value in later.items() if value != _AS_BEFORE[key]},
            "capture": self.capture,
            "index": self.index,
            "triggers": self.triggers,
            "stages": self.stages,
            "nodes": list(self.nodes.values()),
            "files": self.files,
        }

    def _computed_digest(self) -> str:
        return hashlib.sha256(orjson.dumps(self._content())).hexdigest()


def compile_flow(flow: Flow) -> Plan:
    """Resolve error routes and chain neighbours into stages.

    Steps share a stage unless one of them is isolated or a step between them is; steps that nothing connects
    inside a stage are stages apart. `flow` has been linted; what no plan could hold (a circle, two nodes of
    one id, a route to nowhere) raises `ConfigurationError` all the same.
    """
    nodes = flow.nodes()
    errors = graph.error_routes(flow)
    edges = graph.edges(nodes, errors)
    for source, targets in edges.items():
        for target in targets:
            if target not in edges:
                raise ConfigurationError(
                    f"step {source!r} leads to {target!r}, which does not exist", field="next", value=target
                )
    if len(edges) != len(nodes):
        raise ConfigurationError("two nodes have the same id", field="id")
    order = graph.topological(edges)
    if order is None:
        raise ConfigurationError("the flow runs in a circle", field="next", value=graph.circles(edges))
    stages = _stages(flow, edges, order)
    stage_of = {node: stage.id for stage in stages for node in stage.nodes}
    by_id = {node.id: node for node in nodes}
    plan = Plan(
        flow=flow.name,
        version=flow.version,
        nodes={
            node_id: PlanNode(
                id=node_id,
                type=(node := by_id[node_id]).type,
                label=node.label,
                config=dict(node.config),
                next={
                    port: tuple(target for target in targets if target != END)
                    for port, targets in node.next.items()
                },
                on_error=errors.get(node_id),
                stage=stage_of[node_id],
            )
            for node_id in order
        },
        stages=stages,
        triggers=tuple(trigger.id for trigger in flow.triggers),
        files=dict(sorted(flow.files.items())),
        mode=flow.runs_as,
        concurrency=flow.concurrency,
        ordering=flow.ordering,
        capture=flow.capture,
        index=dict(flow.index),
    )
    return replace(plan, digest=plan._computed_digest())


def _stages(flow: Flow, edges: dict[str, list[str]], order: list[str]) -> tuple[Stage, ...]:
    """Number the hand-overs on the longest way to each node; what has the same number and hangs together is a
    stage. An edge between stages leads to a higher number, hence stages never wait for each other in a circle."""
    isolated = {step.id for step in flow.steps if step.isolate}
    level = dict.fromkeys(order, 0)
    group = {node: node for node in order}

    def head(node: str) -> str:
        while group[node] != node:
            group[node] = node = group[group[node]]
        return node

    for source in order:
        for target in edges[source]:
            level[target] = max(level[target], level[source] + (source in isolated or target in isolated))
    for source in order:
        for target in edges[source]:
            if level[source] == level[target]:
                group[head(target)] = head(source)
    triggers = [trigger.id for trigger in flow.triggers]
    first = triggers[:1]
    begins = dict.fromkeys(target for trigger in triggers for target in edges[trigger])
    # One isolated step behind all triggers, and behind nothing else: they join it rather than cost a stage that
    # only hands over.
    entered = {target for source in order if source not in triggers for target in edges[source]}
    joined = next(iter(begins)) if len(begins) == 1 and entered.isdisjoint(begins) else None
    for node in triggers[1:] + ([joined] if joined else []):
        group[head(node)] = head(first[0])

    members: dict[str, list[str]] = {}
    for node in order:
        members.setdefault(head(node), []).append(node)
    ranked = sorted(members.values(), key=lambda nodes: level[nodes[0]])
    trigger_set = set(triggers)
    names = [next((node for node in nodes if node not in trigger_set), nodes[0]) for nodes in ranked]
    name_of = {node: name for name, nodes in zip(names, ranked, strict=True) for node in nodes}
    upstream: dict[str, set[str]] = {name: set() for name in names}
    for source, targets in edges.items():
        for target in targets:
            if name_of[source] != name_of[target]:
                upstream[name_of[target]].add(name_of[source])
    return tuple(
        Stage(name, tuple(nodes), tuple(other for other in names if other in upstream[name]))
        for name, nodes in zip(names, ranked, strict=True)
    )
