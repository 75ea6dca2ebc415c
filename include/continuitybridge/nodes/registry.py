"""Finds and builds node types: `nodes/<folder>/<type>.py` defines the node type `<type>`, one class per file.

Names come from file names, so that a command that needs one node imports that one module and not the
libraries of all others. Names under which older flows know a type (`legacy_types`) are read from the classes.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from continuitybridge.errors import ConfigurationError, NotFound
from continuitybridge.nodes.base import AnyNode, BuildContext, NodeConfig, _Node
from continuitybridge.nodes.describe import discriminated

FOLDERS = ("triggers", "parse", "transform", "route", "connect", "notify", "control")
"""Where node files stand, in the order in which listings show them."""


@lru_cache
def _modules() -> Mapping[str, str]:
    """Node type → dotted module, without importing any."""
    here = Path(__file__).parent
    found: dict[str, str] = {}
    for folder in FOLDERS:
        for module in pkgutil.iter_modules([str(here / folder)]):
            if not module.ispkg and not module.name.startswith("_"):
                found[module.name] = f"continuitybridge.nodes.{folder}.{module.name}"
    return found


def names() -> tuple[str, ...]:
    """Every node type's name, by folder and then alphabetically; imports no node."""
    return tuple(_modules())


@lru_cache
def get(type_name: str) -> type[_Node[Any]]:
    """The class of one node type; imports its module only.

    Raises `NotFound` with the nearest known names in `facts["nearest"]`.
    """
    module_name = _modules().get(type_name)
    if module_name is None:
        close = nearest(type_name, names())
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise NotFound(f"no node type {type_name!r}{hint}", type=type_name, nearest=close)
    module = import_module(module_name)
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and issubclass(value, _Node)
            and value.__module__ == module_name
            and getattr(value, "type", None) == type_name
        ):
            return value
    raise RuntimeError(f"{module_name} defines no node class with type = {type_name!r}")


def node_types() -> Mapping[str, type[_Node[Any]]]:
    """Every node type; imports all of them."""
    return {name: get(name) for name in names()}


@lru_cache
def _legacy_names() -> Mapping[str, str]:
    return {old: name for name, node in node_types().items() for old in node.legacy_types}


def canonical_name(name: str) -> str | None:
    """Our name of a node type, given ours or one that older flows use; None when nobody knows it."""
    return name if name in _modules() else _legacy_names().get(name)


def nearest(name: str, known: tuple[str, ...] | list[str]) -> list[str]:
    """Up to three known names that a misspelt one may have meant, the likeliest first."""
    by_folded = {candidate.lower().replace("-", "_"): candidate for candidate in known}
    close = get_close_matches(name.lower().replace("-", "_"), by_folded, n=3, cutoff=0.6)
    return [by_folded[folded] for folded in close]


def build(type_name: str, config: Mapping[str, Any], context: BuildContext) -> AnyNode:
    """Validate a configuration and build the node: programs, schemas and paths are compiled here.

    Raises `NotFound` for an unknown type and `ConfigurationError` for a wrong configuration, with every
    problem found in `facts["problems"]`: `{"field", "value", "message", "valid", "nearest"}`, where `field` is
    a dotted path into the configuration and `valid` says what would be accepted.
    """
    node_type = get(type_name)
    try:
        checked = node_type.Config.model_validate(_plain(config))
    except ValidationError as error:
        problems = [_problem(node_type.Config, details) for details in error.errors(include_url=False)]
        problems += _further_problems(node_type, config, context, problems)
        raise _not_valid(type_name, context, problems) from None
    except RecursionError:
        raise _nested_too_deep(type_name, context) from None
    try:
        return cast("AnyNode", node_type(checked, context))
    except ConfigurationError as error:
        problems = error.facts.get("problems") or [_build_problem(error, config)]
        raise _not_valid(type_name, context, problems) from error
    except RecursionError:
        raise _nested_too_deep(type_name, context) from None


