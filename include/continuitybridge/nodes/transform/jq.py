"""The node `jq`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Literal

from pydantic import Field

from continuitybridge.engine.message import Emit, Message
from continuitybridge.errors import LimitExceeded
from continuitybridge.nodes.base import BuildContext, Example, Node, NodeConfig, RunContext, hints
from continuitybridge.nodes.language.jq_program import JqProgram


class JqConfig(NodeConfig):
    """Configuration of `jq`."""

    program: str = Field(
        min_length=1,
        description="The jq program. It sees the body as `.`, and `$headers`, `$vars` and `$message`.",
        json_schema_extra=hints(language="jq", multiline=True, placeholder="{id: .po_number, lines}"),
    )
    outputs: Literal["messages", "array"] = Field(
        default="messages",
        description="`messages`: each output of the program is a message of its own, and none means that the "
        "message is dropped. `array`: one message holds all outputs in a list.",
    )


class Jq(Node[JqConfig]):
    """Runs a [jq](https://jqlang.org/manual/) program (jq 1.8) over the message's JSON data.

    The program is compiled once. One output is the new body; several outputs become several messages, in
    order; no output drops the message. Numbers keep the value they were written with until the program computes
    with them (jq computes in IEEE 754 doubles).

    The program sees the message and nothing else. `env`, `input`, `import`, `include`, `halt` and what else
    would reach the server's environment, its files or other messages is refused when the flow is checked;
    `$ENV` is empty. `error("…")` fails the message with that text; a program that does not end is stopped at
    the engine's time limit.
    """

    type = "jq"
    category = "transform"
    label = "jq"
    summary = "Reshapes JSON data with a jq program."
    Config = JqConfig
    examples = (
        Example(
            title="Reshape an order",
            config={"program": "{id: .po_number, lines: [.lines[] | {sku, quantity}]}"},
            input={"po_number": "PO-7", "lines": [{"sku": "A-1", "quantity": 3, "note": "x"}]},
            output={"id": "PO-7", "lines": [{"sku": "A-1", "quantity": 3}]},
        ),
        Example(
            title="One message per line",
            config={"program": ".lines[] | {sku}"},
            input={"lines": [{"sku": "A-1"}, {"sku": "B-2"}]},
            output=[("out", {"sku": "A-1"}), ("out", {"sku": "B-2"})],
            several=True,
        ),
        Example(
            title="All outputs in one list",
            config={"program": ".lines[].sku", "outputs": "array"},
            input={"lines": [{"sku": "A-1"}, {"sku": "B-2"}]},
            output=["A-1", "B-2"],
        ),
        Example(
            title="Fail a message on purpose",
            config={"program": 'if .country then . else error("no country") end'},
            input={"id": 7},
            fails="transform-failed",
        ),
    )

    def build(self, context: BuildContext) -> None:
        self._program = JqProgram(self.config.program, field="program")
        self._as_array = self.config.outputs == "array"

    def process(self, message: Message, context: RunContext) -> Message | Iterable[Emit] | None:
        values = self._program.values(message)
        if self._as_array:
            message.body = _bounded(values, context.max_emitted)
            return message
        none: list[Any] = []
        first = next(values, none)
        if first is none:
            return None
        second = next(values, none)
        if second is none:
            message.body = first
            return message
        return (Emit(value) for value in chain((first, second), values))

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing but the editor's free-form keys for the program itself: `expression`, `filter`, `query`."""
        translated = dict(config)
        for key in ("expression", "filter", "query", "jq"):
            if key in translated and "program" not in translated:
                translated["program"] = translated.pop(key)
        return translated


def _bounded(values: Iterator[Any], most: int) -> list[Any]:
    """All values, as long as there are not more than one message may become."""
    found: list[Any] = []
    for value in values:
        if len(found) == most:
            raise LimitExceeded(
                f"the program gave more than {most} outputs (BRIDGE_MAX_EMITTED_MESSAGES)",
                limit="max_emitted_messages",
                allowed=most,
                found=f"more than {most}",
            )
        found.append(value)
    return found
