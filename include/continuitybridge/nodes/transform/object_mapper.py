"""The node `object_mapper`."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from continuitybridge.engine.message import Message
from continuitybridge.errors import ConfigurationError, InvalidPayload, ValidationFailed
from continuitybridge.nodes import _legacy
from continuitybridge.nodes.base import BuildContext, Example, Node, NodeConfig, RunContext, hints
from continuitybridge.nodes.language import side_file
from continuitybridge.nodes.language.problems import Problems
from continuitybridge.nodes.language.rules import FieldRule, listed_rules, rules_schema
from continuitybridge.nodes.language.schema import Schema, first_violations
from continuitybridge.nodes.mapping.compiler import CompiledMapping
from continuitybridge.nodes.mapping.legacy import from_object_mapper, with_defaults
from continuitybridge.nodes.mapping.tables import Tables

_FILE_KEYS = ("mapping", "includes", "lookups", "validation", "version", "name", "description")
_REMARK_KEYS = ("sourceFormat", "targetFormat", "transforms", "metadata")
"""What older mapping files say for people."""


class ObjectMapperConfig(NodeConfig):
    """Configuration of `object_mapper`: a mapping, in place or as a side file."""

    mapping: dict[str, Any] | None = Field(
        default=None,
        min_length=1,
        description="Target field → where its value comes from.",
        json_schema_extra=hints(language="json", multiline=True, placeholder="id: $.order.number"),
    )
    file: str | None = Field(
        default=None,
        description="Side file with the mapping under `mapping`; it may have `lookups`, `includes` and "
        "`validation`.",
        json_schema_extra=hints(file=True, placeholder="order.map.yaml"),
    )
    lookups: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Lookup tables: name → key → value.",
        json_schema_extra=hints(placeholder="status: {'01': open, '02': closed}"),
    )
    lookup_files: list[str] = Field(
        default_factory=list,
        description="Side files with lookup tables; the file's name without ending is the table's.",
        json_schema_extra=hints(file=True, placeholder="status_map.yaml"),
    )
    strict: bool = Field(
        default=False,
        description="Fail messages that lack a field which is neither optional nor has a default; otherwise such "
        "a field becomes null.",
    )

    @model_validator(mode="after")
    def _has_one_mapping(self) -> Self:
        if (self.mapping is None) == (self.file is None):
            raise ValueError("give either mapping or file")
        return self


class ObjectMapper(Node[ObjectMapperConfig]):
    """What the mapping does not name is not in the result.

    **A field** is a path (`id: $.order.number`) or a mapping with

    - `path`: where the value comes from, an RFC 9535 JSONPath. One that finds several values (`$.lines[*].sku`)
      gives a list. `$headers`, `$vars`, `$message` and `$body` are reachable beside `$`.
    - `fallback`: a path, or a list of them, for when the first has no value (null counts as none)
    - `default`: the value when there is none; taken as it is
    - `transform`: `toISO8601`, `toISO3166Alpha2`, `parseInt`, `parseFloat`, `round`, `toString`, `toBoolean`,
      `upper`, `lower`, `trim`, `uomConvert`; `concat` and `firstNonNull` take a `path` that is a list of paths.
      With options: `{concat: {separator: " "}}`. A list of transforms is applied in order.
    - `lookup`: a table in which the value (after its transform) is a key: `status`, or `status_map.order` for a
      table in a file; without entry the field's `default` holds
    - `optional`: without value the field is left out

    `{constant: EUR}` is a fixed value. Any other mapping is a nested object, left out when none of its fields
    has a value. **A list** is `arrayPath` with an `itemMapping`, in which `$` is the element; a single value where
    a list is expected counts as a list of one.

    A value that a transform cannot take, or a table does not have (without `default` or `optional`), fails the
    message with the target's place. Unknown transforms, tables and keys are found when the flow is checked.

    **Transforms.** `toISO8601` gives RFC 3339 date-times: a time without zone is one in `timezone` (UTC), a
    date its midnight, a number seconds or milliseconds since 1970; `format` reads other forms (`%d.%m.%Y`).
    `toISO3166Alpha2` reads two letters, three letters or the number. `parseInt` cuts off what is behind the point.
    `uomConvert` takes `from` and `to` (units, or paths to them) and a `table` of factors where weight, length and
    volume are not enough.

    A mapping file may have `includes` (other files with lookup tables) and `validation` (field rules, which the
    result must satisfy).
    """

    type = "object_mapper"
    category = "transform"
    label = "Object mapper"
    summary = "Builds a new object from the message, field by field."
    Config = ObjectMapperConfig
    examples = (
        Example(
            title="An order in another shape",
            config={
                "mapping": {
                    "id": "$.number",
                    "placed": {"path": "$.date", "transform": "toISO8601"},
                    "status": {"path": "$.state", "lookup": "states", "default": "unknown"},
                    "buyer": {
                        "name": {"path": ["$.first", "$.last"], "transform": {"concat": {"separator": " "}}},
                        "country": {"path": "$.country", "transform": "toISO3166Alpha2"},
                        "phone": {"path": "$.phone", "optional": True},
                    },
                    "items": {
                        "arrayPath": "$.lines",
                        "itemMapping": {
                            "sku": "$.article",
                            "quantity": {"path": "$.qty", "transform": "parseInt"},
                            "order": "$body.number",
                        },
                    },
                },
                "lookups": {"states": {"10": "open", "20": "shipped"}},
            },
            input={
                "number": "PO-7",
                "date": "2025-03-01T08:15:00",
                "state": 10,
                "first": "Ada",
                "last": "Byron",
                "country": "SWE",
                "lines": [{"article": "A-1", "qty": "3"}],
            },
            output={
                "id": "PO-7",
                "placed": "2025-03-01T08:15:00Z",
                "status": "open",
                "buyer": {"name": "Ada Byron", "country": "SE"},
                "items": [{"sku": "A-1", "quantity": 3, "order": "PO-7"}],
            },
        ),
        Example(
            title="Pounds to kilograms",
            config={
                "mapping": {
                    "kg": {"path": "$.weight", "transform": {"uomConvert": {"from": "$.unit", "to": "KG"}}}
                }
            },
            input={"weight": "10", "unit": "LB"},
            output={"kg": 4.5359237},
        ),
        Example(
            title="Strict: everything must be there",
            config={"mapping": {"id": "$.number", "note": {"path": "$.note", "optional": True}}, "strict": True},
            input={"note": "urgent"},
            fails="transform-failed",
        ),
    )

    def build(self, context: BuildContext) -> None:
        config = self.config
        problems = Problems()
        tables = Tables()
        declared, field = config.mapping, "mapping"
        self._checks: Schema | None = None
        for index, name in enumerate(config.lookup_files):
            with problems.noting():
                _add_file(tables, name, context.files, f"lookup_files.{index}")
        if config.file is not None:
            with problems.noting():
                declared, self._checks = _from_file(config.file, context.files, tables)
                field = f"file.{config.file}.mapping"
        for name, table in config.lookups.items():
            tables.add_inline(name, table)
        problems.raise_any()
        self._map = CompiledMapping(declared or {}, tables, strict=config.strict, field=field)

    def process(self, message: Message, context: RunContext) -> Message:
        if isinstance(message.body, bytes):
            raise InvalidPayload(
                f"the node maps JSON data, and the message holds {len(message.body)} unparsed bytes: "
                "a parser belongs before it",
                found="bytes",
            )
        body = self._map(message)
        if self._checks is not None and not self._checks.holds(body):
            violations = first_violations(body, self._checks)
            texts = "; ".join(f"{v['path']}: {v['message']}" for v in violations[:3])
            raise ValidationFailed(f"the mapped message: {texts}", violations=violations)
        message.body = body
        return message

    @classmethod
    def files_within(cls, name: str, text: str) -> tuple[str, ...]:
        try:
            content = side_file.parse_data(name, text, field="file")
        except ConfigurationError:
            return ()
        includes = content.get("includes") if isinstance(content, dict) else None
        if not isinstance(includes, list):
            return ()
        return tuple(side_file.beside(name, inner) for inner in includes if isinstance(inner, str))

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """`mappings` of the npm library object-mapper (an object or JSON text), `strict`, `defaultValues`;
        `mappingRef` names a mapping file."""
        ours = _legacy.renamed(config, {"mappingRef": "file", "mappingFile": "file"})
        _legacy.flag(ours, "strictMode", "strict", {True: True, False: False})
        _legacy.unsupported(
            ours, "sourceFormat", "the node maps data; an xml_parser belongs before it", "json", "auto", "", None
        )
        ours.pop("sourceFormat", None)
        defaults = ours.pop("defaultValues", None) or {}
        if "mappings" in ours:
            strict = _legacy.boolean(ours.get("strict", False), "strict")
            ours["mapping"] = from_object_mapper(ours.pop("mappings"), strict=strict)
        if not isinstance(defaults, Mapping):
            raise ConfigurationError("defaultValues is an object", field="defaultValues", value=defaults)
        if defaults:
            if not isinstance(ours.get("mapping"), dict):
                raise ConfigurationError(
                    "defaultValues beside a mapping file cannot be expressed; write default in the mapping",
                    field="defaultValues",
                    value=dict(defaults),
                )
            ours["mapping"] = with_defaults(dict(ours["mapping"]), defaults)
        if ours.get("strict") is False:
            del ours["strict"]
        return ours


def _from_file(name: str, files: Mapping[str, str], tables: Tables) -> tuple[dict[str, Any], Schema | None]:
    """The mapping in a file and the rules its result must satisfy; its tables are added to `tables`."""
    content = side_file.parse_data(name, side_file.text_of(files, name, field="file"), field="file")
    problems = Problems()
    if not isinstance(content, dict) or not isinstance(content.get("mapping"), dict):
        valid = ", ".join(_FILE_KEYS)
        raise ConfigurationError(f"{name} has no key `mapping`", field="file", value=name, valid=valid)
    for key in content:
        if key not in (*_FILE_KEYS, *_REMARK_KEYS):
            problems.note(
                ConfigurationError(
                    f"{name}: unknown key {key!r}",
                    field=f"file.{name}.{key}",
                    valid=", ".join(_FILE_KEYS),
                    nearest=get_close_matches(key, _FILE_KEYS),
                )
            )
    for inner in _mapped(content, "includes", list, problems, name):
        with problems.noting():
            _add_file(tables, side_file.beside(name, str(inner)), files, f"file.{name}.includes")
    for table, entries in _mapped(content, "lookups", dict, problems, name).items():
        if isinstance(entries, dict):
            tables.add_inline(table, entries)
    rules = _mapped(content, "validation", list, problems, name)
    checks = None
    with problems.noting():
        checks = _checks(rules, f"file.{name}.validation") if rules else None
    problems.raise_any()
    return content["mapping"], checks


def _mapped(content: dict[str, Any], key: str, kind: type, problems: Problems, name: str) -> Any:
    value = content.get(key)
    if value is not None and not isinstance(value, kind):
        problems.note(ConfigurationError(f"{name}: {key} is a {kind.__name__}", field=f"file.{name}.{key}"))
        value = None
    return value or kind()


def _add_file(tables: Tables, name: str, files: Mapping[str, str], field: str) -> None:
    text = side_file.text_of(files, name, field=field)
    tables.add_file(name, side_file.parse_data(name, text, field=field), field=field)


def _checks(rules: list[Any], field: str) -> Schema:
    """The field rules of a mapping file, as a list with `field` or by path."""
    try:
        read = {path: FieldRule.model_validate(rule) for path, rule in listed_rules(rules).items()}
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigurationError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}", field=field, value=first.get("input")
        ) from None
    return Schema(rules_schema(read, strict=False, field=field), field=field)
