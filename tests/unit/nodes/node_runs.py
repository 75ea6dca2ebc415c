"""Running one node by its declared configuration, as tests do."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from continuitybridge.engine.message import Emit, Message, Resume
from continuitybridge.engine.services import LocalServices
from continuitybridge.nodes import registry
from continuitybridge.nodes.base import AsyncNode, BuildContext, RunContext, WaitNode

Emitted = list[tuple[str, Any]]


def quiet(level: str, text: str, fields: Mapping[str, Any]) -> None:
    """A log that keeps nothing."""


def run(
    node_type: str,
    config: Mapping[str, Any],
    body: Any,
    *,
    headers: Mapping[str, str] | None = None,
    max_nesting_depth: int = 200,
    resume: Resume | None = None,
) -> Emitted:
    """What the node emits for one message: (port, body) in order. An outside call is emulated. With `resume`, what
    it emits for a message that waited there and goes on so."""
    node = registry.build(node_type, config, BuildContext(flow="test", node_id="node"))
    context = RunContext("node", LocalServices(log=quiet), now=time.time(), max_nesting_depth=max_nesting_depth)
    message = Message("m-1", body, dict(headers or {}))
    result: Any
    if resume is not None:
        assert isinstance(node, WaitNode)
        result = node.resume(message, resume, context)
    elif isinstance(node, AsyncNode):
        result = node.emulate(message, context)
    else:
        result = node.process(message, context)
    if result is None:
        return []
    if isinstance(result, Message):
        return [("out", result.body)]
    if isinstance(result, Emit):
        return [(result.port, result.body)]
    return [(emit.port, emit.body) for emit in result]


def body_of(node_type: str, config: Mapping[str, Any], body: Any, **more: Any) -> Any:
    """The body of the one message that leaves by the port `out`."""
    ((port, found),) = run(node_type, config, body, **more)
    assert port == "out"
    return found
