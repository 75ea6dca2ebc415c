"""Transforms of a mapping by name. What cannot be transformed fails the message; nothing is guessed or passed on
unchanged."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from difflib import get_close_matches
from math import floor
from typing import Any
from zoneinfo import ZoneInfo

from continuitybridge.engine.message import Message
from continuitybridge.errors import ConfigurationError
from continuitybridge.nodes.language import json_text
from continuitybridge.nodes.mapping import units
from continuitybridge.nodes.mapping.iso3166 import ALPHA2
from continuitybridge.nodes.mapping.paths import compile_path
from continuitybridge.nodes.mapping.tables import Tables

Transform = Callable[[Any, Any, Message], Any]
"""(value, where the mapping stands, the message) → the new value. Raises `Refusal`."""


class Refusal(Exception):
    """A value that a transform cannot take; the text says why."""


@dataclass(frozen=True)
class Options:
    """What a transform was declared with. `take` each option, then `done`: what is left was misspelt."""

    values: dict[str, Any]
    tables: Tables
    name: str
    field: str

    def take(self, key: str, default: Any = None, *, kind: type = str) -> Any:
        value = self.values.pop(key, default)
        if value is not default and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ConfigurationError(
                f"{self.name}: {key} must be {'text' if kind is str else 'a number'}",
                field=f"{self.field}.{self.name}.{key}",
                value=value,
            )
        return value

    def done(self, *known: str) -> None:
        for key in self.values:
            raise ConfigurationError(
                f"{self.name} has no option {key!r}; it has {', '.join(known) or 'none'}",
                field=f"{self.field}.{self.name}.{key}",
                value=self.values[key],
                valid=", ".join(known),
                nearest=get_close_matches(key, known),
            )


def compile_transform(declared: Any, tables: Tables, *, field: str, many: bool) -> Transform:
    """One transform (`parseInt`), one with options (`{concat: {separator: " "}}`) or a list of them, in order.

    `many` says that the value is a list of several paths' values, which only `concat`, `firstNonNull` and the like
    can take. Raises `ConfigurationError` for unknown names and options.
    """
    steps = declared if isinstance(declared, list) else [declared]
    if not steps:
        raise ConfigurationError("a transform is named", field=field, value=declared)
    compiled: list[Transform] = []
    for index, step in enumerate(steps):
        at = f"{field}.{index}" if isinstance(declared, list) else field
        name, options = _named(step, at)
        if many and not compiled and name not in TAKE_SEVERAL:
            raise ConfigurationError(
                f"{name} takes one value; several paths need one of {', '.join(TAKE_SEVERAL)}",
                field=at,
                value=step,
            )
        compiled.append(_FACTORIES[name](Options(options, tables, name, at)))
    if len(compiled) == 1:
        return compiled[0]

    def chained(value: Any, here: Any, message: Message) -> Any:
        for transform in compiled:
            value = transform(value, here, message)
            if value is None:
                return None
        return value

    return chained


def _named(step: Any, field: str) -> tuple[str, dict[str, Any]]:
    name = step
    options: Mapping[str, Any] = {}
    if isinstance(step, Mapping) and len(step) == 1:
        name, given = next(iter(step.items()))
        options = given if isinstance(given, Mapping) else {"": given}
    if not isinstance(name, str) or "" in options:
        raise ConfigurationError(
            "a transform is a name, or a name with its options", field=field, value=step, valid=", ".join(NAMES)
        )
    if name not in _FACTORIES:
        nearest = get_close_matches(name, NAMES, n=3)
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
        raise ConfigurationError(
            f"there is no transform {name!r}{hint}",
            field=field,
            value=name,
            valid=", ".join(NAMES),
            nearest=nearest,
        )
    return name, dict(options)


def _plain(change: Callable[[Any], Any]) -> Callable[[Options], Transform]:
    """The factory of a transform without options."""

    def factory(options: Options) -> Transform:
        options.done()
        return lambda value, here, message: change(value)

    return factory


# ---------------------------------------------------------------- numbers
_POINT_OR_EXPONENT = re.compile(r"[.eE]")


def parse_float(value: Any) -> Any:
    """A decimal number with a point. Text without point and exponent gives an integer, exact at any size."""
    kind = value.__class__
    if kind is str:
        # Python reads more than we take for a number: other scripts' digits, 1_000, nan, infinity.
        if value.isascii() and "_" not in value:
            try:
                number = float(value)
                if number - number == 0:
                    return number if _POINT_OR_EXPONENT.search(value) else int(value)
            except ValueError:
                pass
    elif kind is int or (kind is float and value - value == 0):
        return value
    raise Refusal(f"{_shown(value)} is not a number")


def parse_int(value: Any) -> int:
    """A whole number; what stands behind the point is cut off downwards (`2.9` gives 2)."""
    number = parse_float(value)
    return number if number.__class__ is int else floor(number)


def _round(options: Options) -> Transform:
    digits = options.take("digits", 0, kind=int)
    options.done("digits")

    if not 0 <= digits <= 15:
        raise ConfigurationError("round keeps 0 to 15 digits", field=f"{options.field}.round.digits", value=digits)
    last = Decimal(1).scaleb(-digits)

    def half_up(value: Any, here: Any, message: Message) -> Any:
        number = parse_float(value)
        if number.__class__ is int:
            return number
        try:
            rounded = Decimal(repr(number)).quantize(last, ROUND_HALF_UP)
        except InvalidOperation:
            return number  # so large that nothing stands behind the point
        return float(rounded) if digits else int(rounded)

    return half_up


# ---------------------------------------------------------------- text
def to_text(value: Any) -> str:
    """Text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json_text.dumps(value)


