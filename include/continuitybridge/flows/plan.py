"""A plan: what the engine runs and the DAG compiler draws. Compiled from a linted flow version."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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
    node; `upstream` are the stages that hand over to it."""

    id: str
    nodes: tuple[str, ...]
    upstream: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Immutable; equal sources give equal plans and equal `digest` (SHA-256 of the canonical JSON)."""

    flow: str
    version: str
    nodes: dict[str, PlanNode]
    stages: tuple[Stage, ...]
    triggers: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)
    capture: str = "errors"
    index: dict[str, str] = field(default_factory=dict)
    digest: str = ""
