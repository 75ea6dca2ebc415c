"""Nodes that make children and let messages wait: what they ask for, and how they go on."""

from __future__ import annotations

import time
from typing import Any

import pytest
from built_nodes import problem
from node_runs import quiet, run

from continuitybridge.engine.message import Message, Park, Resume
from continuitybridge.engine.services import LocalServices
from continuitybridge.errors import ConfigurationError, NodeError
from continuitybridge.flows.lint import lint
from continuitybridge.flows.load import load_flow
from continuitybridge.nodes import registry
from continuitybridge.nodes.base import BuildContext, RunContext

NOW = time.time()


def parked(node_type: str, config: dict[str, Any], body: Any, **more: Any) -> Any:
    """The wait that a node asks for."""
    built: Any = registry.build(node_type, config, BuildContext("test", "node", sources=("a", "b")))
    result = built.process(Message("m-1", body, **more), RunContext("node", LocalServices(log=quiet), now=NOW))
    assert isinstance(result, Park)
    return result.wait


def resumed(node_type: str, config: dict[str, Any], body: Any, how: str, *routes: str, **facts: Any) -> Any:
    """(port, body, vars) of what goes on; the code of what fails."""
    context = BuildContext("test", "node", routes=frozenset({"out", *routes}), sources=("a", "b"))
    built: Any = registry.build(node_type, config, context)
    message = Message("m-1", body, {}, {"split": {"parent": "m", "index": 1, "count": 2}})
    try:
        emit = built.resume(message, Resume(how, facts), RunContext("node", LocalServices(log=quiet), now=NOW))
    except NodeError as error:
        return error.code
    return (emit.port, emit.body, {**message.vars, **(emit.vars or {})})


# -- split --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "body", "children"),
    [
        ({}, [1, [2]], [1, [2]]),
        ({"items": ".a.b"}, {"a": {"b": [1]}}, [1]),
        ({"items": ".l", "item": "x"}, {"l": [1, 2]}, [{"x": 1}, {"x": 2}]),
        ({"items": ".l", "item": "x", "keep": ["*"]}, {"l": [1], "n": 7}, [{"n": 7, "x": 1}]),
        ({"items": ".l", "keep": ["n", "none"]}, {"l": [{"n": 8}], "n": 7}, [{"n": 8}]),
        ({"items": "[.l[] | select(. > 1)]"}, {"l": [1, 2, 3]}, [2, 3]),
        ({"items": ".l", "item": "x", "size": 2}, {"l": [1, 2, 3]}, [{"x": [1, 2]}, {"x": [3]}]),
        ({"by": ". % 2", "size": 1}, [1, 2, 3], [[1], [3], [2]]),
    ],
)
def test_what_becomes_of_a_list(config: dict[str, Any], body: Any, children: list[Any]) -> None:
    assert run("split", config, body) == [("out", child) for child in children]


@pytest.mark.parametrize(
    ("config", "body"),
    [
        ({"items": ".l"}, {}),
        ({"items": ".l"}, {"l": {"a": 1}}),
        ({}, b"[1]"),
        ({"items": ".l", "keep": ["n"]}, {"l": [1], "n": 7}),
        ({"keep": ["n"]}, [1]),
    ],
)
def test_what_cannot_be_split_fails(config: dict[str, Any], body: Any) -> None:
    with pytest.raises(NodeError) as failed:
        run("split", config, body)
    assert failed.value.code == "invalid-payload"


def test_an_empty_list_takes_its_route_where_there_is_one() -> None:
    context = BuildContext("test", "node", routes=frozenset({"out", "empty"}))
    built: Any = registry.build("split", {"items": ".l"}, context)
    emit = built.process(Message("m", {"l": [], "n": 1}), RunContext("node", LocalServices(log=quiet)))
    assert (emit.port, emit.body) == ("empty", {"l": [], "n": 1})


def test_children_know_their_split_and_the_one_around_it() -> None:
    built: Any = registry.build("split", {"by": ".w"}, BuildContext("test", "node"))
    outer = {"parent": "m", "index": 2, "count": 3}
    emits = built.process(
        Message("m.2", [{"w": "a"}, {"w": "b"}, {"w": "a"}], {}, {"split": outer}),
        RunContext("node", LocalServices(log=quiet)),
    )
    assert [emit.vars["split"] for emit in emits] == [
        {"parent": "m.2", "index": 1, "count": 2, "by": "a", "outer": outer},
        {"parent": "m.2", "index": 2, "count": 2, "by": "b", "outer": outer},
    ]


# -- what waits ---------------------------------------------------------------------------------------------


