"""A flow as it is understood, whichever format it was read from. Loaders make it, writers print it, lint
checks it, `plan.compile_flow` turns it into what the engine runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from continuitybridge.flows.ordering import Ordering

END = "end"
"""As a route target: the message leaves the flow here."""
OUT = "out"
"""The port of a node that has only one."""
ERROR = "error"
"""Never a port: the word for the route of failures."""
STREAM = "stream"
"""Mode of a flow whose messages run in resident workers, each as soon as it came."""
BATCH = "batch"
"""Mode of a flow whose messages run in runs of its DAG, many at once."""
MODES = (STREAM, BATCH)
MAX_CONCURRENCY = 10_000
"""Largest `concurrency` that a flow may ask for."""


@dataclass(frozen=True)
class Step:
    """One node of a flow, trigger or not.

    `next` maps a port to the ids it leads to, always explicit after loading (linear defaults resolved):
    `{"out": ("map",)}`; `("end",)` ends there. `on_error` is the step that takes what this node fails on.
    `isolate` makes it a stage of its own. `extra` is what other formats hold of the node and the flow does not
    use (its position on the canvas, say), kept so that converting there and back loses nothing.
    """

    id: str
    type: str
    label: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    next: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    on_error: str | None = None
    isolate: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Flow:
    """One flow. `files` are its side files (relative name → text: XSLT, schemas, lookups). `extra` is what other
    formats hold and the flow does not use; in it `edges` keeps a canvas's edges as they were drawn and `nodes`
    the order of its nodes where that is not the flow's."""

    name: str
    version: str
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    triggers: tuple[Step, ...] = ()
    steps: tuple[Step, ...] = ()
    on_error: str | None = None
    index: Mapping[str, str] = field(default_factory=dict)
    """Search keys a flow declares: name → path into the message body."""
    capture: str = "errors"
    mode: str = ""
    """As declared; empty where the triggers decide (`runs_as`)."""
    concurrency: int | None = None
    """Most messages of it under way at once, over all stream workers; None: as many as there is room for."""
    ordering: Ordering | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def runs_as(self) -> str:
        """The mode of its messages: as declared, else `stream` when a webhook brings them, else `batch`."""
        webhook = any(trigger.type == "webhook_trigger" for trigger in self.triggers)
        return self.mode or (STREAM if webhook else BATCH)

    def nodes(self) -> tuple[Step, ...]:
        return self.triggers + self.steps
