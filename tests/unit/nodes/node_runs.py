"""Running one node by its declared configuration, as tests do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from continuitybridge.engine.message import Emit, Message
from continuitybridge.engine.services import LocalServices
from continuitybridge.nodes import registry
from continuitybridge.nodes.base import AsyncNode, BuildContext, RunContext

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
) -> Emitted:
    """What the node emits for one message: (port, body) in order. An outside call is emulated."""
    node = registry.build(node_type, config, BuildContext(flow="test", node_id="node"))
    context = RunContext("node", LocalServices(log=quiet), max_nesting_depth=max_nesting_depth)
    message = Message("m-1", body, dict(headers or {}))
    result = node.emulate(message, context) if isinstance(node, AsyncNode) else node.process(message, context)
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
