"""What a node type's class says, as a JSON Schema, as a form, as a reference page."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import orjson

from continuitybridge.nodes.base import AsyncNode, Example, NodeConfig, TriggerNode, _Node

NodeType = type[_Node[Any]]

JSON_SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def documentation(node: NodeType) -> str:
    """The long documentation, Markdown."""
    return inspect.getdoc(node) or ""


def schema(node: NodeType) -> dict[str, Any]:
    """JSON Schema 2020-12 of the node's configuration. Beside the standard's words it holds the hints of
    `nodes.base.hints`: `x-language`, `x-multiline`, `x-advanced`, `x-file`, `x-placeholder`."""
    model: type[NodeConfig] = node.Config
    described = model.model_json_schema()
    described.pop("description", None)
    return {
        "$schema": JSON_SCHEMA_DIALECT,
        "$id": f"urn:continuitybridge:node:{node.type}",
        **described,
        "title": node.label,
        "description": node.summary,
    }


def form(node: NodeType) -> dict[str, Any]:
    """What an editor needs to draw the node and a form for its configuration.

    A field is `{"name", "label", "kind", "required", "default", "help", ...}` with `kind` one of `text`,
    `textarea`, `code` (`language`), `password`, `number`, `integer`, `boolean`, `select` (`options`), `list`
    (`item`), `map` (`item`), `group` (`fields`), `rows` (`fields`), `variants` (an object whose property `key`
    says which of the `options` it is, each with `fields` of its own; the option's name alone will do), `json`.
    `ports` is None where they depend on the configuration.
    """
    described = schema(node)
    return {
        "type": node.type,
        "category": node.category,
        "label": node.label,
        "summary": node.summary,
        "documentation": documentation(node),
        "inputs": 0 if issubclass(node, TriggerNode) else 1,
        "ports": list(node.ports) if _has_fixed_ports(node) else None,
        "optional_ports": list(node.optional_ports),
        "fields": _fields(described, described),
    }


def _has_fixed_ports(node: NodeType) -> bool:
    own: Any = node.ports_of
    base: Any = _Node.ports_of
    return own.__func__ is base.__func__


def _fields(root: Mapping[str, Any], described: Mapping[str, Any], depth: int = 0) -> list[dict[str, Any]]:
    required = described.get("required", ())
    return [
        _field(root, name, found, name in required, depth)
        for name, found in described.get("properties", {}).items()
    ]


_COPIED = {
    "minimum": "minimum",
    "maximum": "maximum",
    "exclusiveMinimum": "above",
    "exclusiveMaximum": "below",
    "minLength": "min_length",
    "maxLength": "max_length",
    "pattern": "pattern",
    "minItems": "min_items",
    "maxItems": "max_items",
    "x-placeholder": "placeholder",
    "x-advanced": "advanced",
    "x-file": "file",
}


def _field(
    root: Mapping[str, Any], name: str, found: Mapping[str, Any], required: bool, depth: int
) -> dict[str, Any]:
    kind, nullable = _unwrapped(root, found)
    field: dict[str, Any] = {
        "name": name,
        "label": found.get("title") or kind.get("title") or name,
        "required": required,
        "help": found.get("description") or kind.get("description", ""),
    }
    if "default" in found:
        field["default"] = found["default"]
    if nullable:
        field["nullable"] = True
    field.update(_control(root, {**kind, **found}, kind, depth))
    return field


def _unwrapped(root: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """A schema without references and without `null` as an alternative, and whether null was one."""
    nullable = False
    kind = dict(found)
    while True:
        if "$ref" in kind:
            kind = dict(root["$defs"][kind["$ref"].rsplit("/", 1)[1]])
        elif "anyOf" in kind:
            options = [option for option in kind["anyOf"] if option.get("type") != "null"]
            nullable = nullable or len(options) < len(kind["anyOf"])
            if len(options) != 1:
                return {**kind, "anyOf": options}, nullable
            kind = {**{key: value for key, value in kind.items() if key != "anyOf"}, **options[0]}
        elif len(kind.get("allOf", ())) == 1:
            kind = {**{key: value for key, value in kind.items() if key != "allOf"}, **kind["allOf"][0]}
        else:
            return kind, nullable


_DEEPEST_FORM = 4
"""Configurations that nest deeper (mappings within mappings) are edited as JSON from there on."""


def _control(
    root: Mapping[str, Any], hinted: Mapping[str, Any], kind: Mapping[str, Any], depth: int
) -> dict[str, Any]:
    control: dict[str, Any] = {ours: hinted[theirs] for theirs, ours in _COPIED.items() if theirs in hinted}
    json_type = kind.get("type")
    if (choice := discriminated(kind)) is not None:
        key = choice["discriminator"]["propertyName"]
        return {**control, "kind": "variants", "key": key, "options": _options(root, choice, key, depth)}
    if language := hinted.get("x-language"):
        return {**control, "kind": "code", "language": language, "multiline": bool(hinted.get("x-multiline"))}
    if hinted.get("writeOnly"):
        return {**control, "kind": "password"}
    if "enum" in kind or "const" in kind:
        return {**control, "kind": "select", "options": kind.get("enum", [kind.get("const")])}
    if json_type == "string":
        return {**control, "kind": "textarea" if hinted.get("x-multiline") else "text"}
    if json_type in ("boolean", "integer", "number"):
        return {**control, "kind": json_type}
    if json_type == "array" and depth < _DEEPEST_FORM:
        item, _ = _unwrapped(root, kind.get("items", {}))
        if "properties" in item:
            return {**control, "kind": "rows", "fields": _fields(root, item, depth + 1)}
        return {**control, "kind": "list", "item": _control(root, item, item, depth + 1)}
    if json_type == "object" and depth < _DEEPEST_FORM:
        if "properties" in kind:
            return {**control, "kind": "group", "fields": _fields(root, kind, depth + 1)}
        if isinstance(kind.get("additionalProperties"), Mapping):
            item, _ = _unwrapped(root, kind["additionalProperties"])
            if "properties" in item:
                return {
                    **control,
                    "kind": "map",
                    "item": {"kind": "group", "fields": _fields(root, item, depth + 1)},
                }
            return {**control, "kind": "map", "item": _control(root, item, item, depth + 1)}
    return {**control, "kind": "json"}


def discriminated(kind: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema of an object of one of several kinds, told apart by a property, if that is described: as such, or
    as one of the alternatives."""
    for option in (kind, *kind.get("anyOf", ())):
        if "discriminator" in option:
            found: Mapping[str, Any] = option
            return found
    return None


def _options(root: Mapping[str, Any], choice: Mapping[str, Any], key: str, depth: int) -> list[dict[str, Any]]:
    options = []
    for value, reference in choice["discriminator"]["mapping"].items():
        described, _ = _unwrapped(root, {"$ref": reference})
        fields = [field for field in _fields(root, described, depth + 1) if field["name"] != key]
        options.append({"value": value, "help": described.get("description", ""), "fields": fields})
    return options


def page(node: NodeType) -> str:
    """The reference page, Markdown."""
    described = schema(node)
    parts = [
        f"# {node.label} (`{node.type}`)",
        node.summary,
        documentation(node),
        _facts(node),
        "## Configuration",
        configuration(described),
    ]
    if node.examples:
        parts.append("## Examples")
        parts.extend(_example(node, example) for example in node.examples)
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _facts(node: NodeType) -> str:
    ports = ", ".join(f"`{port}`" for port in node.ports) if _has_fixed_ports(node) else "as configured"
    facts = [f"Category: {node.category}", f"Ports: {ports}"]
    if node.optional_ports:
        facts.append("needs no route: " + ", ".join(f"`{port}`" for port in node.optional_ports))
    if issubclass(node, AsyncNode):
        facts.append("performs calls to the outside; under `--emulate` it answers from declared samples")
    if node.legacy_types:
        facts.append("in older flows: " + ", ".join(f"`{name}`" for name in node.legacy_types))
    return "*" + " · ".join(facts) + "*"


def configuration(described: Mapping[str, Any], *, without: Collection[str] = ()) -> str:
    """The table of an object schema's keys, Markdown; those of the first level in `without` are left out."""
    rows = [row for row in _rows(described, described, "", ()) if row[0].strip("`") not in without]
    if not rows:
        return "None."
    lines = ["| Key | Type | Default | Meaning |", "|---|---|---|---|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _rows(
    root: Mapping[str, Any], described: Mapping[str, Any], prefix: str, above: tuple[str, ...]
) -> list[tuple[str, str, str, str]]:
    rows: list[tuple[str, str, str, str]] = []
    required = described.get("required", ())
    for name, found in described.get("properties", {}).items():
        kind, nullable = _unwrapped(root, found)
        if name in required:
            default = "*required*"
        elif found.get("default") is None:
            default = "" if nullable or "default" not in found else "`null`"
        else:
            default = f"`{_json(found['default'])}`"
        meaning = str(found.get("description") or kind.get("description", ""))
        rows.append((f"`{prefix}{name}`", _cell(_type(root, kind)), _cell(default), _cell(meaning)))
        for path, nested in _nested(root, kind, f"{prefix}{name}"):
            title = str(nested.get("title", ""))
            if title not in above:  # a model that holds itself is printed once
                rows.extend(_rows(root, nested, path, (*above, title)))
    return rows


def _nested(root: Mapping[str, Any], kind: Mapping[str, Any], path: str) -> list[tuple[str, dict[str, Any]]]:
    """The models inside a field, with the prefix of their keys."""
    if "properties" in kind:
        return [(f"{path}.", dict(kind))]
    found: list[tuple[str, dict[str, Any]]] = []
    for option in kind.get("anyOf", ()):
        found.extend(_nested(root, _unwrapped(root, option)[0], path))
    for key, suffix in (("items", "[]"), ("additionalProperties", ".*")):
        inner = kind.get(key)
        if isinstance(inner, Mapping):
            found.extend(_nested(root, _unwrapped(root, inner)[0], f"{path}{suffix}"))
    return found


def _type(root: Mapping[str, Any], kind: Mapping[str, Any]) -> str:
    if "enum" in kind or "const" in kind:
        return ", ".join(f"`{value}`" for value in kind.get("enum", [kind.get("const")]))
    if "anyOf" in kind or "oneOf" in kind:
        options = [_type(root, _unwrapped(root, o)[0]) for o in kind.get("anyOf", kind.get("oneOf", ()))]
        return " or ".join(dict.fromkeys(options))
    json_type = kind.get("type")
    if json_type == "array":
        item = _unwrapped(root, kind.get("items", {}))[0]
        return f"list of {_type(root, item)}" if item else "list"
    if json_type == "object" and isinstance(kind.get("additionalProperties"), Mapping):
        return f"mapping to {_type(root, _unwrapped(root, kind['additionalProperties'])[0])}"
    return {
        "string": "text",
        "boolean": "true or false",
        "integer": "whole number",
        "number": "number",
        "object": "object",
        "null": "null",
    }.get(str(json_type), "any JSON")


def _example(node: NodeType, example: Example) -> str:
    parts = [f"### {example.title}"]
    if example.config:
        parts += ["Configuration:", fenced(dict(example.config))]
    if example.input_headers:
        parts += ["Headers:", fenced(dict(example.input_headers))]
    if example.resume is None:
        parts += ["In:", fenced(example.input)]
    else:
        facts = {name: value for name, value in example.resume.facts.items() if name != "members"}
        more = f", {_json(facts)}" if facts else ""
        parts += ["What waited:", fenced(example.input), f"The wait ends: `{example.resume.how}`{more}"]
    if example.fails is not None:
        parts.append(f"Fails with `{example.fails}`.")
    elif example.several:
        for port, body in example.output:
            parts += [f"Out, port `{port}`:", fenced(body)]
        if not example.output:
            parts.append("Nothing goes on.")
    elif example.output is None and example.input is not None:
        parts.append("Nothing goes on.")
    elif issubclass(node, TriggerNode) and example.output == example.input:
        parts.append("Out: the same.")
    else:
        parts += ["Out:", fenced(example.output)]
    return "\n\n".join(parts)


def fenced(value: Any) -> str:
    """A value as a code block, Markdown."""
    if isinstance(value, bytes):
        text, language = value.decode("utf-8", "backslashreplace"), ""
    elif isinstance(value, str):
        text, language = value, ""
    else:
        text, language = _json(value, indent=True), "json"
    text = text.replace("\r\n", "\n")
    fence = "```" if "```" not in text else "~~~~"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _json(value: Any, indent: bool = False) -> str:
    try:
        return orjson.dumps(value, option=orjson.OPT_INDENT_2 if indent else None).decode()
    except TypeError:  # integers beyond 64 bits
        import json

        return json.dumps(value, ensure_ascii=False, indent=2 if indent else None)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def index(nodes: Mapping[str, NodeType]) -> str:
    """The page that lists all node types, Markdown."""
    lines = ["# Nodes", "", "One page each. `bridge node show TYPE` prints the same page.", ""]
    categories = dict.fromkeys(node.category for node in nodes.values())
    for category in categories:
        lines += [f"## {category.capitalize()}", "", "| Type | Label | What it does |", "|---|---|---|"]
        lines += [
            f"| [`{name}`]({name}.md) | {node.label} | {_cell(node.summary)} |"
            for name, node in nodes.items()
            if node.category == category
        ]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def pages(nodes: Mapping[str, NodeType]) -> dict[str, str]:
    """All reference pages: file name → Markdown."""
    return {"README.md": index(nodes), **{f"{name}.md": page(node) for name, node in nodes.items()}}
