"""Compiles a mapping to closures: one function per target field, no interpretation while messages run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from difflib import get_close_matches
from typing import Any

from continuitybridge.engine.message import Message
from continuitybridge.errors import ConfigurationError, TransformFailed
from continuitybridge.nodes.language.problems import Problems
from continuitybridge.nodes.mapping.paths import Getter, compile_elements, compile_path, single_name
from continuitybridge.nodes.mapping.tables import Tables, text_key
from continuitybridge.nodes.mapping.transforms import Refusal, compile_transform

MAX_FIELDS = 20_000

_FIELD_KEYS = ("path", "fallback", "default", "transform", "lookup", "optional", "description")
_ARRAY_KEYS = ("arrayPath", "itemMapping", "default", "optional", "description")
_CONSTANT_KEYS = ("constant", "description")

_OMIT: Any = object()
"""In place of a value: the target field is left out."""

_Field = Callable[[Any, Message, list[str]], Any]
"""(where the mapping stands, the message, names of what is missing) → the value, or `_OMIT`."""


class _Fault(Exception):
    """A field could not be mapped; `place` grows from the field outwards."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.place: list[str] = []


class CompiledMapping:
    """A compiled mapping. Calling it with a message gives the new body.

    `strict` fails messages that lack a field which is neither optional nor has a default; otherwise such a field
    becomes null. Raises `ConfigurationError` with every problem when built.
    """

    __slots__ = ("_map", "_strict")

    def __init__(self, declared: Mapping[str, Any], tables: Tables, *, strict: bool, field: str) -> None:
        compiler = _Compiler(tables)
        self._strict = strict
        try:
            self._map = compiler.object(declared, field, "")
        except RecursionError:
            raise ConfigurationError("the mapping is nested too deep", field=field) from None
        compiler.problems.raise_any()

    def __call__(self, message: Message) -> dict[str, Any]:
        """Raises `TransformFailed` naming the target field and the reason."""
        missing: list[str] = []
        try:
            mapped = self._map(message.body, message, missing)
        except _Fault as fault:
            place = "".join(reversed(fault.place)).removeprefix(".")
            reason = fault.reason
        else:
            if not missing or not self._strict:
                return {} if mapped is _OMIT else mapped
            place, reason = "", f"the message lacks {', '.join(dict.fromkeys(missing))}"
        raise TransformFailed(f"{place}: {reason}" if place else reason, target=place or missing)


