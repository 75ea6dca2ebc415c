"""Reads the small languages of older flows and writes ours: `{{$.a.b}}` and `{{field}}` placeholders, dotted
paths, the operators of conditions."""

from __future__ import annotations

import json
import re
from typing import Any

from continuitybridge.errors import ConfigurationError
from continuitybridge.nodes.language.template import NAMES

_PLACEHOLDER = re.compile(r"\{\{\{\s*([^{}]*?)\s*\}\}\}|\{\{\s*([^{}]*?)\s*\}\}")
_DOTTED = re.compile(r"(?:\$\.?)?(?:[\w$-]+|\[[^\]]+\])(?:\.[\w$-]+|\[[^\]]+\])*")
_STEP = re.compile(r"\[(?:'([^']*)'|\"([^\"]*)\"|(\d+))\]|([^.\[\]]+)")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def path_steps(dotted: str) -> list[str | int]:
    """`$.items[0].sku`, `items.0.sku`, `$['a b'].c` as steps. Digits alone are an index."""
    steps: list[str | int] = []
    for single, double, index, name in _STEP.findall(dotted.strip().removeprefix("$")):
        if index:
            steps.append(int(index))
        elif name.isdigit():
            steps.append(int(name))
        else:
            steps.append(single or double or name)
    return steps


def jq_path(dotted: str) -> str:
    """A dotted path as jq writes it: `.items[0].sku`, `."a b"`."""
    text = "".join(_jq_step(step) for step in path_steps(dotted))
    return text if text.startswith(".") else f".{text}"


def _jq_step(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if _IDENTIFIER.fullmatch(step) else f".{json.dumps(step)}"


def template(text: str, *, key: str) -> str:
    """A text with old placeholders as a Jinja template over `body`. What is a template of ours stays as it is;
    block helpers (`{{#each}}`, `{{>partial}}`) raise `ConfigurationError` naming `key`."""

    def translate(match: re.Match[str]) -> str:
        inner = match[1] or match[2] or ""
        if inner[:1] in ("#", "/", ">", "^", "&") or inner == "else":
            raise ConfigurationError(
                f"{key}: the block {match[0]!r} has no counterpart; a jq or object_mapper step before this one "
                "can build what it wrote",
                field=key,
                value=text,
            )
        if not _DOTTED.fullmatch(inner):
            return match[0]
        steps = path_steps(inner)
        if not inner.startswith("$") and steps[:1] and steps[0] in NAMES:
            return match[0]
        written = "".join(
            f".{step}" if isinstance(step, str) and _IDENTIFIER.fullmatch(step) else f"[{json.dumps(step)}]"
            for step in steps
        )
        return "{{ body" + written + " }}"

    return _PLACEHOLDER.sub(translate, text)


def templates(data: Any, *, key: str) -> Any:
    """`template` for every text in a piece of configuration."""
    if isinstance(data, str):
        return template(data, key=key)
    if isinstance(data, dict):
        return {name: templates(value, key=f"{key}.{name}") for name, value in data.items()}
    if isinstance(data, list):
        return [templates(value, key=f"{key}.{index}") for index, value in enumerate(data)]
    return data


def comparison(field: str, operator: str, value: Any, *, key: str) -> str:
    """An old `field` / `operator` / `value` triple as a jq expression.

    `equals` took "5" and 5 for the same: so does the translation. `contains` holds for a part of a text and for
    an element of a list. Raises `ConfigurationError` naming `key` for an operator that never existed.
    """
    path = jq_path(field)
    literal = json.dumps(value, ensure_ascii=False)
    match operator.strip().lower():
        case "equals" | "==" | "===" | "eq":
            return " or ".join(f"{path} == {text}" for text in _alike(value))
        case "not_equals" | "!=" | "!==" | "ne":
            return " and ".join(f"{path} != {text}" for text in _alike(value))
        case "greater_than" | ">" | "gt":
            return _numeric(path, ">", value, key)
        case "less_than" | "<" | "lt":
            return _numeric(path, "<", value, key)
        case ">=" | "gte":
            return _numeric(path, ">=", value, key)
        case "<=" | "lte":
            return _numeric(path, "<=", value, key)
        case "in":
            options = value if isinstance(value, list) else [v.strip() for v in str(value).split(",")]
            return " or ".join(f"{path} == {json.dumps(v, ensure_ascii=False)}" for v in options) or "false"
        case "contains":
            return f'({path} | (type == "string" or type == "array") and index({literal}) != null)'
        case "starts_with":
            return f'({path} | type == "string" and startswith({json.dumps(str(value), ensure_ascii=False)}))'
        case "ends_with":
            return f'({path} | type == "string" and endswith({json.dumps(str(value), ensure_ascii=False)}))'
    known = "equals, not_equals, greater_than, less_than, in, contains, starts_with, ends_with"
    raise ConfigurationError(
        f"{key}: {operator!r} is not an operator; known are {known}", field=key, value=operator, valid=known
    )


def _alike(value: Any) -> list[str]:
    """The JSON texts that the old loose comparison took for `value`."""
    texts = [json.dumps(value, ensure_ascii=False)]
    if isinstance(value, str) and re.fullmatch(r"-?(?:0|[1-9]\d{0,14})(?:\.\d{1,6})?", value):
        texts.append(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        texts.append(json.dumps(str(value)))
    return texts


def _numeric(path: str, operator: str, value: Any, key: str) -> str:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ConfigurationError(f"{key}: {value!r} is not a number", field=key, value=value) from None
    text = json.dumps(int(number) if number.is_integer() else number)
    return f"(({path} | tonumber?) // null | . != null and . {operator} {text})"
