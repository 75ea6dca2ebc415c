"""The flow language: one YAML file per flow (`docs/flow-language.md`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from continuitybridge.flows import catalog
from continuitybridge.flows.model import END, ERROR, MAX_CONCURRENCY, OUT, Flow, Step
from continuitybridge.flows.reading import Draft, NodePlace, Reader, Reading
from continuitybridge.flows.source import Document, Path
from continuitybridge.flows.yaml_writer import Inline, InlineMapping, compact, dump

FLOW_KEYS = (
    "flow",
    "version",
    "description",
    "labels",
    "index",
    "mode",
    "concurrency",
    "ordering",
    "capture",
    "triggers",
    "steps",
    "on_error",
    "extra",
)
NODE_KEYS = ("id", "type", "label", "config", "next", "on_error", "isolate", "extra")


def read(document: Document) -> Reading:
    """Read a flow; what is wrong with its shape is reported in the result."""
    reader = Reader(document)
    data = reader.mapping((), document.data)
    if data.keys().isdisjoint(("flow", "triggers", "steps")):
        reader.refuse((), "this is no flow", valid=", ".join(FLOW_KEYS))
        return Reading(Flow(name="", version=""), (), {}, reader.unreadable, reader.remarks)
    reader.known_keys((), data, FLOW_KEYS)
    triggers = [_node(reader, path, item) for path, item in _nodes(reader, data, "triggers")]
    steps = [_node(reader, path, item) for path, item in _nodes(reader, data, "steps")]
    following = [*(draft.step.id for draft in steps), END]
    nodes = [_routed(reader, draft, following[0]) for draft in triggers]
    nodes += [_routed(reader, draft, following[index + 1]) for index, draft in enumerate(steps)]
    for key in ("flow", "version"):
        if key not in data:
            reader.refuse((), f"the key {key!r} is required", valid=", ".join(FLOW_KEYS))
    flow = Flow(
        name=reader.text(("flow",), data.get("flow")),
        version=reader.text(("version",), data.get("version")),
        description=reader.text(("description",), data.get("description")),
        labels=reader.texts(("labels",), data.get("labels")),
        index=reader.texts(("index",), data.get("index")),
        capture=reader.text(("capture",), data.get("capture", "errors")),
        mode=reader.text(("mode",), data.get("mode")),
        concurrency=reader.whole_number(("concurrency",), data.get("concurrency"), MAX_CONCURRENCY),
        ordering=reader.ordering(("ordering",), data.get("ordering")),
        triggers=tuple(step for step, _ in nodes[: len(triggers)]),
        steps=tuple(step for step, _ in nodes[len(triggers) :]),
        on_error=reader.text(("on_error",), data.get("on_error")) or None,
        extra=reader.kept(("extra",), data.get("extra")),
    )
    fields = {"name": ("flow",), **{key: (key,) for key in FLOW_KEYS}}
    return Reading(flow, tuple(place for _, place in nodes), fields, reader.unreadable, reader.remarks)


def _nodes(reader: Reader, data: Mapping[str, Any], key: str) -> list[tuple[Path, dict[str, Any]]]:
    found: list[tuple[Path, dict[str, Any]]] = []
    for index, item in enumerate(reader.items((key,), data.get(key))):
        path: Path = (key, index)
        if isinstance(item, dict):
            found.append((path, item))
        else:
            reader.refuse(path, "must be a mapping", item, valid="id, type, config, …")
    return found


def _node(reader: Reader, path: Path, item: dict[str, Any]) -> Draft:
    reader.known_keys(path, item, NODE_KEYS)
    step = Step(
        id=reader.node_id((*path, "id"), item.get("id")),
        type=reader.text((*path, "type"), item.get("type"), required=True),
        label=reader.text((*path, "label"), item.get("label")),
        config=reader.mapping((*path, "config"), item.get("config")),
        on_error=reader.text((*path, "on_error"), item.get("on_error")) or None,
        isolate=reader.flag((*path, "isolate"), item.get("isolate")),
        extra=reader.mapping((*path, "extra"), item.get("extra")),
    )
    return Draft(item, path, step)


def _routed(reader: Reader, draft: Draft, following: str) -> tuple[Step, NodePlace]:
    step, path = draft.step, draft.path
    at: Path = (*path, "next")
    given = draft.raw.get("next")
    places: dict[tuple[str, str], Path] = {}

    def targets(port: str, value: Any, where: Path) -> tuple[str, ...]:
        listed = value if isinstance(value, list) else [value]
        found = []
        for index, target in enumerate(listed):
            here = (*where, index) if isinstance(value, list) else where
            if target is None or isinstance(target, dict | list):
                reader.refuse(here, "leads nowhere", target, valid="a step's id, a list of ids, or end")
                continue
            name = reader.text(here, target)
            if name in found:
                reader.refuse(here, f"{name!r} stands here twice", name, valid="each step once")
                continue
            found.append(name)
            places[port, name] = here
        if not listed:
            reader.refuse(where, "leads nowhere", value, valid="a step's id, a list of ids, or end")
        return tuple(found)

    offered = catalog.ports(step.type, step.config)
    routes: dict[str, tuple[str, ...]] = {}
    if isinstance(given, dict):
        for port, value in given.items():
            if port == ERROR:
                reader.refuse((*at, port), "failures have a key of their own", value, valid="on_error")
                continue
            routes[port] = targets(port, value, (*at, port))
        if not given:
            reader.refuse(at, "leads nowhere", given, valid="a step's id, a list of ids, or end")
        if OUT not in routes and offered is not None and OUT in offered:
            routes[OUT] = (following,)
    elif "next" in draft.raw:
        routes[OUT] = targets(OUT, given, at)
    elif catalog.has_out(step.type, offered):
        routes[OUT] = (following,)
    return draft.routed(routes, places, offered=offered, config=(*path, "config"), on_error=(*path, "on_error"))


# ---------------------------------------------------------------- writing
def write(flow: Flow) -> str:
    """The flow as its author would write it: defaults left out, routes only where they are not the linear ones."""
    header: dict[str, Any] = {"flow": flow.name, "version": flow.version}
    if flow.description:
        header["description"] = flow.description
    if flow.labels:
        header["labels"] = dict(flow.labels)
    if flow.index:
        header["index"] = dict(flow.index)
    if flow.mode:
        header["mode"] = flow.mode
    if flow.concurrency is not None:
        header["concurrency"] = flow.concurrency
    if flow.ordering is not None:
        header["ordering"] = InlineMapping(flow.ordering.written())
    if flow.capture != "errors":
        header["capture"] = flow.capture
    following = [*(step.id for step in flow.steps), END]
    sections: list[dict[str, Any]] = [
        header,
        {"triggers": [_written(trigger, following[0]) for trigger in flow.triggers]},
        {"steps": [_written(step, following[index + 1]) for index, step in enumerate(flow.steps)]},
    ]
    if flow.on_error is not None:
        sections.append({"on_error": flow.on_error})
    if flow.extra:
        sections.append({"extra": {key: compact(value) for key, value in flow.extra.items()}})
    return "\n".join(dump(section) for section in sections)


def _written(step: Step, following: str) -> dict[str, Any]:
    item: dict[str, Any] = {"id": step.id, "type": step.type}
    if step.label:
        item["label"] = step.label
    if step.config:
        item["config"] = catalog.plain(step.config)
    out = catalog.has_out(step.type, catalog.ports(step.type, step.config))
    default = {OUT: (following,)} if out else {}
    if dict(step.next) != default:
        item["next"] = _next(step.next)
    if step.on_error is not None:
        item["on_error"] = step.on_error
    if step.isolate:
        item["isolate"] = True
    if step.extra:
        item["extra"] = {key: compact(value) for key, value in step.extra.items()}
    return item


def _next(routes: Mapping[str, tuple[str, ...]]) -> Any:
    values = {port: targets[0] if len(targets) == 1 else Inline(targets) for port, targets in routes.items()}
    return values[OUT] if set(values) == {OUT} else values