def test_equal_keys_are_equal_however_they_are_written() -> None:
    config = {"key": ".k", "size": 2}
    keys = [parked("aggregate", config, {"k": k}).key for k in (5, 5.0, {"b": 1, "a": 2}, {"a": 2, "b": 1})]
    assert keys[0] == keys[1]
    assert keys[2] == keys[3]
    assert parked("aggregate", config, {"k": "5"}).key != keys[0]
    for missing in ({}, {"k": None}, {"k": ""}):
        with pytest.raises(NodeError):
            parked("aggregate", config, missing)


def test_bytes_wait_as_text_or_not_at_all() -> None:
    config = {"key": "$headers.k", "size": 2}
    assert parked("aggregate", config, "ä".encode(), headers={"k": "1"}).key == '"1"'
    with pytest.raises(NodeError) as failed:
        parked("aggregate", config, b"\xff", headers={"k": "1"})
    assert failed.value.code == "invalid-payload"


@pytest.mark.parametrize(
    ("config", "need"),
    [({}, 2), ({"strategy": "any"}, 1), ({"strategy": "majority"}, 2), ({"strategy": "minimum", "minimum": 1}, 1)],
)
def test_a_join_needs_what_its_strategy_says(config: dict[str, Any], need: int) -> None:
    wait = parked("join", {"key": ".k", **config}, {"k": 1}, vars={"from": "b"})
    assert (wait.need, wait.member, wait.position, wait.scope) == (need, "b", 1, None)
    with pytest.raises(NodeError):
        parked("join", {"key": ".k"}, {"k": 1}, vars={"from": "elsewhere"})


@pytest.mark.parametrize(
    ("how", "routes", "facts", "becomes"),
    [
        ("complete", (), {}, ("out", "complete")),
        ("ended", (), {}, ("out", "complete")),
        ("ended", (), {"failed": 1}, "incomplete"),
        ("timeout", (), {}, "incomplete"),
        ("timeout", ("timeout",), {}, ("timeout", "timeout")),
        ("late", (), {}, "incomplete"),
    ],
)
def test_how_the_children_of_a_split_go_on(
    how: str, routes: tuple[str, ...], facts: dict[str, Any], becomes: Any
) -> None:
    found = resumed("aggregate", {}, [1, 2], how, *routes, **facts)
    if isinstance(found, tuple):
        port, body, variables = found
        assert body == [1, 2]
        assert "split" not in variables
        found = (port, variables["aggregate"]["reason"])
    assert found == becomes


def test_a_decision_and_its_absence() -> None:
    port, body, variables = resumed("approval", {}, {"n": 1}, "rejected", by="ann", comment="no", at="2026-01-01")
    assert (port, body) == ("rejected", {"n": 1})
    assert variables["approval"] == {"decision": "rejected", "by": "ann", "comment": "no", "at": "2026-01-01"}
    assert resumed("approval", {"timeout_s": 1}, {}, "timeout") == "incomplete"
    assert resumed("approval", {"timeout_s": 1}, {}, "timeout", "timeout")[0] == "timeout"
    assert resumed("approval", {"timeout_s": 1, "default": "approved"}, {}, "timeout")[0] == "approved"
    assert parked("approval", {"title": "n {{ body.n }}", "details": ".n"}, {"n": 1}).payload == {
        "title": "n 1",
        "details": 1,
    }


def test_a_delay_takes_times_with_and_without_a_zone_and_bounds_them() -> None:
    soon = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(NOW + 3600))
    wait = parked("delay", {"until": ".at"}, {"at": soon + "Z"})
    assert abs(wait.until - NOW - 3600) <= 1
    local = parked("delay", {"until": ".at", "timezone": "Etc/GMT-2"}, {"at": _plus(soon, 2)})
    assert abs(local.until - wait.until) <= 1
    for bad in ({"at": "soon"}, {"at": 5}, {}, {"at": "2199-01-01"}):
        with pytest.raises(NodeError):
            parked("delay", {"until": ".at"}, bad)


def _plus(text: str, hours: int) -> str:
    moment = time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S")) + hours * 3600
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(moment))


def test_what_a_called_flow_gives_back() -> None:
    config = {"flow": "check", "field": "r"}
    assert resumed("subflow", {"flow": "check"}, {}, "timeout") == "incomplete"
    assert resumed("subflow", {"flow": "check"}, {}, "failed", reason="x") == "subflow-failed"
    built: Any = registry.build("subflow", config, BuildContext("test", "node"))
    context = RunContext("node", LocalServices(log=quiet))
    several = built.resume(Message("m", {"a": 1}), Resume("done", {"results": [1, b"x"]}), context)
    assert several.body == {"a": 1, "r": [1, b"x"]}
    assert built.resume(Message("m", {"a": 1}), Resume("done", {"results": []}), context) is None
    with pytest.raises(NodeError):
        built.resume(Message("m", [1]), Resume("done", {"results": [1]}), context)


