"""The node `filter`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from continuitybridge.engine.message import Message
from continuitybridge.nodes.base import BuildContext, Example, Node, NodeConfig, RunContext, hints
from continuitybridge.nodes.language.condition import Condition


class FilterConfig(NodeConfig):
    """Configuration of `filter`."""

    where: str = Field(
        min_length=1,
        description="jq expression; messages for which it holds are kept. It sees the body as `.`, and "
        "`$headers`, `$vars` and `$message`.",
        json_schema_extra=hints(language="jq", placeholder=".total > 0"),
    )


class Filter(Node[FilterConfig]):
    """A dropped message is settled as done, not failed: the node's trace counts it as received and not emitted.
    The expression holds when its first output is neither `false` nor `null`, and fails the message when jq
    fails on it. Where both kinds of messages have somewhere to go, use `conditional`.
    """

    type = "filter"
    category = "route"
    label = "Filter"
    summary = "Keeps the messages for which an expression holds and drops the others."
    Config = FilterConfig
    legacy_types = ("data_filter",)
    examples = (
        Example(
            title="Keep orders that have lines",
            config={"where": ".lines | length > 0"},
            input={"id": "PO-7", "lines": [{"sku": "A-1"}]},
            output={"id": "PO-7", "lines": [{"sku": "A-1"}]},
        ),
        Example(
            title="Drop test orders",
            config={"where": ".test != true"},
            input={"id": "PO-8", "test": True},
            output=[],
            several=True,
        ),
    )

    def build(self, context: BuildContext) -> None:
        self._holds = Condition(self.config.where, field="where")

    def process(self, message: Message, context: RunContext) -> Message | None:
        return message if self._holds(message) else None

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Older flows wrote a filter as a condition: the same keys as `conditional`."""
        if "where" in config:
            return dict(config)
        from continuitybridge.nodes.route.conditional import Conditional

        return {"where": Conditional.from_legacy(config)["branches"]["true"]}