def _on_text(change: Callable[[str], str]) -> Callable[[Options], Transform]:
    return _plain(lambda value: change(to_text(value)))


def _concat(options: Options) -> Transform:
    separator = options.take("separator", "")
    options.done("separator")

    def concat(value: Any, here: Any, message: Message) -> Any:
        parts = value if value.__class__ is list else [value]
        return separator.join([to_text(part) for part in parts if part is not None])

    return concat


_TRUE = frozenset({"true", "yes", "y", "1"})
_FALSE = frozenset({"false", "no", "n", "0"})


def to_boolean(value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    text = to_text(value).strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise Refusal(f"{_shown(value)} is neither true nor false")


# ---------------------------------------------------------------- lists
def first_non_null(value: Any) -> Any:
    if value.__class__ is not list:
        return value
    return next((item for item in value if item is not None), None)


# ---------------------------------------------------------------- dates
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)")
_EPOCH_MS = 100_000_000_000
"""From here on a number counts milliseconds since 1970, below seconds: 1973-03-03 and the year 5138."""


def _to_iso8601(options: Options) -> Transform:
    """RFC 3339 date-times. Without zone a time is one in `timezone` (UTC unless declared); a date alone is its
    midnight. `format` is a `strptime` pattern for what is not ISO 8601."""
    zone = _zone(options)
    pattern = options.take("format")
    options.done("timezone", "format")

    def to_iso8601(value: Any, here: Any, message: Message) -> str:
        if value.__class__ is str:
            text = value.strip()
            try:
                moment = datetime.strptime(text, pattern) if pattern else datetime.fromisoformat(text)  # noqa: DTZ007
            except ValueError:
                expected = f"of the form {pattern}" if pattern else "ISO 8601"
                raise Refusal(f"{_shown(value)} is not {expected}") from None
            if _RFC3339.fullmatch(text) and not pattern:
                return text  # digits of the second and the zone as they were sent
        elif value.__class__ is int or value.__class__ is float:
            moment = _since_epoch(value)
        else:
            raise Refusal(f"{_shown(value)} is no date")
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=zone)
        written = moment.isoformat()
        return written.removesuffix("+00:00") + "Z" if written.endswith("+00:00") else written

    return to_iso8601


