"""Compiling a flow to a plan: error routes, stages, order, digest."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flow_strategies import flows
from hypothesis import given, settings

from continuitybridge.errors import ConfigurationError
from continuitybridge.flows.load import load_flow
from continuitybridge.flows.model import Flow
from continuitybridge.flows.plan import Plan, compile_flow


def plan(steps: str, triggers: str = "[{id: t, type: manual_trigger}]", more: str = "") -> Plan:
    text = f"flow: f\nversion: 1.0.0\ntriggers: {triggers}\nsteps: [{steps}]\n{more}"
    return compile_flow(load_flow(text).flow)


def j(name: str, more: str = "") -> str:
    return f"{{id: {name}, type: json_parser{', ' if more else ''}{more}}}"


def c(name: str, more: str) -> str:
    return f"{{id: {name}, type: conditional, config: {{branches: {{yes: .a}}}}, {more}}}"


def stages(compiled: Plan) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    return [(stage.id, stage.nodes, stage.upstream) for stage in compiled.stages]


def test_cheap_neighbours_share_one_stage_with_the_trigger() -> None:
    assert stages(plan(f"{j('a')}, {j('b')}, {j('c')}")) == [("a", ("t", "a", "b", "c"), ())]


def test_an_isolated_step_is_a_stage_of_its_own() -> None:
    assert stages(plan(f"{j('a')}, {j('b', 'isolate: true')}, {j('c')}, {j('d')}")) == [
        ("a", ("t", "a"), ()),
        ("b", ("b",), ("a",)),
        ("c", ("c", "d"), ("b",)),
    ]


def test_each_step_isolated_gives_one_stage_per_step_and_the_trigger_joins_the_first() -> None:
    compiled = plan(", ".join(j(name, "isolate: true") for name in "abc"))
    assert stages(compiled) == [("a", ("t", "a"), ()), ("b", ("b",), ("a",)), ("c", ("c",), ("b",))]


def test_all_triggers_stand_in_the_first_stage() -> None:
    triggers = "[{id: s, type: manual_trigger, next: b}, {id: t, type: manual_trigger}]"
    compiled = plan(f"{j('a', 'isolate: true')}, {j('b', 'isolate: true')}", triggers)
    assert stages(compiled) == [("s", ("s", "t"), ()), ("a", ("a",), ("s",)), ("b", ("b",), ("s", "a"))]
    assert compiled.nodes["t"].stage == "s"


def test_branches_that_meet_again_stay_in_one_stage() -> None:
    compiled = plan(f"{c('a', 'next: {yes: b, otherwise: c}')}, {j('b', 'next: d')}, {j('c')}, {j('d')}")
    assert stages(compiled) == [("a", ("t", "a", "b", "c", "d"), ())]
    assert compiled.nodes["a"].next == {"yes": ("b",), "otherwise": ("c",)}


def test_a_step_that_an_isolated_one_also_leads_to_waits_behind_it() -> None:
    compiled = plan(f"{c('a', 'next: {yes: b, otherwise: c}')}, {j('b', 'isolate: true')}, {j('c')}")
    assert stages(compiled) == [("a", ("t", "a"), ()), ("b", ("b",), ("a",)), ("c", ("c",), ("a", "b"))]


def test_steps_that_nothing_connects_inside_a_stage_are_stages_apart() -> None:
    compiled = plan(
        f"{c('a', 'next: {yes: b, otherwise: c}')}, {j('b', 'isolate: true, next: d')}, "
        f"{j('c', 'isolate: true, next: e')}, {j('d', 'next: end')}, {j('e')}"
    )
    assert stages(compiled) == [
        ("a", ("t", "a"), ()),
        ("b", ("b",), ("a",)),
        ("c", ("c",), ("a",)),
        ("d", ("d",), ("b",)),
        ("e", ("e",), ("c",)),
    ]


def test_a_fork_leads_to_several_steps_and_end_is_no_node() -> None:
    compiled = plan(f"{j('a', 'next: [b, c]')}, {j('b', 'next: end')}, {j('c')}")
    assert compiled.nodes["a"].next == {"out": ("b", "c")}
    assert compiled.nodes["b"].next == compiled.nodes["c"].next == {"out": ()}


def test_a_steps_own_error_route_comes_before_the_flows() -> None:
    compiled = plan(
        f"{j('a', 'on_error: d')}, {j('b', 'next: end')}, {j('n', 'next: end')}, {j('d')}", more="on_error: n"
    )
    assert {name: node.on_error for name, node in compiled.nodes.items()} == {
        "t": None,
        "a": "d",
        "b": "n",
        "n": None,
        "d": "n",
    }


def test_the_flows_error_route_does_not_apply_to_the_steps_on_it() -> None:
    compiled = plan(f"{j('a', 'next: c')}, {j('n')}, {j('c')}", more="on_error: n")
    assert {name: node.on_error for name, node in compiled.nodes.items()} == {
        "t": None,
        "a": "n",
        "n": None,
        "c": None,
    }


def test_an_error_route_counts_as_an_edge_between_stages() -> None:
    compiled = plan(f"{j('a', 'isolate: true, next: end')}, {j('n')}", more="on_error: n")
    assert stages(compiled) == [("a", ("t", "a"), ()), ("n", ("n",), ("a",))]


def test_what_leads_to_a_step_is_told_by_every_way_and_what_lies_beside_or_behind_it_is_not() -> None:
    compiled = plan(
        f"{j('a', 'next: [b, side]')}, {j('b', 'on_error: mend, next: end')}, {j('mend')},"
        f" {j('gather')}, {j('after', 'next: end')}, {j('side', 'next: end')}"
    )
    assert compiled.leading_to("gather") == ["t", "a", "b", "mend", "gather"]
    assert compiled.leading_to("side") == ["t", "a", "side"]


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (f"{j('a')}, {j('b', 'next: a')}", "circle"),
        (f"{j('a', 'on_error: a')}", "circle"),
        (f"{j('a', 'next: gone')}", "does not exist"),
        (f"{j('a', 'on_error: gone')}", "does not exist"),
        (f"{j('a')}, {j('a')}", "same id"),
    ],
)
def test_what_no_plan_can_hold_is_refused_even_unlinted(steps: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        plan(steps)


def test_equal_sources_give_equal_plans_whatever_format_they_came_from() -> None:
    from continuitybridge.flows.convert import convert

    text = (
        "flow: f\nversion: 1.0.0\ntriggers: [{id: t, type: manual_trigger}]\n"
        f"steps: [{c('a', 'next: {otherwise: end, yes: [b, d]}')}, {j('b', 'next: end')}, "
        f"{j('d', 'on_error: b')}]\n"
    )
    first = load_flow(text)
    again = load_flow(convert(load_flow(convert(first, "canvas")), "yaml"))
    assert compile_flow(first.flow) == compile_flow(again.flow)
    assert compile_flow(first.flow).digest == compile_flow(again.flow).digest


@pytest.mark.parametrize(
    ("triggers", "declared", "mode"),
    [
        ("{id: t, type: webhook_trigger, config: {slug: s}}", "", "stream"),
        ("{id: t, type: manual_trigger}", "", "batch"),
        ("{id: t, type: manual_trigger}, {id: u, type: webhook_trigger, config: {slug: s}}", "", "stream"),
        ("{id: t, type: webhook_trigger, config: {slug: s}}", "mode: batch", "batch"),
        ("{id: t, type: manual_trigger}", "mode: stream", "stream"),
    ],
)
def test_a_flow_is_a_stream_behind_a_webhook_unless_it_says_otherwise(
    triggers: str, declared: str, mode: str
) -> None:
    assert plan(j("a"), f"[{triggers}]", declared).mode == mode


def test_the_order_of_branches_is_part_of_the_digest() -> None:
    one = plan(
        "{id: a, type: conditional, config: {branches: {x: .x, y: .y}}, next: {x: end, y: end, otherwise: end}}"
    )
    two = plan(
        "{id: a, type: conditional, config: {branches: {y: .y, x: .x}}, next: {x: end, y: end, otherwise: end}}"
    )
    assert one.digest != two.digest


@given(flows())
@settings(max_examples=60, deadline=None)
def test_a_plan_survives_json_and_its_stages_never_wait_for_each_other_in_a_circle(flow: Flow) -> None:
    try:
        compiled = compile_flow(flow)
    except ConfigurationError:
        return
    assert Plan.from_json(compiled.to_json()) == compiled
    assert list(Plan.from_json(compiled.to_json()).nodes) == list(compiled.nodes)
    seen: set[str] = set()
    for stage in compiled.stages:
        assert seen.issuperset(stage.upstream)
        seen.add(stage.id)
        assert all(compiled.nodes[name].stage == stage.id for name in stage.nodes)
        isolated = [step.id for step in flow.steps if step.isolate and step.id in stage.nodes]
        assert not isolated or {*isolated, *compiled.triggers} >= set(stage.nodes)
    order = list(compiled.nodes)
    for name, node in compiled.nodes.items():
        targets = [target for to in node.next.values() for target in to] + (
            [node.on_error] if node.on_error else []
        )
        assert all(order.index(target) > order.index(name) for target in targets)
    if compiled.triggers:
        assert set(compiled.triggers) <= set(compiled.stages[0].nodes)


def altered(change: Any) -> str:
    data = json.loads(plan(j("a", "config: {duplicate_keys: last}")).to_json())
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        altered(lambda data: data["nodes"][1].update(type="jq")),
        altered(lambda data: data["stages"].reverse() or data.update(version="2.0.0")),
    ],
)
def test_a_plan_that_was_altered_or_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        Plan.from_json(text)


FIRST_RELEASE = (
    '{"flow":"f","version":"1.0.0","capture":"errors","index":{},"triggers":["in"],'
    '"stages":[{"id":"a","nodes":["in","a"],"upstream":[]}],'
    '"nodes":[{"id":"in","type":"manual_trigger","label":"","config":{},"next":{"out":["a"]},"on_error":null,"stage":"a"},'
    '{"id":"a","type":"json_parser","label":"","config":{},"next":{"out":[]},"on_error":null,"stage":"a"}],'
    '"files":{},"digest":"daf5cc0f089dd9cca5d89dca5d7e345fd3fe20f5320f8e16a22bfe6714802af8"}'
)


def test_a_plan_that_an_older_release_stored_is_read_and_is_the_same_still() -> None:
    """A message finishes on the version it began on, and the same source is no other content under its version."""
    text = """\
flow: f
version: 1.0.0
triggers:
  - {id: in, type: manual_trigger}
steps:
  - {id: a, type: json_parser}
"""
    now = compile_flow(load_flow(text, name="f.yaml").flow)
    assert Plan.from_json(FIRST_RELEASE) == now
    assert now.to_json() == FIRST_RELEASE