def _further_problems(
    node_type: type[_Node[Any]], config: Mapping[str, Any], context: BuildContext, known: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What building finds in the fields that are well-formed, so that a wrong program is told beside a misspelt
    key; nothing where the node cannot be built without the others."""
    wrong = {problem["field"].partition(".")[0] for problem in known}
    rest = {key: value for key, value in config.items() if key not in wrong}
    try:
        node_type(node_type.Config.model_validate(_plain(rest)), context)
    except ConfigurationError as error:
        found = error.facts.get("problems") or [_build_problem(error, config)]
        return [problem for problem in found if problem["field"].partition(".")[0] in rest]
    except (ValidationError, RecursionError):
        pass
    return []


def _not_valid(type_name: str, context: BuildContext, problems: list[dict[str, Any]]) -> ConfigurationError:
    where = f"node {context.node_id!r} ({type_name})" if context.node_id else f"node {type_name}"
    texts = "; ".join(f"{p['field']}: {p['message']}" if p["field"] else p["message"] for p in problems)
    return ConfigurationError(f"{where}: {texts}", problems=problems, type=type_name, node_id=context.node_id)


def _nested_too_deep(type_name: str, context: BuildContext) -> ConfigurationError:
    problem: dict[str, Any] = {
        "field": "",
        "value": None,
        "message": "is nested too deep",
        "valid": "",
        "nearest": [],
    }
    return _not_valid(type_name, context, [problem])


def _build_problem(error: ConfigurationError, config: Mapping[str, Any]) -> dict[str, Any]:
    facts = error.facts
    field = str(facts.get("field") or "")
    return {
        "field": field,
        "value": facts.get("value", _dig(config, field)),
        "message": error.detail,
        "valid": facts.get("valid", ""),
        "nearest": facts.get("nearest", []),
    }


def _problem(model: type[NodeConfig], details: Any) -> dict[str, Any]:
    """One pydantic error in the words of this platform."""
    location: tuple[Any, ...] = details["loc"]
    kind: str = details["type"]
    context: dict[str, Any] = details.get("ctx") or {}
    value = details.get("input")
    message, valid, close = details["msg"], "", list[str]()
    if kind == "extra_forbidden":
        known = sorted(_fields_at(model, location[:-1]))
        close = nearest(str(location[-1]), known)
        message = f"unknown key{f'; did you mean {close[0]}?' if close else ''}"
        valid = ", ".join(known)
    elif kind == "missing":
        message, value, valid = "is required", None, _describe(model, location)
    elif kind == "literal_error":
        valid = str(context.get("expected", "")).replace("'", "").replace(" or ", ", ")
        close = nearest(str(value), valid.split(", "))
        message = f"{value!r} is not one of {valid}"
    elif kind == "union_tag_invalid":
        value, valid = context["tag"], str(context["expected_tags"]).replace("'", "")
        close = nearest(str(value), valid.split(", "))
        message = f"{value!r} is not one of {valid}"
    elif kind == "value_error":
        message = str(context.get("error", message))
    else:
        message = message[:1].lower() + message[1:]
        valid = _describe(model, location)
    secret = _model_at(model, location).get("writeOnly", False)
    return {
        "field": ".".join(map(str, _without_tags(model, location))),
        "value": "***" if secret else value,
        "message": message,
        "valid": valid,
        "nearest": close,
    }


def _model_at(model: type[NodeConfig], location: tuple[Any, ...]) -> Any:
    """The schema node below a model at a location, as far as it can be followed; {} where it cannot."""
    return _followed(model, location)[0]


def _without_tags(model: type[NodeConfig], location: tuple[Any, ...]) -> list[Any]:
    """A location as the author sees it: pydantic adds which of several kinds an object is."""
    return _followed(model, location)[1]


@lru_cache
def _schema(model: type[NodeConfig]) -> dict[str, Any]:
    return model.model_json_schema()


def _followed(model: type[NodeConfig], location: tuple[Any, ...]) -> tuple[Any, list[Any]]:
    root = _schema(model)
    node: dict[str, Any] = root
    path: list[Any] = []
    for step in location:
        node = _resolve(root, node)
        properties = node.get("properties", {})
        choice = discriminated(node)
        if step in properties:
            node = properties[step]
        elif choice is not None and step in choice["discriminator"]["mapping"]:
            node = {"$ref": choice["discriminator"]["mapping"][step]}
            continue
        elif isinstance(step, int) and isinstance(node.get("items"), dict):
            node = node["items"]
        elif isinstance(node.get("additionalProperties"), dict):
            node = node["additionalProperties"]
        path.append(step)
    return _resolve(root, node), path


def _resolve(root: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = {**root["$defs"][node["$ref"].rsplit("/", 1)[1]], **{k: v for k, v in node.items() if k != "$ref"}}
    for option in node.get("anyOf", ()):
        resolved = _resolve(root, option)
        if "properties" in resolved or "items" in resolved:
            return {**resolved, **{k: v for k, v in node.items() if k != "anyOf"}}
    return node


def _fields_at(model: type[NodeConfig], location: tuple[Any, ...]) -> list[str]:
    return list(_model_at(model, location).get("properties", {}))


def _describe(model: type[NodeConfig], location: tuple[Any, ...]) -> str:
    return str(_model_at(model, location).get("description", ""))


def _dig(config: Any, field: str) -> Any:
    value: Any = config
    for step in field.split(".") if field else ():
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, list | tuple) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def _plain(value: Any) -> Any:
    """Mappings and tuples of frozen flows as the dicts and lists that strict models take."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
