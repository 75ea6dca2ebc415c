"""Nodes as a plan has them: built once with side files and routes, then asked message by message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from continuitybridge.engine.message import Emit, Message
from continuitybridge.engine.services import LocalServices
from continuitybridge.errors import ConfigurationError, NodeError
from continuitybridge.nodes import registry
from continuitybridge.nodes.base import AsyncNode, BuildContext, RunContext

JSON_TYPES = (dict, list, str, int, float, bool, type(None))


class Built:
    """One built node. `lines` is what it logged, `message` the message as it left."""

    def __init__(
        self,
        node_type: str,
        config: Mapping[str, Any],
        *,
        files: Mapping[str, str] | None = None,
        routes: Iterable[str] = ("out",),
    ) -> None:
        context = BuildContext("test", "node", dict(files or {}), frozenset(routes))
        self.node = registry.build(node_type, config, context)
        self.lines: list[tuple[str, str, Mapping[str, Any]]] = []
        services = LocalServices(log=lambda *line: self.lines.append(line))
        self.context = RunContext("node", services)
        self.message: Message

    def emits(
        self, body: Any, *, headers: Mapping[str, str] | None = None, variables: Mapping[str, Any] | None = None
    ) -> list[tuple[str, Any]]:
        """(port, body) of everything that comes out."""
        self.message = Message("m-1", body, dict(headers or {}), dict(variables or {}))
        process = self.node.emulate if isinstance(self.node, AsyncNode) else self.node.process
        result = process(self.message, self.context)
        if result is None:
            return []
        if isinstance(result, Message):
            return [("out", result.body)]
        if isinstance(result, Emit):
            return [(result.port, result.body)]
        return [(emit.port, emit.body) for emit in result]

    def one(self, body: Any, **more: Any) -> Any:
        """The body of the one message that leaves by `out`."""
        ((port, found),) = self.emits(body, **more)
        assert port == "out"
        return found

    def fails(self, body: Any, **more: Any) -> NodeError:
        """How it fails on a message."""
        with pytest.raises(NodeError) as failed:
            list(self.emits(body, **more))
        return failed.value


def problems(node_type: str, config: Mapping[str, Any], **more: Any) -> dict[str, str]:
    """What is wrong with a configuration: field → message."""
    with pytest.raises(ConfigurationError) as refused:
        Built(node_type, config, **more)
    return {problem["field"]: problem["message"] for problem in refused.value.facts["problems"]}


def problem(node_type: str, config: Mapping[str, Any], **more: Any) -> str:
    """The one thing that is wrong with a configuration, as `field: message`."""
    ((field, message),) = problems(node_type, config, **more).items()
    return f"{field}: {message}"


def is_json_data(value: Any) -> bool:
    """Whether a body is of the data model, all the way down."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_json_data(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_json_data, value))
    return isinstance(value, JSON_TYPES)
