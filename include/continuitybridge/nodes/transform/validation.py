"""The node `validation`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydantic import ConfigDict, Field, model_validator

from continuitybridge.engine.message import Emit, Message
from continuitybridge.errors import ConfigurationError, ValidationFailed
from continuitybridge.nodes import _legacy
from continuitybridge.nodes.base import BuildContext, Example, Node, NodeConfig, RunContext, hints
from continuitybridge.nodes.language import side_file
from continuitybridge.nodes.language.rules import FieldRule, in_our_words, listed_rules, rules_schema
from continuitybridge.nodes.language.schema import MAX_VIOLATIONS, Schema, first_violations

INVALID = "invalid"
_DETAIL_VIOLATIONS = 3


class ValidationConfig(NodeConfig):
    """Configuration of `validation`: a schema, field rules, or both."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: dict[str, Any] | bool | None = Field(
        default=None,
        alias="schema",
        description="JSON Schema: 2020-12 unless `$schema` names another draft (2019-09, draft-07, -06, -04).",
        json_schema_extra=hints(language="json", multiline=True),
    )
    schema_file: str | None = Field(
        default=None,
        description="Side file with the JSON Schema, as JSON or YAML; files it refers to come along.",
        json_schema_extra=hints(file=True, placeholder="order.schema.json"),
    )
    formats: bool = Field(
        default=True, description="Whether `format` is checked (date-time, email …) or only a remark."
    )
    rules: dict[str, FieldRule] = Field(
        default_factory=dict,
        description="Field rules by dotted path: `customer.id`, `items[*].sku`.",
        json_schema_extra=hints(placeholder="items[*].sku: {required: true, type: string}"),
    )
    strict: bool = Field(default=False, description="Refuse top-level fields that no rule names.")

    @model_validator(mode="after")
    def _says_what_is_valid(self) -> Self:
        if self.schema_ is not None and self.schema_file is not None:
            raise ValueError("schema and schema_file are both given; one of them is enough")
        if self.schema_ is None and self.schema_file is None and not self.rules:
            raise ValueError("nothing to check by: give schema, schema_file or rules")
        if self.strict and not self.rules:
            raise ValueError("strict refuses fields that no rule names, and there are no rules")
        return self


