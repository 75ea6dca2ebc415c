"""The predecessor's DSL: `triggers` and `steps` in YAML or JSON, linear but for `onSuccess` and `onError`.

`onSuccess` names the step that follows (default: the next in the list); `onError` the one that takes what the step
fails on. On a condition with the single branch `true` they are that branch and `otherwise`. `end` ends the flow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from continuitybridge.errors import ConfigurationError
from continuitybridge.flows import catalog, foreign
from continuitybridge.flows.model import END, ERROR, OUT, Flow, Step
from continuitybridge.flows.reading import Draft, NodePlace, Reader, Reading
from continuitybridge.flows.source import Document, Path
from continuitybridge.flows.yaml_writer import compact, dump

_FLOW_KEYS = frozenset({"triggers", "steps", "nodes", "edges", "flow"})
_NODE_KEYS = frozenset({"id", "type", "label", "config", "onSuccess", "onError"})
_MET, _NOT_MET = "true", "otherwise"


# ---------------------------------------------------------------- reading
def read(document: Document) -> Reading:
    """Read a DSL document; what is wrong with its shape is reported in the result."""
    reader = Reader(document)
    data = reader.mapping((), document.data)
    words = foreign.document_words(reader, data)
    ours = foreign.is_ours(data)
    triggers = _nodes(reader, data, "triggers", ours)
    steps = _nodes(reader, data, "steps", ours)
    following = [*(draft.step.id for draft in steps), END]
    routed = [_routed(reader, draft, following[0]) for draft in triggers]
    routed += [_routed(reader, draft, following[index + 1]) for index, draft in enumerate(steps)]
    flow = foreign.read_flow(
        reader,
        data,
        words,
        [step for step, _ in routed[: len(triggers)]],
        [step for step, _ in routed[len(triggers) :]],
        {"triggers", "steps"},
    )
    return foreign.finish(reader, flow, [place for _, place in routed], triggers=("triggers",), steps=("steps",))


def _nodes(reader: Reader, data: Mapping[str, Any], key: str, ours: bool) -> list[Draft]:
    drafts = []
    for index, item in enumerate(reader.items((key,), data.get(key))):
        if isinstance(item, dict):
            drafts.append(_node(reader, (key, index), item, ours, f"{key[:-1]}_{index}"))
        else:
            reader.refuse((key, index), "must be a mapping", item, valid="id, type, config")
    return drafts


def _node(reader: Reader, path: Path, item: dict[str, Any], ours: bool, default_id: str) -> Draft:
    words = foreign.NodeWords.read(reader, item, path) if ours else foreign.NodeWords()
    known = _NODE_KEYS | {"bridge"} if ours else _NODE_KEYS
    type_name = reader.text((*path, "type"), item.get("type"), required=True)
    default_label = "" if ours else f"Trigger: {type_name}" if path[0] == "triggers" else type_name
    step = Step(
        id=reader.node_id((*path, "id"), item.get("id") or default_id),
        type=type_name,
        label=reader.text((*path, "label"), item.get("label", default_label)),
        config=reader.mapping((*path, "config"), item.get("config")),
        isolate=words.isolate,
        extra={key: value for key, value in item.items() if key not in known} | dict(words.extra or {}),
    )
    if ours or not catalog.is_ours(step.type):
        return Draft(item, path, step)
    translated = foreign.translated(reader, (*path, "config"), step, step.config)
    return Draft(item, path, translated or step, foreign=translated is None)


def _routed(reader: Reader, draft: Draft, following: str) -> tuple[Step, NodePlace]:
    step, path = draft.step, draft.path
    success = reader.text((*path, "onSuccess"), draft.raw.get("onSuccess")) or following
    failure = reader.text((*path, "onError"), draft.raw.get("onError")) or None
    offered = catalog.ports(step.type, step.config)
    places = {(OUT, success): (*path, "onSuccess")}
    if _is_condition(offered):
        routes = {_MET: (success,)}
        places = {(_MET, success): (*path, "onSuccess")}
        if failure is not None:
            routes[_NOT_MET] = (failure,)
            places[_NOT_MET, failure] = (*path, "onError")
            failure = None
    else:
        routes = {OUT: (success,)} if catalog.has_out(step.type, offered) else {}
    return replace(draft, step=replace(step, on_error=failure)).routed(
        routes, places, offered=offered, config=(*path, "config"), on_error=(*path, "onError")
    )


def _is_condition(offered: Sequence[str] | None) -> bool:
    return offered is not None and set(offered) == {_MET, _NOT_MET}


# ---------------------------------------------------------------- writing
def write(flow: Flow) -> str:
    """The flow in the DSL, as YAML. Raises `ConfigurationError` naming every edge the DSL has no word for."""
    refused = [edge for step in flow.nodes() for edge in _inexpressible(step)]
    if refused:
        edges = "; ".join(f"{source} --{port}--> {target}: {why}" for source, port, target, why in refused)
        raise ConfigurationError(
            f"the DSL cannot express the edge {edges}",
            edges=[[source, port, target] for source, port, target, _ in refused],
            valid="onSuccess with one target, onError",
        )
    header, bridge = foreign.written_flow(flow, _FLOW_KEYS)
    following = [*(step.id for step in flow.steps), END]
    sections = [
        {key: compact(value) if key not in ("name", "version", "description") else value}
        for key, value in header.items()
    ]
    return "\n".join(
        [
            "".join(dump(section) for section in sections),
            dump({"triggers": [_written(trigger, following[0]) for trigger in flow.triggers]}),
            dump({"steps": [_written(step, following[i + 1]) for i, step in enumerate(flow.steps)]}),
            dump({"bridge": compact(bridge)}),
        ]
    )


def _inexpressible(step: Step) -> list[tuple[str, str, str, str]]:
    found = []
    condition = _is_condition(catalog.ports(step.type, step.config))
    ports = (_MET, _NOT_MET) if condition else (OUT,)
    for port, targets in step.next.items():
        if port not in ports:
            found += [(step.id, port, target, f"it knows no port {port!r} of a {step.type}") for target in targets]
        elif len(targets) > 1:
            found += [(step.id, port, target, "a step goes on to one place only") for target in targets[1:]]
    if condition and step.on_error is not None:
        found.append((step.id, ERROR, step.on_error, "onError of a condition is its branch 'otherwise'"))
    if ports[0] not in step.next and not found:
        found.append((step.id, ports[0], "nothing", "a step without onSuccess goes on to the next one"))
    return found


def _written(step: Step, following: str) -> dict[str, Any]:
    item: dict[str, Any] = {"id": step.id, "type": step.type}
    if step.label:
        item["label"] = step.label
    if step.config:
        item["config"] = catalog.plain(step.config)
    condition = _MET in step.next
    (success,) = step.next[_MET if condition else OUT]
    if success != following:
        item["onSuccess"] = success
    failure = step.next[_NOT_MET][0] if _NOT_MET in step.next else step.on_error
    if failure is not None:
        item["onError"] = failure
    free, kept = foreign.split(step.extra, _NODE_KEYS | {"bridge"})
    words = foreign.NodeWords(isolate=step.isolate, extra=kept)
    return {**item, **{key: compact(value) for key, value in free.items()}, **words.written()}
