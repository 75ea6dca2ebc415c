"""Field rules: what a field must be, by dotted path, written as a JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from continuitybridge.errors import ConfigurationError
from continuitybridge.nodes import _legacy
from continuitybridge.nodes.base import NodeConfig
from continuitybridge.nodes.language.problems import Problems
from continuitybridge.nodes.language.schema import Schema


class FieldRule(NodeConfig):
    """What one field must be. A field that is absent or null breaks only `required`."""

    required: bool = Field(default=False, description="The field must be there and not null.")
    type: Literal["string", "number", "integer", "boolean", "array", "object"] | None = Field(
        default=None, description="The JSON type."
    )
    min: int | float | None = Field(default=None, description="Smallest number.")
    max: int | float | None = Field(default=None, description="Largest number.")
    minLength: int | None = Field(default=None, ge=0, description="Fewest characters of a text.")
    maxLength: int | None = Field(default=None, ge=0, description="Most characters of a text.")
    minItems: int | None = Field(default=None, ge=0, description="Fewest elements of a list.")
    maxItems: int | None = Field(default=None, ge=0, description="Most elements of a list.")
    pattern: str | None = Field(
        default=None, description="Regular expression (ECMA 262) that a text must contain a match of."
    )
    format: str | None = Field(
        default=None, description="Format of a text, as JSON Schema names it: date-time, date, email, uuid, uri …"
    )
    enum: list[Any] | None = Field(default=None, min_length=1, description="The values allowed.")
    description: str | None = Field(default=None, description="A note for people.")

    def as_schema(self) -> dict[str, Any]:
        """The JSON Schema of a field under this rule, null allowed unless it is required."""
        pairs = {
            "minimum": self.min,
            "maximum": self.max,
            "minLength": self.minLength,
            "maxLength": self.maxLength,
            "minItems": self.minItems,
            "maxItems": self.maxItems,
            "pattern": self.pattern,
            "format": self.format,
        }
        schema: dict[str, Any] = {key: value for key, value in pairs.items() if value is not None}
        if self.type is not None:
            schema["type"] = self.type if self.required else [self.type, "null"]
        elif self.required:
            schema["not"] = {"type": "null"}
        if self.enum is not None:
            schema["enum"] = self.enum if self.required else [*self.enum, None]
        return schema


_STEP = re.compile(r"(?:^|\.)([^.\[\]]+)|\[(?:\*)?\]|\['([^']+)'\]")
_EACH = object()


@dataclass
class _Place:
    """A place in the data: the rule on it and the places below."""

    rule: FieldRule | None = None
    fields: dict[str, _Place] = field(default_factory=dict)
    each: _Place | None = None

    @property
    def needed(self) -> bool:
        """Whether the place must be there because it, or a field in it, is required. What is required of each
        element does not make the list required."""
        return (self.rule is not None and self.rule.required) or any(p.needed for p in self.fields.values())

    def schema(self) -> dict[str, Any]:
        schema = self.rule.as_schema() if self.rule is not None else {}
        if self.fields:
            schema["properties"] = {name: place.schema() for name, place in self.fields.items()}
            needed = [name for name, place in self.fields.items() if place.needed]
            if needed:
                schema["required"] = needed
                schema.setdefault("type", "object")
        if self.each is not None:
            schema["items"] = self.each.schema()
            schema.setdefault("type", "array" if self.needed else ["array", "null"])
        return schema


def rules_schema(rules: Mapping[str, FieldRule], *, strict: bool, field: str) -> dict[str, Any]:
    """All rules as one JSON Schema (2020-12). Paths are dotted, with `[*]` for every element of a list:
    `customer.id`, `items[*].sku`, `['order.id']` for a field with dots in its name. A message that is a list is
    checked element by element. `strict` refuses top-level fields that no rule names. Raises
    `ConfigurationError` for what is no such path, and for patterns that are none."""
    root = _Place()
    problems = Problems()
    for path, rule in rules.items():
        place = root
        with problems.noting():
            Schema(rule.as_schema(), field=f"{field}.{path}")
            for step in _steps(path, field):
                if step is None:
                    place.each = place.each or _Place()
                    place = place.each
                else:
                    place = place.fields.setdefault(step, _Place())
            place.rule = rule
    problems.raise_any()
    if root.each is not None:
        if root.fields:
            raise ConfigurationError(
                "rules are either all for the elements ([*].…) or for the fields of one object", field=field
            )
        return {"type": "array", **root.schema()}
    one = {**root.schema(), "type": "object"}
    if strict:
        one["additionalProperties"] = False
    return {"if": {"type": "array"}, "then": {"items": one}, "else": one}


def _steps(path: str, field: str) -> list[str | None]:
    """The steps of a path; None stands for every element."""
    steps: list[str | None] = []
    text = path.strip().removeprefix("$").removeprefix(".")
    at = 0
    while at < len(text):
        match = _STEP.match(text, at)
        if match is None or match.end() == at:
            steps = []
            break
        steps.append(match[1] or match[2])
        at = match.end()
    if not steps:
        raise ConfigurationError(
            f"{path!r} is no path to a field",
            field=f"{field}.{path}",
            value=path,
            valid="names joined by dots, [*] for every element: customer.id, items[*].sku",
        )
    return steps


def listed_rules(rules: Sequence[Any]) -> dict[str, Any]:
    """Rules written as a list of mappings with `field`, by path; raises `ConfigurationError`."""
    found: dict[str, Any] = {}
    for rule in rules:
        if not isinstance(rule, Mapping) or not isinstance(rule.get("field"), str):
            raise ConfigurationError(
                "a rule has a field", field="rules", value=rule, valid="field, type, required …"
            )
        found[rule["field"]] = in_our_words({key: value for key, value in rule.items() if key != "field"})
    return found


def in_our_words(rule: Any) -> Any:
    """A rule of older files: a type alone, or with `minimum` and `maximum`, used there beside `min` and `max`."""
    if isinstance(rule, str):
        return {"type": rule}
    if not isinstance(rule, Mapping):
        return rule
    return _legacy.renamed(rule, {"minimum": "min", "maximum": "max"})
