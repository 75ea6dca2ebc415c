"""The node types that flows are made of, as their files declare them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from continuitybridge.nodes import describe, registry
from continuitybridge.organizations.access import CallerDep
from continuitybridge.organizations.matrix import Action, needs

router = APIRouter(prefix="/node-types", tags=["node types"])


class NodeType(BaseModel):
    """A node type in a listing."""

    type: str
    category: str
    label: str
    summary: str


class NodeExample(BaseModel):
    """A runnable example: what goes in, what comes out, or the code of the error it fails with."""

    title: str
    config: dict[str, Any]
    input: Any
    output: Any
    fails: str | None


class NodeTypeDetail(NodeType):
    """A node type with its documentation (Markdown), the JSON Schema of its configuration and its examples."""

    documentation: str
    config_schema: dict[str, Any]
    examples: list[NodeExample]


@router.get("", summary="All node types", openapi_extra=needs(Action.REFERENCE_READ))
def list_types(_: CallerDep) -> list[NodeType]:
    return [
        NodeType(type=name, category=node.category, label=node.label, summary=node.summary)
        for name, node in registry.node_types().items()
    ]


@router.get("/{type}", summary="A node type", openapi_extra=needs(Action.REFERENCE_READ))
def show_type(_: CallerDep, type: str) -> NodeTypeDetail:
    node = registry.get(type)
    return NodeTypeDetail(
        type=type,
        category=node.category,
        label=node.label,
        summary=node.summary,
        documentation=describe.documentation(node),
        config_schema=describe.schema(node),
        examples=[
            NodeExample(
                title=e.title, config=dict(e.config), input=_plain(e.input), output=_plain(e.output), fails=e.fails
            )
            for e in node.examples
        ],
    )


@router.get(
    "/{type}/schema",
    summary="The JSON Schema (2020-12) of a node type's configuration",
    openapi_extra=needs(Action.REFERENCE_READ),
)
def show_schema(_: CallerDep, type: str) -> dict[str, Any]:
    return describe.schema(registry.get(type))


def _plain(value: Any) -> Any:
    """An example's body as JSON has it: bytes as text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