@pytest.mark.parametrize(
    ("node_type", "config", "told"),
    [
        ("split", {"keep": ["a"], "by": ".b"}, "item is required"),
        ("split", {"by": "("}, "jq"),
        ("aggregate", {"size": 3}, "size belongs to key"),
        ("join", {"strategy": "minimum"}, "minimum belongs to strategy"),
        ("join", {"streams": ["a", "a"]}, "stands twice"),
        ("join", {"stream": ".s"}, "streams is required"),
        ("delay", {"for_s": 5, "max_s": 1}, "more than max_s"),
        ("delay", {"until": ".x", "timezone": "Mars/Olympus"}, "IANA"),
        ("subflow", {"flow": "Not A Flow"}, "pattern"),
    ],
)
def test_what_could_not_work_is_refused_when_it_is_built(
    node_type: str, config: dict[str, Any], told: str
) -> None:
    assert told in problem(node_type, config)


# -- older flows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "old", "ours"),
    [
        ("data_split", {"path": "$.order.lines", "batchSize": "10"}, {"items": ".order.lines", "size": 10}),
        (
            "distributor",
            {"splitStrategy": "by_item"},
            {"items": ".items", "item": "items", "keep": ["*"], "size": 1},
        ),
        ("delay", {"delayMs": 1500}, {"for_s": 1.5}),
        ("delay", {"delaySeconds": "2"}, {"for_s": 2.0}),
        (
            "join",
            {"correlationKey": "$.order.id", "waitTimeout": 60, "joinStrategy": "nested", "outputField": "both"},
            {"key": ".order.id", "timeout_s": 60.0, "join": "nested", "field": "both"},
        ),
        (
            "join",
            {"joinId": "id", "joinStrategy": "minimum", "minimumJoins": 2, "joinTimeout": 300000},
            {"key": ".id", "timeout_s": 300.0, "strategy": "minimum", "minimum": 2},
        ),
    ],
)
def test_older_keys_become_ours(name: str, old: dict[str, Any], ours: dict[str, Any]) -> None:
    canonical = registry.canonical_name(name)
    assert canonical is not None
    translated = registry.get(canonical).from_legacy(old)
    assert translated == ours
    registry.build(canonical, translated, BuildContext("test", "node", sources=("a", "b")))
    assert registry.get(canonical).from_legacy(ours) == ours


def test_an_old_distributor_splits_as_it_did() -> None:
    split = registry.get("split")
    order = {"id": 1, "items": [{"sku": "a"}, {"sku": "b", "warehouse": "w"}, {"sku": "c", "storeStock": 2}]}
    by_warehouse = split.from_legacy({"splitStrategy": "by_warehouse"})
    assert [len(child["items"]) for _, child in run("split", by_warehouse, order)] == [1, 1, 1]
    rules = [{"condition": "sku === 'a'", "warehouse": "north"}, {"condition": "storeStock > 1", "target": "shop"}]
    custom = split.from_legacy({"splitStrategy": "custom", "distributionRules": rules})
    built: Any = registry.build("split", custom, BuildContext("test", "node"))
    emits = built.process(Message("m", order), RunContext("node", LocalServices(log=quiet)))
    assert [emit.vars["split"]["by"] for emit in emits] == ["north", "unassigned", "shop"]


def test_the_two_streams_of_an_old_join_are_told_apart_by_their_fields() -> None:
    old = {
        "correlationKey": "id",
        "streamAName": "orders",
        "streamAIdentifier": "type",
        "streamAIdentifierValue": "order",
        "streamBName": "stock",
        "streamBIdentifier": "$.available",
        "joinStrategy": "inner",
        "timeoutMinutes": 5,
    }
    ours = registry.get("join").from_legacy(old)
    assert (ours["streams"], ours["join"], ours["timeout_s"]) == (["orders", "stock"], "nested", 300.0)
    assert parked("join", ours, {"id": 1, "type": "order"}).member == "orders"
    assert parked("join", ours, {"id": 1, "available": 3}).member == "stock"


@pytest.mark.parametrize(
    ("name", "old", "key"),
    [
        ("split", {"splitStrategy": "by_carrier"}, "splitStrategy"),
        ("split", {"mode": "round_robin"}, "mode"),
        ("join", {"correlationKey": "id", "joinStrategy": "left"}, "joinStrategy"),
        ("delay", {"delayMs": "long"}, "delayMs"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_its_key(name: str, old: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        registry.get(name).from_legacy(old)
    assert refused.value.facts["field"] == key


def test_a_flow_with_ordering_cannot_wait_for_what_stands_behind() -> None:
    text = (
        "flow: f\nversion: 1.0.0\nordering: {key: $.k}\ntriggers: [{id: in, type: manual_trigger}]\nsteps:\n"
        "  - {id: read, type: json_parser}\n  - {id: pair, type: join, config: {key: .k}}\n"
    )
    [found] = [each for each in lint(load_flow(text)) if each.field == "steps[1].config.key"]
    assert "waits for other messages" in found.message