class _Compiler:
    """`field` is where something is declared (for authors), `target` where it ends up (for messages)."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._count = 0
        self.problems = Problems()

    def object(self, declared: Mapping[str, Any], field: str, target: str) -> _Field:
        fields: list[tuple[str, _Field]] = []
        for name, rule in declared.items():
            with self.problems.noting():
                fields.append((str(name), self.rule(rule, f"{field}.{name}", f"{target}.{name}".lstrip("."))))
        if not declared:
            self.problems.note(ConfigurationError("an object without fields", field=field, value={}))

        def build(here: Any, message: Message, missing: list[str]) -> Any:
            built: dict[str, Any] = {}
            name = ""
            try:
                for name, make in fields:
                    value = make(here, message, missing)
                    if value is not _OMIT:
                        built[name] = value
            except _Fault as fault:
                fault.place.append(f".{name}")
                raise
            # An object of which nothing was found says nothing.
            return built or _OMIT

        return build

    def rule(self, rule: Any, field: str, target: str) -> _Field:
        self._count += 1
        if self._count > MAX_FIELDS:
            raise ConfigurationError(f"a mapping has at most {MAX_FIELDS} fields", field=field)
        if isinstance(rule, str):
            return self.field({"path": rule}, field, target)
        if not isinstance(rule, Mapping):
            raise ConfigurationError(
                "a field is a path ($.…), a mapping with path, arrayPath or constant, or an object of fields",
                field=field,
                value=rule,
            )
        if "constant" in rule:
            _known(rule, _CONSTANT_KEYS, field)
            constant = _fresh(rule["constant"])
            return lambda here, message, missing: constant()
        if isinstance(rule.get("arrayPath"), str):
            return self.array(rule, field, target)
        if isinstance(rule.get("path"), str | list):
            return self.field(rule, field, target)
        return self.object(rule, field, target)

    def field(self, rule: Mapping[str, Any], field: str, target: str) -> _Field:
        _known(rule, _FIELD_KEYS, field)
        optional = _flag(rule, "optional", field)
        source = rule["path"]
        get = self._source(rule, field)
        absent = self._absent(rule, optional, target, source if isinstance(source, str) else ", ".join(source))
        change = None
        if rule.get("transform") is not None:
            change = compile_transform(
                rule["transform"], self._tables, field=f"{field}.transform", many=isinstance(source, list)
            )
        table = None
        if rule.get("lookup") is not None:
            if not isinstance(rule["lookup"], str):
                raise ConfigurationError("a lookup is named", field=f"{field}.lookup", value=rule["lookup"])
            table = self._tables.find(rule["lookup"], field=f"{field}.lookup")
        if change is None and table is None:
            name = single_name(source) if "fallback" not in rule else None
            return _copy(get, absent) if name is None else _copy_of(name, absent)
        look_up = _lookup(table, rule, optional)

        def convert(here: Any, message: Message, missing: list[str]) -> Any:
            value = get(here, message)
            if value is None:
                return absent(missing)
            if change is not None:
                try:
                    value = change(value, here, message)
                except Refusal as refusal:
                    raise _Fault(str(refusal)) from None
                if value is None:
                    return absent(missing)
            return look_up(value) if look_up is not None else value

        return convert

    def array(self, rule: Mapping[str, Any], field: str, target: str) -> _Field:
        _known(rule, _ARRAY_KEYS, field)
        if "itemMapping" not in rule:
            raise ConfigurationError("arrayPath needs itemMapping", field=field, value=rule["arrayPath"])
        elements = compile_elements(rule["arrayPath"], field=f"{field}.arrayPath")
        make = self.rule(rule["itemMapping"], f"{field}.itemMapping", f"{target}[*]")
        absent = self._absent(rule, _flag(rule, "optional", field), target, rule["arrayPath"])

        def build(here: Any, message: Message, missing: list[str]) -> Any:
            found = elements(here, message)
            if found is None:
                value = absent(missing)
                return [] if value is None else value
            items: list[Any] = []
            try:
                for element in found:
                    value = make(element, message, missing)
                    items.append(None if value is _OMIT else value)
            except _Fault as fault:
                fault.place.append(f"[{len(items)}]")
                raise
            return items

        return build

    def _source(self, rule: Mapping[str, Any], field: str) -> Getter:
        source = rule["path"]
        if isinstance(source, list):
            if rule.get("transform") is None:
                raise ConfigurationError(
                    "several paths need a transform that takes several values: concat, firstNonNull",
                    field=f"{field}.path",
                    value=source,
                )
            get = _several([compile_path(path, field=f"{field}.path.{i}") for i, path in enumerate(source)])
        else:
            get = compile_path(source, field=f"{field}.path")
        given = rule.get("fallback")
        if given is None:
            return get
        others = given if isinstance(given, list) else [given]
        return _first_of([get, *(compile_path(path, field=f"{field}.fallback") for path in others)])

    def _absent(
        self, rule: Mapping[str, Any], optional: bool, target: str, source: str
    ) -> Callable[[list[str]], Any]:
        """What a field is when its source has no value."""
        if "default" in rule:
            default = _fresh(rule["default"])
            return lambda missing: default()
        if optional:
            return lambda missing: _OMIT
        name = f"{target} ({source})"

        def note(missing: list[str]) -> None:
            missing.append(name)

        return note


def _fresh(value: Any) -> Callable[[], Any]:
    """A declared value for each message: what later nodes may change must not be shared between messages."""
    if isinstance(value, dict | list):
        return lambda: deepcopy(value)
    return lambda: value


def _lookup(
    table: Mapping[str, Any] | None, rule: Mapping[str, Any], optional: bool
) -> Callable[[Any], Any] | None:
    if table is None:
        return None
    name = rule["lookup"]
    default = _fresh(rule["default"]) if "default" in rule else None

    def look_up(value: Any) -> Any:
        found = table.get(value if value.__class__ is str else text_key(value), _OMIT)
        if found is not _OMIT:
            return found
        if default is not None:
            return default()
        if optional:
            return _OMIT
        raise _Fault(f"{name} has no entry {text_key(value)[:60]!r}, and the field has no default")

    return look_up


def _copy(get: Getter, absent: Callable[[list[str]], Any]) -> _Field:
    def copy(here: Any, message: Message, missing: list[str]) -> Any:
        value = get(here, message)
        return value if value is not None else absent(missing)

    return copy


def _copy_of(name: str, absent: Callable[[list[str]], Any]) -> _Field:
    """What most fields are: without a call for the path."""

    def copy(here: Any, message: Message, missing: list[str]) -> Any:
        value = here.get(name) if here.__class__ is dict else None
        return value if value is not None else absent(missing)

    return copy


def _several(getters: list[Getter]) -> Getter:
    def get(here: Any, message: Message) -> Any:
        values = [getter(here, message) for getter in getters]
        return None if all(value is None for value in values) else values

    return get


def _first_of(getters: list[Getter]) -> Getter:
    def get(here: Any, message: Message) -> Any:
        for getter in getters:
            value = getter(here, message)
            if value is not None:
                return value
        return None

    return get


def _flag(rule: Mapping[str, Any], key: str, field: str) -> bool:
    value = rule.get(key, False)
    if not isinstance(value, bool):
        raise ConfigurationError(f"{key} is true or false", field=f"{field}.{key}", value=value)
    return value


def _known(rule: Mapping[str, Any], known: tuple[str, ...], field: str) -> None:
    for key in rule:
        if key not in known:
            nearest = get_close_matches(str(key), known)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise ConfigurationError(
                f"unknown key {key!r}{hint}",
                field=f"{field}.{key}",
                value=rule[key],
                valid=", ".join(known),
                nearest=nearest,
            )
