"""What the readers of the three formats share: typed access that reports instead of raising, and the result."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from continuitybridge.flows.model import END, OUT, Flow, Step
from continuitybridge.flows.ordering import HOLD, Ordering
from continuitybridge.flows.problems import Problem, nearest, shown
from continuitybridge.flows.source import Document, Path


@dataclass(frozen=True)
class NodePlace:
    """Where one node stands in its source: the node, its configuration, its error route and each route as
    (port, target). `foreign` when its configuration could not be carried over and is still the predecessor's."""

    path: Path
    config: Path
    on_error: Path
    routes: Mapping[tuple[str, str], Path] = field(default_factory=dict)
    foreign: bool = False


@dataclass
class Reading:
    """A flow as one source holds it.

    `places` stand beside `flow.nodes()`; `fields` maps the flow's own fields to where they stand. `unreadable`
    are parts of the source that no flow can hold (converting would lose them), `remarks` what was found odd
    about the rest.
    """

    flow: Flow
    places: tuple[NodePlace, ...]
    fields: Mapping[str, Path]
    unreadable: list[Problem]
    remarks: list[Problem]


@dataclass
class Draft:
    """A node while its source is read: `raw` is its mapping there, `step` still lacks its routes."""

    raw: Mapping[str, Any]
    path: Path
    step: Step
    foreign: bool = False

    def routed(
        self,
        routes: Mapping[str, tuple[str, ...]],
        places: Mapping[tuple[str, str], Path],
        *,
        offered: Sequence[str] | None,
        config: Path,
        on_error: Path,
    ) -> tuple[Step, NodePlace]:
        """The node with its routes, in the order of the ports it offers, and where all of it stands."""
        known = offered or (OUT,)
        order = sorted(routes, key=lambda port: (known.index(port) if port in known else len(known), port))
        step = replace(self.step, next={port: routes[port] for port in order})
        return step, NodePlace(self.path, config, on_error, places, self.foreign)


class Reader:
    """Typed access to a document; what has the wrong type is reported and replaced by a harmless value."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.unreadable: list[Problem] = list(document.problems)
        self.remarks: list[Problem] = []

    def refuse(self, path: Path, message: str, value: Any = None, **more: Any) -> None:
        """Report a part of the source that no flow can hold."""
        self.unreadable.append(self.document.problem(path, message, _short(value), **more))

    def remark(self, path: Path, message: str, value: Any = None, **more: Any) -> None:
        """Report something odd that the flow holds nevertheless."""
        self.remarks.append(self.document.problem(path, message, _short(value), **more))

    def known_keys(self, path: Path, value: Mapping[str, Any], known: Collection[str]) -> None:
        """Report every key that is not one of `known`."""
        for key in value:
            if key not in known:
                self.refuse(
                    (*path, key),
                    f"unknown key {shown(key)}",
                    key,
                    valid=", ".join(known),
                    nearest=nearest(key, known),
                )

    def text(self, path: Path, value: Any, *, required: bool = False) -> str:
        """A text; a number, boolean or null is taken as it is written (`version: 1.0` is the text `1.0`)."""
        if isinstance(value, str):
            text = value
        elif isinstance(value, bool | int | float):
            text = self.document.texts.get(path, str(value))
        elif value is None:
            text = ""
        else:
            self.refuse(path, "must be a text", value, valid="a text")
            return ""
        if required and not text:
            self.refuse(path, "is required", value, valid="a text")
        return text

    def mapping(self, path: Path, value: Any) -> dict[str, Any]:
        """A mapping; null is the empty one."""
        if isinstance(value, dict):
            return value
        if value is not None:
            self.refuse(path, "must be a mapping", value, valid="keys with values")
        return {}

    def items(self, path: Path, value: Any) -> list[Any]:
        """A list; null is the empty one."""
        if isinstance(value, list):
            return value
        if value is not None:
            self.refuse(path, "must be a list", value, valid="a list")
        return []

    def node_id(self, path: Path, value: Any) -> str:
        """The id of a node."""
        node = self.text(path, value, required=True)
        if node == END:
            self.refuse(path, f"{END!r} means that a flow ends", node, valid="another id")
        return node

    def kept(self, path: Path, value: Any) -> dict[str, Any]:
        """What other formats hold of a flow; `edges` and `nodes` in it have a meaning of their own."""
        found = dict(self.mapping(path, value))
        for key, kind, valid in (("edges", dict, "an edge as a canvas has it"), ("nodes", str, "a node's id")):
            kept = []
            for index, item in enumerate(self.items((*path, key), found.pop(key, None))):
                if isinstance(item, kind):
                    kept.append(item)
                else:
                    self.refuse((*path, key, index), "does not belong here", item, valid=valid)
            if kept:
                found[key] = kept
        return found

    def flag(self, path: Path, value: Any) -> bool:
        """A boolean; null is false."""
        if isinstance(value, bool):
            return value
        if value is not None:
            self.refuse(path, "must be true or false", value, valid="true, false")
        return False

    def whole_number(self, path: Path, value: Any, largest: int) -> int | None:
        """A whole number from 1 to `largest`; null is none."""
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= largest:
            return value
        if value is not None:
            self.refuse(path, "must be a whole number", value, valid=f"1 to {largest}")
        return None

    def ordering(self, path: Path, value: Any) -> Ordering | None:
        """How messages are ordered; null is not at all."""
        found = self.mapping(path, value)
        if not isinstance(value, dict):
            return None
        self.known_keys(path, found, ("key", "after_dead_letter"))
        key = self.text((*path, "key"), found.get("key"), required=True)
        return Ordering(key, self.text((*path, "after_dead_letter"), found.get("after_dead_letter", HOLD)))

    def texts(self, path: Path, value: Any) -> dict[str, str]:
        """A mapping of texts."""
        return {key: self.text((*path, key), item) for key, item in self.mapping(path, value).items()}


def _short(value: Any) -> Any:
    """A value as a problem carries it: containers are cut to what a person can take in."""
    return shown(value) if isinstance(value, dict | list) else value
