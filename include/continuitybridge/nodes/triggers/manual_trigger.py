"""Messages that a person or another system starts by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jsonschema_rs
import orjson
from pydantic import Field

from continuitybridge.engine.message import Message
from continuitybridge.errors import ConfigurationError, InvalidPayload, ValidationFailed
from continuitybridge.nodes import _legacy
from continuitybridge.nodes.base import BuildContext, Example, NodeConfig, RunContext, TriggerNode, hints


class ManualTriggerConfig(NodeConfig):
    # `schema` is a method of pydantic's, deprecated there; the key is the word that users know.
    schema_: dict[str, Any] | None = Field(
        default=None,
        alias="schema",
        title="Schema",
        description="JSON Schema (2020-12) of the payload. Airflow's form is made from it, and a payload that "
        "breaks it is refused.",
        json_schema_extra=hints(language="json", multiline=True),
    )


class ManualTrigger(TriggerNode[ManualTriggerConfig]):
    """Starts the flow by hand: from Airflow's *Trigger* form, by `POST /api/v2/dags/{dag_id}/dagRuns` with the
    payload in `conf`, or with `bridge flow run`.

    With a `schema`, a payload that breaks it is refused with every violation. The body is the payload as JSON
    text, as it would come from a webhook, so that a flow with both triggers begins with one parser.

    Older flows' key is read on import: `inputSchema`.
    """

    type = "manual_trigger"
    category = "trigger"
    label = "Start by hand"
    summary = "Starts the flow by hand or by Airflow's REST API, with a payload."
    Config = ManualTriggerConfig
    examples = (
        Example("Anything", config={}, input=b'{"order": "PO-1"}', output=b'{"order": "PO-1"}'),
        Example(
            "Only with an order number",
            config={
                "schema": {
                    "type": "object",
                    "required": ["order"],
                    "properties": {"order": {"type": "string", "minLength": 1}},
                }
            },
            input={"order": ""},
            fails="validation-failed",
        ),
    )

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        ours = _legacy.renamed(config, {"inputSchema": "schema"})
        schema = ours.get("schema")
        if isinstance(schema, str):
            if not schema.strip():
                ours.pop("schema")
                return ours
            try:
                ours["schema"] = orjson.loads(schema)
            except orjson.JSONDecodeError as error:
                raise ConfigurationError(
                    f"inputSchema is not JSON: {error}", field="inputSchema", value=schema
                ) from None
        return ours

    def build(self, context: BuildContext) -> None:
        self._validator: Any = None
        schema = self.config.schema_
        if schema is None:
            return
        try:
            jsonschema_rs.meta.validate(schema)
            self._validator = jsonschema_rs.Draft202012Validator(schema)
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
            reason = getattr(error, "message", None) or str(error)
            raise ConfigurationError(f"not a JSON Schema: {reason}", field="schema", value=schema) from None

    def process(self, message: Message, context: RunContext) -> Message:
        if self._validator is not None:
            self._validate(message.body)
        return message

    def _validate(self, body: Any) -> None:
        if isinstance(body, bytes | str):
            try:
                body = orjson.loads(body)
            except orjson.JSONDecodeError as error:
                raise InvalidPayload(f"the payload is not JSON: {error}") from None
        violations = [
            {"path": "/" + "/".join(map(str, error.instance_path)), "message": error.message}
            for error in self._validator.iter_errors(body)
        ]
        if violations:
            first = violations[0]
            more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
            raise ValidationFailed(f"{first['path']}: {first['message']}{more}", violations=violations)
