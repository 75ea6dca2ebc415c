"""Writes YAML that people read and `source` reads back unchanged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from continuitybridge.flows.source import resolve_plain


class Inline(list[Any]):
    """A list written on one line."""


class InlineMapping(dict[str, Any]):
    """A mapping written on one line."""


def compact(value: Any) -> Any:
    """Flat mappings and lists of scalars on one line each: positions and edges are for machines."""
    if isinstance(value, Mapping):
        flat = all(not isinstance(item, Mapping | list | tuple) for item in value.values())
        if flat and len(value) <= 6:
            return InlineMapping(value)
        return {key: compact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        flat = all(not isinstance(item, Mapping | list | tuple) for item in value)
        return Inline(value) if flat else [compact(item) for item in value]
    return value


class _Dumper(yaml.SafeDumper):
    """Writes what `source` reads back: quotes every text that YAML 1.1 or 1.2 would take for something else."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


_QUOTED = re.compile("[\r\x85\u2028\u2029\ufeff]")


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    style = None
    if _QUOTED.search(value):
        style = '"'  # line breaks to YAML 1.1, which a block would normalise away
    elif "\n" in value.rstrip("\n"):
        style = "|"
    elif not isinstance(resolve_plain(value), str) or value == "<<":
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(
    Inline, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)
_Dumper.add_representer(
    InlineMapping,
    lambda dumper, value: dumper.represent_mapping("tag:yaml.org,2002:map", value, flow_style=True),
)


def dump(value: Any) -> str:
    """A value of JSON's data model as YAML; keys keep their order."""
    return yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=2**16,
    )