def _since_epoch(value: float) -> datetime:
    try:
        return datetime.fromtimestamp(value / 1000 if abs(value) >= _EPOCH_MS else value, UTC)
    except (ValueError, OverflowError, OSError):
        raise Refusal(f"{_shown(value)} is no date") from None


def _zone(options: Options) -> tzinfo:
    name = options.take("timezone", "UTC")
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        raise ConfigurationError(
            f"{name!r} is no time zone",
            field=f"{options.field}.{options.name}.timezone",
            value=name,
            valid="names of the IANA time zone database, such as Europe/Zurich",
        ) from None


# ---------------------------------------------------------------- codes and units
def to_alpha2(value: Any) -> str:
    """ISO 3166-1 alpha-2 from alpha-2, alpha-3 or the numeric code."""
    code = f"{value:03d}" if value.__class__ is int else value.strip().upper() if value.__class__ is str else ""
    found = ALPHA2.get(code)
    if found is None:
        raise Refusal(f"{_shown(value)} is no country code of ISO 3166-1")
    return found


def _uom_convert(options: Options) -> Transform:
    """A quantity in another unit. `from` and `to` are units or paths; `table` names a lookup table of factors to
    one base unit, instead of the weights, lengths and volumes known here."""
    source, target = (_unit(options, key) for key in ("from", "to"))
    table = options.take("table")
    options.done("from", "to", "table")
    field = f"{options.field}.{options.name}.table"
    factors = _factors(options.tables.find(table, field=field), field) if table is not None else None

    def convert(value: Any, here: Any, message: Message) -> Any:
        amount = parse_float(value)
        old, new = source(here, message), target(here, message)
        known = factors if factors is not None else units.table_of(old, new) or {}
        if old not in known or new not in known:
            raise Refusal(f"no factor from {old or 'no unit'} to {new or 'no unit'}")
        if old == new:
            return amount
        converted = Decimal(repr(amount)) * known[old] / known[new]
        return int(converted) if converted == converted.to_integral_value() else float(converted)

    return convert


def _unit(options: Options, key: str) -> Callable[[Any, Message], str]:
    given = options.take(key)
    if given is None:
        raise ConfigurationError(f"uomConvert needs {key}", field=f"{options.field}.{options.name}.{key}")
    if not given.startswith("$"):
        literal = given.strip().upper()
        return lambda here, message: literal
    path = compile_path(given, field=f"{options.field}.{options.name}.{key}")

    def unit(here: Any, message: Message) -> str:
        found = path(here, message)
        return found.strip().upper() if isinstance(found, str) else ""

    return unit


def _factors(table: Mapping[str, Any], field: str) -> dict[str, Decimal]:
    try:
        factors = {unit.upper(): Decimal(str(factor)) for unit, factor in table.items()}
    except InvalidOperation:
        factors = {}
    if not factors or not all(factor.is_finite() and factor > 0 for factor in factors.values()):
        raise ConfigurationError("a table of factors has positive numbers", field=field)
    return factors


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else to_text(value)
    return text if len(text) <= 60 else text[:57] + "..."


_FACTORIES: Mapping[str, Callable[[Options], Transform]] = {
    "toISO8601": _to_iso8601,
    "toISO3166Alpha2": _plain(to_alpha2),
    "parseInt": _plain(parse_int),
    "parseFloat": _plain(parse_float),
    "round": _round,
    "toString": _plain(to_text),
    "toBoolean": _plain(to_boolean),
    "upper": _on_text(str.upper),
    "lower": _on_text(str.lower),
    "trim": _on_text(str.strip),
    "concat": _concat,
    "firstNonNull": _plain(first_non_null),
    "uomConvert": _uom_convert,
}
NAMES = tuple(_FACTORIES)
TAKE_SEVERAL = ("concat", "firstNonNull")
