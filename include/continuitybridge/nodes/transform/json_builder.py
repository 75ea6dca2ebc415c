"""Values to JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any, Literal

import orjson
from pydantic import Field

from continuitybridge.engine.message import Message
from continuitybridge.errors import InvalidPayload
from continuitybridge.nodes import _legacy
from continuitybridge.nodes.base import BuildContext, Example, Node, NodeConfig, RunContext


class JsonBuilderConfig(NodeConfig):
    output: Literal["string", "pretty", "object"] = Field(
        default="string",
        description="Compact text, text with line breaks and indentation, or the value itself after dropping and "
        "sorting.",
    )
    indent: int = Field(default=2, ge=1, le=8, description="Spaces per level of `pretty` text.")
    sort_keys: bool = Field(default=False, description="Order each object's keys by their code points.")
    drop_nulls: bool = Field(default=False, description="Leave out keys whose value is null.")
    drop_empties: bool = Field(
        default=False,
        description='Leave out keys whose value is `""`, `[]` or `{}`, also where dropping made it so.',
    )


class JsonBuilder(Node[JsonBuilderConfig]):
    """Writes the message's value as JSON text (RFC 8259, UTF-8 characters unescaped).

    Equal values give equal text when `sort_keys` is on; without it keys keep their order. Integers are written
    exactly whatever their size; doubles with the fewest digits that read back as the same number; NaN and
    infinities, which JSON does not have, as null.

    Dropping works from the inside out, so that an object emptied by it is dropped too. Elements of lists stay:
    their place carries meaning.

    Text is a JSON value too: it is written in quotes. Bytes that no parser has read are refused.

    Older flows' keys are read on import: `outputFormat` (default there: object), `sortKeys`, `removeNull`,
    `removeEmpty`.
    """

    type = "json_builder"
    category = "transform"
    label = "Build JSON"
    summary = "Writes the value as JSON text, compact or indented."
    Config = JsonBuilderConfig
    examples = (
        Example(
            "Compact and deterministic",
            config={"sort_keys": True, "drop_nulls": True},
            input={"order": "PO-1", "note": None, "city": "Zürich", "lines": [1, None]},
            output='{"city":"Zürich","lines":[1,null],"order":"PO-1"}',
        ),
        Example(
            "Indented",
            config={"output": "pretty"},
            input={"order": {"id": "PO-1"}},
            output='{\n  "order": {\n    "id": "PO-1"\n  }\n}',
        ),
        Example(
            "Without empty parts",
            config={"output": "object", "drop_nulls": True, "drop_empties": True},
            input={"id": "PO-1", "buyer": {"name": "", "address": {"zip": None}}, "lines": []},
            output={"id": "PO-1"},
        ),
    )

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        old = not _legacy.has_any(config, JsonBuilderConfig.model_fields.keys() - {"indent"})
        ours = _legacy.renamed(
            config,
            {
                "outputFormat": "output",
                "sortKeys": "sort_keys",
                "removeNull": "drop_nulls",
                "removeEmpty": "drop_empties",
            },
        )
        if "indent" in ours:
            ours["indent"] = _legacy.integer(ours["indent"], "indent")
        if old:
            ours.setdefault("output", "object")
        return ours

    def build(self, context: BuildContext) -> None:
        config = self.config
        self._drops = config.drop_nulls or config.drop_empties
        self._option = (orjson.OPT_SORT_KEYS if config.sort_keys else 0) | (
            orjson.OPT_INDENT_2 if config.output == "pretty" else 0
        )
        self._orjson_writes = config.output == "string" or config.indent == 2

    def process(self, message: Message, context: RunContext) -> Message:
        value = message.body
        if isinstance(value, bytes):
            raise InvalidPayload(
                f"expected a value, found {len(value)} unparsed bytes: a parser belongs before this node",
                found="bytes",
            )
        try:
            if self._drops:
                value = self._without(value)
            if self.config.output != "object":
                value = self._text(value)
            elif self.config.sort_keys:
                value = _sorted(value)
        except RecursionError:
            raise InvalidPayload("the value is nested too deeply to be written") from None
        message.body = value
        return message

    def _text(self, value: Any) -> str:
        if self._orjson_writes:
            try:
                return orjson.dumps(value, option=self._option).decode()
            except TypeError:
                pass  # integers beyond 64 bits and deep nesting, which the library below writes
        config = self.config
        pretty = config.output == "pretty"
        try:
            text = json.dumps(
                _finite(value),
                ensure_ascii=False,
                sort_keys=config.sort_keys,
                indent=config.indent if pretty else None,
                separators=(",", ": ") if pretty else (",", ":"),
            )
            text.encode()
        except UnicodeEncodeError:
            raise InvalidPayload("the value holds text with half of a surrogate pair") from None
        except (TypeError, ValueError) as error:
            raise InvalidPayload(f"the value is not JSON data: {error}") from None
        return text

    def _without(self, value: Any) -> Any:
        if isinstance(value, dict):
            kept = {key: self._without(item) for key, item in value.items()}
            return {key: item for key, item in kept.items() if not self._is_dropped(item)}
        if isinstance(value, list):
            return [self._without(item) for item in value]
        return value

    def _is_dropped(self, value: Any) -> bool:
        if value is None:
            return self.config.drop_nulls
        return self.config.drop_empties and (value == "" or value == [] or value == {})


def _finite(value: Any) -> Any:
    """The value with NaN and infinities as null, which is how orjson writes them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    return value