class Validation(Node[ValidationConfig]):
    """Valid messages pass unchanged.

    **Invalid messages** leave by the port `invalid` when it has a route, with what is wrong in
    `vars.<node id>.violations`. Without that route they fail with `validation-failed`, which names the first
    violations and holds up to 100 of them: path (JSONPath), rule and message of each.

    **Schemas** are JSON Schema 2020-12, or the draft that `$schema` names. `format` is checked unless `formats`
    is false. Nothing is fetched from anywhere: `$ref` leads into the schema or to a side file.

    **Rules** say of a field, by dotted path, whether it is `required`, its `type`, `min`, `max`, `minLength`,
    `maxLength`, `minItems`, `maxItems`, `pattern`, `format` and `enum`. A field that is absent or null breaks
    only `required`; what is required below a field makes that field required, except below `[*]`. A message
    that is a list is checked element by element.

    Patterns run in time linear to the text; those with look-around or back-references count as broken where
    they need more than 100,000 steps.
    """

    type = "validation"
    category = "transform"
    label = "Validate"
    summary = "Checks messages against a JSON Schema or field rules."
    Config = ValidationConfig
    ports = ("out", INVALID)
    optional_ports = (INVALID,)
    legacy_types = ("validator",)
    examples = (
        Example(
            title="A JSON Schema",
            config={
                "schema": {
                    "type": "object",
                    "required": ["id"],
                    "properties": {"id": {"type": "string"}, "total": {"type": "number", "minimum": 0}},
                }
            },
            input={"id": "PO-7", "total": 12.5},
            output={"id": "PO-7", "total": 12.5},
        ),
        Example(
            title="Field rules",
            config={"rules": {"items": {"required": True, "minItems": 1}, "items[*].sku": {"required": True}}},
            input={"items": [{"sku": "A-1"}, {}]},
            fails="validation-failed",
        ),
    )

    def build(self, context: BuildContext) -> None:
        config = self.config
        self._schemas: list[Schema] = []
        if config.schema_ is not None:
            self._schemas.append(Schema(config.schema_, field="schema", formats=config.formats))
        if config.schema_file is not None:
            self._schemas.append(_from_file(config.schema_file, context.files, config.formats))
        if config.rules:
            rules = rules_schema(config.rules, strict=config.strict, field="rules")
            self._schemas.append(Schema(rules, field="rules"))
        self._routes_invalid = INVALID in context.routes

    def process(self, message: Message, context: RunContext) -> Message | Emit:
        body = message.body
        for schema in self._schemas:
            if not schema.holds(body):
                return self._invalid(message, context)
        return message

    def _invalid(self, message: Message, context: RunContext) -> Emit:
        violations = first_violations(message.body, *self._schemas)
        if self._routes_invalid:
            message.vars = {**message.vars, context.node_id: {"violations": violations}}
            return Emit(message.body, INVALID)
        texts = [f"{v['path']}: {v['message']}" for v in violations[:_DETAIL_VIOLATIONS]]
        if len(violations) > _DETAIL_VIOLATIONS:
            more = len(violations) - _DETAIL_VIOLATIONS
            texts.append(f"and {more}{' or more' if len(violations) == MAX_VIOLATIONS else ''} others")
        raise ValidationFailed("; ".join(texts), violations=violations)

    @classmethod
    def files_within(cls, name: str, text: str) -> tuple[str, ...]:
        try:
            schema = side_file.parse_data(name, text, field="schema_file")
        except ConfigurationError:
            return ()
        return tuple(dict.fromkeys(_references(name, schema)))

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """`rules` as YAML or JSON text, `schemaRef`, `strictMode`. `continueOnError` was where invalid messages
        go: here the route of the port `invalid` says that."""
        ours = _legacy.renamed(config, {"schemaRef": "schema_file", "schemaFile": "schema_file"})
        _legacy.flag(ours, "strictMode", "strict", {True: True, False: False})
        ours.pop("continueOnError", None)
        for key in ("rules", "schema"):
            if isinstance(ours.get(key), str):
                ours[key] = side_file.parse_data(key, ours[key], field=key)
        if isinstance(ours.get("rules"), list):
            ours["rules"] = listed_rules(ours["rules"])
        if isinstance(ours.get("rules"), dict):
            ours["rules"] = {path: in_our_words(rule) for path, rule in ours["rules"].items()}
            if not ours["rules"]:
                del ours["rules"]
        if ours.get("strict") is False:
            del ours["strict"]
        return ours


def _from_file(name: str, files: Mapping[str, str], formats: bool) -> Schema:
    """The schema in a side file, with every side file that it refers to, near or far."""
    found: dict[str, Any] = {}
    waiting = [name]
    while waiting:
        file = waiting.pop()
        text = side_file.text_of(files, file, field="schema_file")
        content = side_file.parse_data(file, text, field="schema_file")
        if not isinstance(content, dict | bool):
            raise ConfigurationError(f"{file} holds no JSON Schema", field="schema_file", value=file)
        found[file] = content
        waiting += [other for other in _references(file, content) if other in files and other not in found]
    schema = found.pop(name)
    resources = {file: content for file, content in found.items() if isinstance(content, dict)}
    return Schema(schema, field="schema_file", formats=formats, name=name, resources=resources)


def _references(name: str, schema: Any) -> Iterator[str]:
    """The files that a schema refers to by relative names."""
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            reference = node.get("$ref")
            if isinstance(reference, str) and ":" not in reference and reference.partition("#")[0]:
                yield side_file.beside(name, reference.partition("#")[0])
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
