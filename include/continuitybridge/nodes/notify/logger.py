"""The node `logger`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from continuitybridge.engine.message import Message
from continuitybridge.errors import NodeError
from continuitybridge.nodes.base import BuildContext, Example, Node, NodeConfig, RunContext, hints
from continuitybridge.nodes.language import json_text, legacy
from continuitybridge.nodes.language.problems import Problems
from continuitybridge.nodes.language.template import Template, Value, scope_of

MAX_TEXT_CHARACTERS = 10_000


class LoggerConfig(NodeConfig):
    """Configuration of `logger`."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Level of the line in the flow's log."
    )
    message: str = Field(
        default="message {{ message.id }}",
        description="Text of the line: a Jinja template over `body`, `headers`, `vars` and `message`.",
        json_schema_extra=hints(language="jinja", multiline=True),
    )
    fields: dict[str, str] = Field(
        default_factory=dict,
        description="Values that stand beside the text: name → template. A template that is one placeholder "
        "gives the value itself.",
        json_schema_extra=hints(language="jinja", placeholder="po_number: '{{ body.order.po_number }}'"),
    )


class Logger(Node[LoggerConfig]):
    """The message passes unchanged.

    Nothing of the message is logged but what `message` and `fields` name. A line that cannot be written as
    declared (a field is missing) is written with the reason instead, at the same level: a logger never fails a
    message. Texts and values are cut at 10,000 characters.
    """

    type = "logger"
    category = "notify"
    label = "Logger"
    summary = "Writes a line into the flow's log and passes the message on."
    Config = LoggerConfig
    examples = (
        Example(
            title="Note each order that passes",
            config={
                "message": "order {{ body.id }} passed",
                "fields": {"lines": "{{ body.lines | length }}"},
            },
            input={"id": "PO-7", "lines": [1, 2]},
            output={"id": "PO-7", "lines": [1, 2]},
        ),
    )

    def build(self, context: BuildContext) -> None:
        problems = Problems()
        with problems.noting():
            self._text = Template(self.config.message, field="message")
        self._fields: dict[str, Value] = {}
        for name, text in self.config.fields.items():
            with problems.noting():
                self._fields[name] = Value(text, field=f"fields.{name}")
        problems.raise_any()

    def process(self, message: Message, context: RunContext) -> Message:
        scope = scope_of(message)
        fields: dict[str, Any] = {"message_id": message.id, "node_id": context.node_id}
        for name, value in self._fields.items():
            try:
                fields[name] = _cut(value.evaluate(scope))
            except NodeError as error:
                fields[name] = f"({error.detail})"
        try:
            text = self._text.render(scope)
        except NodeError as error:
            text = f"message {message.id}: {error.detail}"
        context.services.log(self.config.level, text[:MAX_TEXT_CHARACTERS], fields)
        return message

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """`logLevel`, `message`/`logMessage`, `includePayload`/`includeBody`, `includeHeaders`, `payloadFields`.
        Where the line goes (`logToFile`, `logToDatabase`) and how it is printed is the platform's."""
        old = dict(config)
        ours: dict[str, Any] = {key: old.pop(key) for key in ("level", "fields") if key in old}
        level = old.pop("logLevel", None)
        if level is not None:
            ours.setdefault("level", {"warn": "warning"}.get(str(level).lower(), str(level).lower()))
        text = old.pop("message", None) or old.pop("logMessage", None)
        old.pop("logMessage", None)
        if text:
            ours["message"] = legacy.template(str(text), key="message")
        fields: dict[str, str] = dict(ours.get("fields") or {})
        named = old.pop("payloadFields", None)
        names = [name.strip() for name in named.split(",")] if isinstance(named, str) else named or []
        for name in filter(None, names):
            fields[str(name)] = legacy.template("{{$." + str(name) + "}}", key="payloadFields")
        # Their default was to log the whole payload; here that is said.
        payload = [old.pop(key, None) for key in ("includePayload", "includeBody")]
        if not names and True in payload:
            fields["body"] = "{{ body }}"
        if old.pop("includeHeaders", None) is True:
            fields["headers"] = "{{ headers }}"
        for key in ("logToFile", "logToDatabase", "prettyPrint"):
            old.pop(key, None)
        if fields:
            ours["fields"] = fields
        return {**ours, **old}


def _cut(value: Any) -> Any:
    """A value as a field of a line: what is too long, as the beginning of its text."""
    if not isinstance(value, str | dict | list | bytes):
        return value
    text = value if isinstance(value, str) else json_text.dumps(value)
    return text[:MAX_TEXT_CHARACTERS] if len(text) > MAX_TEXT_CHARACTERS else value
