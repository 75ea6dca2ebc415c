"""The canvas export: JSON with `nodes` and `edges`, as the predecessor's editor and ours write it.

An edge leaves by the port its `sourceHandle` names, else its `label`, in our words or the predecessor's; `error`
is the route of failures. Drawing no edge from the port `out` ends the flow there; other ports end where the node's
`bridge.ends` says so.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from continuitybridge.errors import ConfigurationError
from continuitybridge.flows import catalog, foreign, graph
from continuitybridge.flows.model import END, ERROR, OUT, Flow, Step
from continuitybridge.flows.reading import Draft, NodePlace, Reader, Reading
from continuitybridge.flows.source import Document, Path

_COLUMN_WIDTH, _ROW_HEIGHT = 260, 120
_FLOW_KEYS = frozenset({"nodes", "edges"})
_NODE_KEYS = frozenset({"id", "type", "data"})
_DATA_KEYS = frozenset({"label", "config"})

_MET = frozenset({"true", "yes", "success", "valid"})
_NOT_MET = frozenset({"false", "no", "invalid", "else", "default", ERROR})
_FAILED = frozenset({ERROR, "onerror", "failure"})
_NUMBERED = re.compile(r"(?:out|output|source|handle)?[-_]?([0-9]{1,3})")


# ---------------------------------------------------------------- reading
def read(document: Document) -> Reading:
    """Read a canvas; what is wrong with its shape is reported in the result."""
    reader = Reader(document)
    data = reader.mapping((), document.data)
    words = foreign.document_words(reader, data)
    ours = foreign.is_ours(data)
    nodes = [
        _node(reader, ("nodes", index), item, ours)
        for index, item in enumerate(reader.items(("nodes",), data.get("nodes")))
        if _is_mapping(reader, ("nodes", index), item, "id, type, position, data")
    ]
    edges = [
        _Edge(("edges", index), item, *ends)
        for index, item in enumerate(reader.items(("edges",), data.get("edges")))
        if _is_mapping(reader, ("edges", index), item, "id, source, target")
        and (ends := _ends_of_edge(reader, ("edges", index), item))
    ]
    drawn = [node.step.id for node in nodes]
    order = (_listed(reader, words, "order") or drawn) if ours else None
    routed = _ordered(_routed(reader, nodes, edges), order)
    if not ours:
        _remark_on_forks(reader, routed)
    flow = foreign.read_flow(
        reader,
        data,
        words,
        [node.step for node in routed if node.trigger],
        [node.step for node in routed if not node.trigger],
        _FLOW_KEYS,
    )
    extra = dict(flow.extra)
    if drawn != [step.id for step in flow.nodes()]:
        extra["nodes"] = drawn
    if [edge.raw for edge in edges] != _new_edges(flow):
        extra["edges"] = [edge.raw for edge in edges]
    flow = _without_own_layout(replace(flow, extra=extra), _listed(reader, words, "placed"))
    return foreign.finish(reader, flow, [node.place for node in routed], triggers=("nodes",), steps=("nodes",))


@dataclass(frozen=True)
class _Node:
    """A node as it was drawn, without its routes, and what stands under its `bridge`."""

    draft: Draft
    words: foreign.NodeWords

    @property
    def step(self) -> Step:
        return self.draft.step

    @property
    def trigger(self) -> bool:
        return catalog.is_trigger(self.step.type) if self.words.trigger is None else self.words.trigger


@dataclass(frozen=True)
class _Routed:
    """A node with its routes."""

    step: Step
    place: NodePlace
    trigger: bool


@dataclass(frozen=True)
class _Edge:
    """An edge as it was drawn."""

    path: Path
    raw: Mapping[str, Any]
    source: str
    target: str


def _is_mapping(reader: Reader, path: Path, item: Any, valid: str) -> bool:
    if not isinstance(item, dict):
        reader.refuse(path, "must be a mapping", item, valid=valid)
    return isinstance(item, dict)


def _ends_of_edge(reader: Reader, path: Path, item: Mapping[str, Any]) -> tuple[str, str] | None:
    source, target = (reader.text((*path, key), item.get(key), required=True) for key in ("source", "target"))
    return (source, target) if source and target else None


def _node(reader: Reader, path: Path, item: dict[str, Any], ours: bool) -> _Node:
    data = reader.mapping((*path, "data"), item.get("data"))
    words = foreign.NodeWords.read(reader, item, path) if ours else foreign.NodeWords()
    known = _NODE_KEYS | {"bridge"} if ours else _NODE_KEYS
    step = Step(
        id=reader.node_id((*path, "id"), item.get("id")),
        type=reader.text((*path, "type"), item.get("type"), required=True),
        label=reader.text((*path, "data", "label"), data.get("label")),
        config=reader.mapping((*path, "data", "config"), data.get("config")),
        isolate=words.isolate,
        extra={key: value for key, value in item.items() if key not in known} | dict(words.extra or {}),
    )
    beside = {key: value for key, value in data.items() if key not in _DATA_KEYS}
    foreign_still = False
    if not ours and catalog.is_ours(step.type):
        translated = _translated(reader, path, step, beside)
        foreign_still = translated is None
        step, beside = translated or (step, beside)
    if beside:
        step = replace(step, extra={**step.extra, "data": beside})
    return _Node(Draft(item, path, step, foreign_still), words)


def _translated(
    reader: Reader, path: Path, step: Step, beside: dict[str, Any]
) -> tuple[Step, dict[str, Any]] | None:
    """The node in our words and what remains of its `data`; None when it cannot be said.

    The predecessor configured a node in three places: `data.config`, other keys of `data`, and `config` of the
    node itself; empty values beside `data.config` are a form's leftovers.
    """
    moved = {
        key: value
        for key, value in beside.items()
        if key in catalog.PREDECESSOR_DATA_KEYS and value not in (None, "")
    }
    own = step.extra.get("config")
    given = {**moved, **(own if isinstance(own, dict) else {}), **step.config}
    translated = foreign.translated(reader, (*path, "data", "config"), step, given)
    if translated is None:
        return None
    if isinstance(own, dict):
        translated = replace(
            translated, extra={key: value for key, value in step.extra.items() if key != "config"}
        )
    return translated, {key: value for key, value in beside.items() if key not in moved}


def port_of(edge: Mapping[str, Any], offered: Sequence[str] | None) -> str:
    """The port an edge leaves by; `error` for the route of failures.

    `offered` are the ports of its node, None when they are not known: then its handle is believed.
    """
    handle, label = (
        value.strip() if isinstance(value := edge.get(key), str) else "" for key in ("sourceHandle", "label")
    )
    if handle == ERROR:
        return ERROR
    for name in (handle, label):
        word = name.casefold()
        if offered is not None:
            if name in offered:
                return name
            if word in _MET and (port := _first_of(("true", OUT), offered)):
                return port
            if word in _NOT_MET and (port := _first_of(("otherwise",), offered)):
                return port  # of a condition the predecessor called "not met" an error too
            if word == "invalid" and (port := _first_of(("invalid",), offered)):
                return port
            numbered = _NUMBERED.fullmatch(word)
            if len(offered) > 1 and numbered and int(numbered[1]) < len(offered):
                return offered[int(numbered[1])]
        if word in _FAILED:
            return ERROR
    if offered is None:
        return handle or OUT
    if len(offered) == 1:
        return offered[0]
    return handle or OUT


def _first_of(wanted: Iterable[str], offered: Sequence[str]) -> str | None:
    return next((port for port in wanted if port in offered), None)


def _routed(reader: Reader, nodes: list[_Node], edges: list[_Edge]) -> list[_Routed]:
    offered = {node.step.id: catalog.ports(node.step.type, node.step.config) for node in nodes}
    routes: dict[str, dict[str, list[str]]] = {node: {} for node in offered}
    places: dict[str, dict[tuple[str, str], Path]] = {node: {} for node in offered}
    errors: dict[str, _Edge] = {}
    for edge in edges:
        if edge.source not in offered:
            continue  # stays in `extra`, where lint finds it
        port = port_of(edge.raw, offered[edge.source])
        if port == ERROR:
            first = errors.setdefault(edge.source, edge)
            if first.target != edge.target:
                reader.refuse(
                    edge.path,
                    f"a second error route of {edge.source!r}, to {edge.target!r}",
                    edge.target,
                    valid=f"one error route per node (the first leads to {first.target!r})",
                )
            continue
        targets = routes[edge.source].setdefault(port, [])
        if edge.target not in targets:
            targets.append(edge.target)
            places[edge.source][port, edge.target] = edge.path
    routed = []
    for node in nodes:
        step, own = node.step, routes[node.step.id]
        for port in node.words.ends:
            own.setdefault(port, []).append(END)
        if _ends_undrawn(step, offered[step.id], own):
            own[OUT] = [END]
        error = errors.get(step.id)
        draft = replace(node.draft, step=replace(step, on_error=error.target if error else None))
        found, place = draft.routed(
            {port: tuple(dict.fromkeys(targets)) for port, targets in own.items()},
            places[step.id],
            offered=offered[step.id],
            config=(*draft.path, "data", "config"),
            on_error=error.path if error else draft.path,
        )
        routed.append(_Routed(found, place, node.trigger))
    return routed


def _remark_on_forks(reader: Reader, nodes: list[_Routed]) -> None:
    for node in nodes:
        targets = node.step.next.get(OUT, ())
        if len(targets) > 1:
            reader.remark(
                node.place.routes[OUT, targets[1]],
                f"{node.step.id!r} leads to several steps: all of them get each message, where the predecessor "
                "took the first edge only",
                targets[1],
                valid="one edge, if that was meant",
                severity="warning",
            )


def _ends_undrawn(step: Step, offered: Sequence[str] | None, others: Mapping[str, Any]) -> bool:
    """Whether a node that leads on by these ports only ends the flow at its port `out`."""
    if OUT in others:
        return False
    if offered is None:
        return not others and catalog.has_out(step.type, offered)
    return OUT in offered


def _listed(reader: Reader, words: Mapping[str, Any], key: str) -> list[str]:
    listed = reader.items(("bridge", key), words.get(key))
    return [reader.text(("bridge", key, index), item) for index, item in enumerate(listed)]


def _ordered(nodes: list[_Routed], order: list[str] | None) -> list[_Routed]:
    """Triggers, then steps, in the order our own document gives; the predecessor's gives none, and gets one in
    which a person can read it."""
    if order is None:
        steps = [node.step for node in nodes]
        errors = {step.id: step.on_error for step in steps if step.on_error is not None}
        triggers = [node.step.id for node in nodes if node.trigger]
        order = graph.reading_order(graph.edges(steps, errors), triggers)
    rank = {node: index for index, node in enumerate(order)}
    return sorted(nodes, key=lambda node: (not node.trigger, rank.get(node.step.id, len(rank))))


def _without_own_layout(flow: Flow, placed: Collection[str]) -> Flow:
    """The flow without the positions that `write` gave nodes which had none and nobody changed since."""
    layout = _layout(flow)

    def stripped(steps: tuple[Step, ...]) -> tuple[Step, ...]:
        return tuple(
            replace(step, extra={key: value for key, value in step.extra.items() if key != "position"})
            if step.id in placed and step.extra.get("position") == layout[step.id]
            else step
            for step in steps
        )

    return replace(flow, triggers=stripped(flow.triggers), steps=stripped(flow.steps))


# ---------------------------------------------------------------- writing
def write(flow: Flow) -> str:
    """The flow as a canvas. Raises `ConfigurationError` naming the edge for a port called `error`."""
    for step in flow.nodes():
        for target in step.next.get(ERROR, ()):
            raise ConfigurationError(
                f"the edge {step.id} --{ERROR}--> {target} cannot be drawn: on a canvas that port is the route "
                "of failures",
                edge=[step.id, ERROR, target],
            )
    layout, triggers = _layout(flow), {id(step) for step in flow.triggers}
    drawn = flow.extra.get("nodes", ())
    rank = {node: index for index, node in enumerate(drawn)}
    listed = [step.id for step in flow.nodes()]
    nodes = sorted(flow.nodes(), key=lambda step: rank.get(step.id, len(rank)))
    order = listed if [step.id for step in nodes] != listed else None
    kept = replace(flow, extra={key: value for key, value in flow.extra.items() if key not in _FLOW_KEYS})
    placed = [step.id for step in flow.nodes() if "position" not in step.extra] or None
    header, bridge = foreign.written_flow(kept, _FLOW_KEYS, order=order, placed=placed)
    document = {
        **header,
        "nodes": [_written(step, layout[step.id], id(step) in triggers) for step in nodes],
        "edges": _edges(flow),
        "bridge": bridge,
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n"


def _written(step: Step, position: Mapping[str, int], trigger: bool) -> dict[str, Any]:
    free, kept = foreign.split(step.extra, _NODE_KEYS | {"bridge"})
    beside = step.extra.get("data")
    data: dict[str, Any] = {"label": step.label} if step.label else {}
    data["config"] = catalog.plain(step.config)
    if isinstance(beside, Mapping) and beside and not beside.keys() & _DATA_KEYS:
        data |= beside
        kept.pop("data", None)
    odd = trigger if trigger != catalog.is_trigger(step.type) else None
    words = foreign.NodeWords(odd, step.isolate, _ends(step), kept)
    return {"id": step.id, "type": step.type, "position": position, **free, "data": data, **words.written()}


def _ends(step: Step) -> tuple[str, ...]:
    others = {port: targets for port, targets in step.next.items() if port != OUT}
    undrawn = _ends_undrawn(step, catalog.ports(step.type, step.config), others)
    return tuple(
        port
        for port, targets in step.next.items()
        if END in targets and not (port == OUT and targets == (END,) and undrawn)
    )


Route = tuple[str, str, str]


def _routes(flow: Flow) -> dict[Route, None]:
    found: dict[Route, None] = {}
    for step in flow.nodes():
        for port, target in graph.routes(step):
            if target != END:
                found[step.id, port, target] = None
        if step.on_error is not None:
            found[step.id, ERROR, step.on_error] = None
    return found


def _new_edge(route: Route, taken: set[str]) -> dict[str, Any]:
    source, port, target = route
    name = f"{source}:{port}:{target}"
    while name in taken:
        name += "'"
    taken.add(name)
    return {"id": name, "source": source, "sourceHandle": port, "target": target}


def _new_edges(flow: Flow) -> list[dict[str, Any]]:
    taken: set[str] = set()
    return [_new_edge(route, taken) for route in _routes(flow)]


def _edges(flow: Flow) -> list[dict[str, Any]]:
    """The edges as they were drawn where the flow still has them, in their order as far as it is the flow's, and
    new ones for the rest."""
    drawn = [edge for edge in flow.extra.get("edges", ()) if isinstance(edge, Mapping)]
    offered = {step.id: catalog.ports(step.type, step.config) for step in flow.nodes()}
    wanted = _routes(flow)
    kept: list[tuple[Route | None, dict[str, Any]]] = []
    for edge in drawn:
        source, target = str(edge.get("source")), str(edge.get("target"))
        if source not in offered:
            kept.append((None, dict(edge)))
            continue
        route = (source, port_of(edge, offered[source]), target)
        if route in wanted:
            kept.append((route, dict(edge)))
    covered = {route for route, _ in kept}
    taken = {str(edge.get("id")) for _, edge in kept}
    kept += [(route, _new_edge(route, taken)) for route in wanted if route not in covered]
    in_order = {route: None for route, _ in kept if route is not None}
    if _by_port(in_order) != _by_port(wanted):
        rank = {route: index for index, route in enumerate(wanted)}
        kept.sort(key=lambda item: rank.get(item[0], len(rank)) if item[0] else len(rank))
    return [edge for _, edge in kept]


def _by_port(routes: Iterable[Route]) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for source, port, target in routes:
        found.setdefault((source, port), []).append(target)
    return found


def _layout(flow: Flow) -> dict[str, dict[str, int]]:
    """A place for each node: one column per step away from the triggers, one row per node of a column."""
    errors = {step.id: step.on_error for step in flow.steps if step.on_error is not None}
    edges = graph.edges(flow.nodes(), errors)
    column: dict[str, int] = {}
    for roots in ([trigger.id for trigger in flow.triggers], *([node] for node in edges)):
        waiting = [node for node in roots if node not in column]
        column.update(dict.fromkeys(waiting, 0))
        for node in waiting:
            for target in edges[node]:
                if target in edges and target not in column:
                    column[target] = column[node] + 1
                    waiting.append(target)
    rows: dict[int, int] = {}
    places = {}
    for node in edges:
        row = rows.get(column[node], 0)
        rows[column[node]] = row + 1
        places[node] = {"x": column[node] * _COLUMN_WIDTH, "y": row * _ROW_HEIGHT}
    return places
