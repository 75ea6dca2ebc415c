"""JSON Schema and field rules, compiled to one kind of checker that tells every violation and where it is.

JSON Schema 2020-12 and, where `$schema` says so, 2019-09, draft-07, draft-06 and draft-04, by jsonschema-rs.
Nothing is fetched: a reference leads into the schema or to a side file. Patterns run on a linear-time engine;
those that need look-around or back-references run on one that gives up after a fixed number of steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import jsonschema_rs

from continuitybridge.errors import ConfigurationError, InvalidPayload

MAX_VIOLATIONS = 100
MAX_MESSAGE_CHARACTERS = 500
_BACKTRACKING_STEPS = 100_000
_FILES = "side-file:///"
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)

Violation = dict[str, str]
"""`path` (JSONPath, RFC 9535), `rule` (the keyword) and `message`."""


class Schema:
    """A compiled schema. `field` names where it stands in the configuration, for errors; `name` is its file;
    `resources` are the schemas of other side files by name."""

    __slots__ = ("_validator",)

    def __init__(
        self,
        schema: Mapping[str, Any] | bool,
        *,
        field: str,
        formats: bool = True,
        name: str = "",
        resources: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises `ConfigurationError` for what is no schema, a reference to nowhere and a wrong pattern."""
        known = [(_FILES + file, content) for file, content in (resources or {}).items()]
        if known and not isinstance(schema, bool):
            known.append((_FILES + name, dict(schema)))  # side files may refer back to it
        known += [(content["$id"], content) for _, content in known if isinstance(content.get("$id"), str)]
        options: dict[str, Any] = {
            "validate_formats": formats,
            "offline": True,
            "base_uri": _FILES + name,
        }
        source = schema if isinstance(schema, bool) else dict(schema)
        try:
            options["registry"] = jsonschema_rs.Registry(resources=known) if known else None
            try:
                self._validator = jsonschema_rs.validator_for(
                    source, pattern_options=jsonschema_rs.RegexOptions(), **options
                )
            except jsonschema_rs.ValidationError:
                self._validator = jsonschema_rs.validator_for(
                    source,
                    pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=_BACKTRACKING_STEPS),
                    **options,
                )
        except jsonschema_rs.ValidationError as error:
            raise _refused(error, field) from None
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"this is no JSON Schema: {error}", field=field) from None

    def holds(self, body: Any) -> bool:
        """Whether a message's body satisfies the schema. Raises `InvalidPayload` for what is no JSON data."""
        try:
            return self._validator.is_valid(body)
        except ValueError as error:
            raise _unreadable(body, error) from None

    def violations(self, body: Any) -> Iterator[Violation]:
        """Every violation, in the order of the schema."""
        try:
            for error in self._validator.iter_errors(body):
                yield _violation(error)
        except ValueError as error:
            raise _unreadable(body, error) from None


def first_violations(body: Any, *schemas: Schema) -> list[Violation]:
    """Up to `MAX_VIOLATIONS` violations of several schemas."""
    found = (violation for schema in schemas for violation in schema.violations(body))
    return list(islice(found, MAX_VIOLATIONS))


def json_path(steps: list[str | int]) -> str:
    """A place in the data as JSONPath: `$.items[0].sku`, `$['a b']`."""
    text = "$"
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _IDENTIFIER.fullmatch(step):
            text += f".{step}"
        else:
            text += "['" + step.replace("\\", "\\\\").replace("'", "\\'") + "']"
    return text


def _violation(error: jsonschema_rs.ValidationError) -> Violation:
    rule, facts = error.kind.name, error.kind.as_dict()
    steps, message = error.instance_path, error.message
    if rule == "required":
        steps, message = [*steps, facts["property"]], "is required"
    elif rule == "not" and facts.get("schema") == {"type": "null"}:
        rule, message = "required", "is required, and null"
    return {"path": json_path(steps), "rule": rule, "message": message[:MAX_MESSAGE_CHARACTERS]}


def _refused(error: jsonschema_rs.ValidationError, field: str) -> ConfigurationError:
    where = ".".join([field, *map(str, error.instance_path)])
    reason = error.message.split("\n")[0]
    if "Retrieval is disabled" in reason:
        address = reason.split("'")[1] if "'" in reason else ""
        name = address.removeprefix(_FILES)
        return ConfigurationError(
            f"the schema refers to {name!r}, which is neither part of it nor a side file; nothing is fetched",
            field=field,
            value=name,
        )
    return ConfigurationError(f"this is no JSON Schema: {reason[:MAX_MESSAGE_CHARACTERS]}", field=where)


def _unreadable(body: Any, error: ValueError) -> InvalidPayload:
    if isinstance(body, bytes):
        return InvalidPayload(
            f"the node checks JSON data, and the message holds {len(body)} unparsed bytes: "
            "a parser belongs before it",
            found="bytes",
        )
    return InvalidPayload(f"the message is not JSON data: {error}", found=type(body).__name__)
