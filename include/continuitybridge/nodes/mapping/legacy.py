"""Reads the mappings of the npm library object-mapper: `{"source": "target"}` with dots, `[n]` and `[]`, and the
form in which its help text showed them, `{"target": "$.source"}`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from continuitybridge.errors import ConfigurationError
from continuitybridge.nodes.language.schema import json_path

_STEP = re.compile(r"([^.\[\]]+)|\[(\d*)\]")
_Steps = list[str | int]


def from_object_mapper(mappings: Any, *, strict: bool) -> dict[str, Any]:
    """The same mapping in our language. A field that the source lacks is left out, unless `strict`.

    Raises `ConfigurationError` naming the key that cannot be expressed (transform functions, appending, setting
    one element of a list).
    """
    if isinstance(mappings, str):
        try:
            mappings = json.loads(mappings)
        except ValueError as error:
            raise ConfigurationError(f"mappings is not JSON: {error}", field="mappings") from None
    if not isinstance(mappings, Mapping) or not mappings:
        raise ConfigurationError("mappings is an object of source and target", field="mappings", value=mappings)
    mapping: dict[str, Any] = {}
    for source, targets in mappings.items():
        if isinstance(targets, str) and targets.startswith("$"):
            path = targets.removeprefix("$").lstrip(".").replace("[*]", "[]")
            _put(mapping, _groups(source, source), _groups(path, source), {}, strict, source)
            continue
        for target in targets if isinstance(targets, list) else [targets]:
            key, extra = _target(target, source)
            _put(mapping, _groups(key, source), _groups(source, source), extra, strict, source)
    return mapping


def with_defaults(mapping: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The old `defaultValues`, which lay under the result's top-level fields."""
    for name, value in defaults.items():
        rule = mapping.get(name)
        if rule is None:
            mapping[name] = {"constant": value}
        elif isinstance(rule, str):
            mapping[name] = {"path": rule, "default": value}
        elif isinstance(rule.get("path"), str) or isinstance(rule.get("arrayPath"), str):
            rule.pop("optional", None)
            rule.setdefault("default", value)
    return mapping


def _target(target: Any, source: str) -> tuple[str, dict[str, Any]]:
    if isinstance(target, str):
        return target, {}
    if isinstance(target, Mapping) and isinstance(target.get("key"), str):
        for key in target:
            if key not in ("key", "default"):
                raise _cannot(source, f"{key} cannot be expressed; write it as transform")
        return target["key"], {"default": target["default"]} if "default" in target else {}
    raise _cannot(source, "a target is a path, or an object with key and default")


def _groups(path: str, key: str) -> list[_Steps]:
    """The steps of a path, split where it goes through every element (`[]`)."""
    if path.endswith("+"):
        raise _cannot(key, "appending (+) cannot be expressed")
    groups: list[_Steps] = [[]]
    text = path.removesuffix("?")
    if not text or "".join(match[0] for match in _STEP.finditer(text)) != text.replace(".", ""):
        raise _cannot(key, f"{path!r} is no path")
    for match in _STEP.finditer(text):
        name, index = match.groups()
        if name is not None:
            groups[-1].append(name)
        elif index:
            groups[-1].append(int(index))
        else:
            groups.append([])
    return groups


def _put(
    into: dict[str, Any],
    target: list[_Steps],
    source: list[_Steps],
    extra: dict[str, Any],
    strict: bool,
    key: str,
) -> None:
    """Enter one rule at its place, making objects and list rules on the way."""
    if len(target) > len(source):
        raise _cannot(key, "the target goes through more lists than the source")
    steps = target[0]
    if not steps or not all(isinstance(step, str) for step in steps):
        raise _cannot(key, "setting one element of a list cannot be expressed")
    place = into
    for step in steps[:-1]:
        place = place.setdefault(str(step), {})
        if not isinstance(place, dict) or "path" in place or "arrayPath" in place:
            raise _cannot(key, f"{step!r} is a value and an object at once")
    name = str(steps[-1])
    if len(target) == 1:
        if name in place:
            raise _cannot(key, f"two sources for {name!r}")
        place[name] = _leaf(source, extra, strict)
        return
    path = json_path(source[0])
    rule = place.setdefault(name, {"arrayPath": path} if strict else {"arrayPath": path, "optional": True})
    if not isinstance(rule, dict) or rule.get("arrayPath") != path:
        raise _cannot(key, f"two sources for {name!r}")
    if target[1:] == [[]]:
        if "itemMapping" in rule:
            raise _cannot(key, f"two sources for {name!r}")
        rule["itemMapping"] = _leaf(source[1:], extra, strict)
        return
    items = rule.setdefault("itemMapping", {})
    if not isinstance(items, dict) or "path" in items:
        raise _cannot(key, f"two sources for {name!r}")
    _put(items, target[1:], source[1:], extra, strict, key)


def _leaf(source: list[_Steps], extra: dict[str, Any], strict: bool) -> Any:
    path = json_path(source[0])
    for group in source[1:]:
        path += "[*]" + json_path(group).removeprefix("$")
    if extra:
        return {"path": path, **extra}
    return path if strict else {"path": path, "optional": True}


def _cannot(key: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"{key}: {reason}", field=f"mappings.{key}", value=key)
