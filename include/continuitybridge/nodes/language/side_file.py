"""Side files that hold data: JSON, or YAML 1.2 as people write it by hand."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Hashable, Mapping
from typing import Any

import yaml

from continuitybridge.errors import ConfigurationError
from continuitybridge.nodes.language import json_text


class _Loader(yaml.CSafeLoader):
    """YAML's core schema: `no` is a text, `2024-01-01` is a text, and a key is the text that was written, so that
    `01: new` in a lookup table is found by "01". A key that occurs twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        self.flatten_mapping(node)
        mapping: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a text", key_node.start_mark)
            if key_node.value in mapping:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} occurs twice", key_node.start_mark
                )
            mapping[key_node.value] = self.construct_object(value_node, deep=True)
        return mapping


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


MAX_VALUES = 200_000
"""Most values of one file, those that aliases repeat counted each time."""


def parse_data(name: str, text: str, *, field: str) -> Any:
    """The data in a text of JSON or YAML. Raises `ConfigurationError` naming file, line and column."""
    try:
        data = _json(text)
        if data is None:
            data = yaml.load(text, Loader=_Loader)  # noqa: S506  (a safe loader)
        if _size(data, {}) > MAX_VALUES:
            raise ConfigurationError(f"{name}: more than {MAX_VALUES} values", field=field, value=name)
        return data
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = error.problem or error.context
        raise ConfigurationError(f"{name}{where}: {reason}", field=field, value=name) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigurationError(f"{name}: {error}", field=field, value=name) from None


def _json(text: str) -> Any:
    """The object or list in a JSON text; None for any other text. Large schemas are JSON, and YAML is slow."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json_text.loads(text)
    except ValueError:
        return None


def _size(data: Any, known: dict[int, int]) -> int:
    """How many values there are when every alias is written out. Aliases make texts of a few lines grow beyond
    any memory; what is shared is counted once and multiplied."""
    if not isinstance(data, dict | list):
        return 1
    found = known.get(id(data))
    if found is None:
        children = data.values() if isinstance(data, dict) else data
        found = known[id(data)] = 1 + sum(_size(child, known) for child in children)
    return found


def text_of(files: Mapping[str, str], name: str, *, field: str) -> str:
    """The text of a side file. Raises `ConfigurationError` when the flow does not bring it along."""
    text = files.get(name)
    if text is None:
        text = files.get(posixpath.normpath(name))
    if text is None:
        known = ", ".join(sorted(files)) or "none"
        raise ConfigurationError(
            f"the flow has no side file {name!r}; it has {known}", field=field, value=name, valid=known
        )
    return text


def beside(name: str, reference: str) -> str:
    """The name, relative to the flow, of a file that the side file `name` refers to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), reference))
