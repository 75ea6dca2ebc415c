"""Generators of flows and of documents in the older formats."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from continuitybridge.flows import catalog
from continuitybridge.flows.model import END, OUT, Flow, Step
from continuitybridge.flows.ordering import Ordering
from continuitybridge.nodes import registry

AWKWARD = [
    *("true", "yes", "no", "null", "~", "<<", "=", "-", "?", "|", ">", "0o17", "010", "0x1F", "1e5", "1_000"),
    *(".5", ".nan", "-.inf", "1:30", "2020-01-01", "#x", "@a", "`a", "&a", "*a", "!a", "'", '"', "a: b", "a #b"),
    *(
        "",
        " ",
        "\t",
        "\ta",
        "a\nb",
        " a\n b\n",
        "a \nb",
        "a\r\nb",
        "\x85",
        "\u2028a",
        "\ufeff",
        "\x00",
        "\x7f",
        "😀",
    ),
    *("out", "end", "otherwise", "error", "bridge", "extra", "data", "nodes", "edges", "name", "label"),
]
"""Texts that YAML or one of the formats could take for something else."""

texts = st.text(max_size=12) | st.sampled_from(AWKWARD)
words = texts.filter(bool)
"""Where an empty text is the same as none."""
keys = texts
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(keys, values, max_size=3)
names = st.from_regex(r"[a-z][a-z0-9_-]{0,12}", fullmatch=True)
versions = st.sampled_from(["1.0.0", "0.1.0", "2.3.4-rc.1", "1.0.0+build.7"])
ids = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,8}", fullmatch=True).filter(lambda name: name != END)
positions = st.fixed_dictionaries({"x": st.integers(-999, 999), "y": st.floats(-9, 9, allow_nan=False)})

UNKNOWN_STEPS = ("step_of_nobody", "switchboard", "yes", "1e5", "bydm_parser2")
UNKNOWN_TRIGGERS = ("trigger_of_nobody", "kafka_consumer", "null")
"""Names that neither we nor older flows know, so that they are never translated."""


def _examples(category_is_trigger: bool) -> list[tuple[str, dict[str, Any]]]:
    """Every node type of ours with the configurations of its documentation."""
    return [
        (name, dict(example.config))
        for name, node in registry.node_types().items()
        if (node.category == "trigger") == category_is_trigger
        for example in node.examples
    ]


def nodes_of(examples: list[tuple[str, dict[str, Any]]], unknown: tuple[str, ...]) -> st.SearchStrategy[Any]:
    foreign = st.tuples(st.sampled_from(unknown), mappings)
    return st.sampled_from(examples) | foreign if examples else foreign


step_types = nodes_of(_examples(False), UNKNOWN_STEPS)
trigger_types = nodes_of(_examples(True), UNKNOWN_TRIGGERS)
kept = st.dictionaries(keys, values, max_size=2) | st.fixed_dictionaries({"position": positions})


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    """Any flow with sound names, whether or not its graph makes sense: circles, forks, dead ends."""
    chosen = draw(st.lists(ids, min_size=3, max_size=7, unique=True))
    split = draw(st.integers(0, 2))
    triggers, steps = chosen[:split], chosen[split:]

    def node(name: str, kind: st.SearchStrategy[Any], trigger: bool) -> Step:
        type_name, config = draw(kind)
        offered = catalog.ports(type_name, config)
        ports = list(offered) if offered is not None else draw(st.sampled_from([[OUT], ["a"], [OUT, "b c"]]))
        target = st.sampled_from(steps)
        routes = {}
        for port in ports:
            targets = draw(st.lists(target, max_size=2, unique=True))
            routes[port] = tuple(targets) or (END,)
        order = sorted(routes, key=lambda port: (ports.index(port) if offered else port != OUT, port))
        return Step(
            id=name,
            type=type_name,
            label=draw(texts),
            config=config,
            next={port: routes[port] for port in order},
            on_error=None if trigger else draw(st.none() | target),
            isolate=False if trigger else draw(st.booleans()),
            extra=draw(kept),
        )

    return Flow(
        name=draw(names),
        version=draw(versions),
        description=draw(texts),
        labels=draw(st.dictionaries(texts, texts, max_size=2)),
        triggers=tuple(node(name, trigger_types, True) for name in triggers),
        steps=tuple(node(name, step_types, False) for name in steps),
        on_error=draw(st.none() | st.sampled_from(steps)),
        index=draw(st.dictionaries(texts, texts, max_size=2)),
        mode=draw(st.sampled_from(["", "stream", "batch"])),
        concurrency=draw(st.none() | st.integers(1, 10_000)),
        ordering=draw(st.none() | st.builds(Ordering, words, words)),
        capture=draw(st.sampled_from(["errors", "all"])),
        extra=draw(st.dictionaries(keys.filter(lambda key: key not in ("nodes", "edges")), values, max_size=2)),
    )


def _with_some(draw: st.DrawFn, document: dict[str, Any], optional: dict[str, st.SearchStrategy[Any]]) -> None:
    for key, strategy in optional.items():
        if draw(st.booleans()):
            document[key] = draw(strategy)


free_keys = st.sampled_from(["selected", "width", "tags", "metadata", "systemInstanceId", "label2", "true"])
free = st.dictionaries(free_keys, values, max_size=2)


@st.composite
def old_canvases(draw: st.DrawFn) -> dict[str, Any]:
    """A canvas as the predecessor exported it, of node types that are not translated."""
    chosen = draw(st.lists(ids, max_size=6, unique=True))
    nodes = []
    for name in chosen:
        data: dict[str, Any] = draw(free)
        _with_some(draw, data, {"label": words, "config": mappings, "url": texts, "interfaceId": texts})
        item: dict[str, Any] = {"id": name, "type": draw(st.sampled_from(UNKNOWN_STEPS))}
        _with_some(draw, item, {"position": positions, "data": st.just(data)})
        nodes.append({**item, **draw(free)})
    edges = []
    failing = set()
    for index in range(draw(st.integers(0, 6)) if chosen else 0):
        edge: dict[str, Any] = {
            "id": f"e{index}",
            "source": draw(st.sampled_from([*chosen, "gone"])),
            "target": draw(st.sampled_from([*chosen, "gone"])),
        }
        handle = st.sampled_from(["a", "b", "out", "output-1", ""])
        label = st.sampled_from(["success", "true", "no", "error", "later"])
        _with_some(
            draw, edge, {"sourceHandle": handle, "label": label, "targetHandle": texts, "animated": st.booleans()}
        )
        # One error route per node is all a flow can hold.
        if edge.get("label") == "error":
            if edge["source"] in failing:
                del edge["label"]
            failing.add(edge["source"])
        edges.append(edge)
    document: dict[str, Any] = {"nodes": nodes, "edges": edges, **draw(free)}
    optional = {
        "id": texts,
        "name": words,
        "description": words,
        "version": st.sampled_from(["1.0", "1.0.0", "v2"]),
    }
    _with_some(draw, document, {**optional, "enabled": st.booleans()})
    return document


@st.composite
def old_dsls(draw: st.DrawFn) -> dict[str, Any]:
    """A document in the predecessor's DSL, of node types that are not translated."""
    chosen = draw(st.lists(ids, min_size=1, max_size=6, unique=True))
    split = draw(st.integers(0, 1))

    def item(name: str, types: tuple[str, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {"id": name, "type": draw(st.sampled_from(types))}
        target = st.sampled_from([*chosen, "gone"])
        _with_some(
            draw,
            found,
            {
                "label": words,
                "config": mappings.filter(bool),
                "onSuccess": target,
                "onError": target,
                "position": positions,
            },
        )
        return {**found, **draw(free)}

    document: dict[str, Any] = {
        "name": draw(words),
        "version": draw(st.sampled_from(["1.0", "1.2.3"])),
        "triggers": [item(name, UNKNOWN_TRIGGERS) for name in chosen[:split]],
        "steps": [item(name, UNKNOWN_STEPS) for name in chosen[split:]],
        **draw(free),
    }
    _with_some(draw, document, {"description": words, "organizationId": texts, "enabled": st.booleans()})
    return document


def contains(whole: Any, part: Any) -> bool:
    """Whether every key and value of `part` stands in `whole` at its place."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            key in whole and contains(whole[key], value) for key, value in part.items()
        )
    if isinstance(part, list):
        return (
            isinstance(whole, list)
            and len(whole) == len(part)
            and all(contains(a, b) for a, b in zip(whole, part, strict=True))
        )
    return type(whole) is type(part) and bool(whole == part)
