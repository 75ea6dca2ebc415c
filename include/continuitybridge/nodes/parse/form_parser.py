"""Forms to values, by the URL standard's `application/x-www-form-urlencoded`."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote_to_bytes

from pydantic import Field

from continuitybridge.engine.message import Message
from continuitybridge.errors import InvalidPayload, LimitExceeded
from continuitybridge.nodes.base import Example, Node, NodeConfig, RunContext
from continuitybridge.nodes.language import json_text
from continuitybridge.nodes.parse._text import not_utf8, payload_bytes

MAX_FIELDS = 10_000


class FormParserConfig(NodeConfig):
    lists: list[str] = Field(
        default=[],
        description="Fields that become lists however often they occur. Others do when they occur more than once.",
    )
    json_fields: list[str] = Field(
        default=[], description="Fields whose text is JSON, which takes the text's place (Slack's `payload`)."
    )


class FormParser(Node[FormParserConfig]):
    """Reads a form as browsers, Slack and Twilio send it, or the query of a GET: names and values after one
    another, percent-encoded UTF-8, `+` for a space. Every value is text; a field that occurs more than once is a
    list.

    A field without `=` has the empty text. Text that is no UTF-8, and in `json_fields` no JSON, fails the message.
    """

    type = "form_parser"
    category = "parse"
    label = "Parse form"
    summary = "Reads an HTML form or query (application/x-www-form-urlencoded) into an object."
    Config = FormParserConfig
    examples = (
        Example(
            "A text message from Twilio",
            config={},
            input=b"From=%2B41790000000&Body=Gr%C3%BCezi+%26+hallo&Media=a&Media=b",
            output={"From": "+41790000000", "Body": "Grüezi & hallo", "Media": ["a", "b"]},
        ),
        Example(
            "A button in Slack",
            config={"json_fields": ["payload"]},
            input=b"payload=%7B%22type%22%3A%22block_actions%22%7D",
            output={"payload": {"type": "block_actions"}},
        ),
        Example(
            "A list even of one",
            config={"lists": ["sku"]},
            input=b"sku=A-1&qty=2",
            output={"sku": ["A-1"], "qty": "2"},
        ),
        Example("What is no UTF-8 is refused", config={}, input=b"a=%ff", fails="invalid-payload"),
    )

    def process(self, message: Message, context: RunContext) -> Message:
        fields = payload_bytes(message.body, "a form").split(b"&")
        if len(fields) > MAX_FIELDS:
            raise LimitExceeded(
                f"the form has {len(fields)} fields, {MAX_FIELDS} are allowed",
                limit="fields",
                allowed=MAX_FIELDS,
                found=len(fields),
            )
        found: dict[str, list[Any]] = {}
        for field in fields:
            if field:
                name, _, value = field.partition(b"=")
                text = _text(name)
                found.setdefault(text, []).append(self._value(text, _text(value), context))
        lists = self.config.lists
        message.body = {
            name: values if len(values) > 1 or name in lists else values[0] for name, values in found.items()
        }
        return message

    def _value(self, name: str, text: str, context: RunContext) -> Any:
        if name not in self.config.json_fields:
            return text
        try:
            value = json_text.loads(text)
        except ValueError as error:
            raise InvalidPayload(f"the field {name!r} is not JSON: {error}", field=name) from None
        json_text.check_depth(value, context.max_nesting_depth)
        return value


def _text(encoded: bytes) -> str:
    raw = unquote_to_bytes(encoded.replace(b"+", b" "))
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise not_utf8(error, raw) from None
