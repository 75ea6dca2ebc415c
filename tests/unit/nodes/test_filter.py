"""The node `filter`."""

from __future__ import annotations

from built_nodes import Built, problem
from data_strategies import BODIES
from hypothesis import given

from continuitybridge.engine.limits import Limits
from continuitybridge.engine.message import Message
from continuitybridge.engine.runner import run_inline
from continuitybridge.engine.services import LocalServices
from continuitybridge.errors import NodeError
from continuitybridge.flows import load, plan
from continuitybridge.nodes import registry


def test_messages_for_which_the_expression_holds_go_on_and_others_are_dropped() -> None:
    node = Built("filter", {"where": ".total > 0"})
    assert node.emits({"total": 1}) == [("out", {"total": 1})]
    assert node.emits({"total": 0}) == []


def test_a_dropped_message_is_done_and_counted() -> None:
    flow = """
flow: keep-paid
version: 1.0.0
triggers: [{id: start, type: manual_trigger}]
steps: [{id: paid, type: filter, config: {where: .paid}}]
"""
    compiled = plan.compile_flow(load.load_flow(flow).flow)
    messages = [Message("a", {"paid": True}), Message("b", {"paid": False})]
    outcomes = {
        outcome.message_id: outcome
        for outcome in run_inline(compiled, messages, services=LocalServices(), limits=Limits())
    }
    assert {key: (o.status, len(o.outputs)) for key, o in outcomes.items()} == {"a": ("done", 1), "b": ("done", 0)}
    counted = [(t.received, t.emitted) for t in outcomes["b"].trace if t.node_id == "paid"]
    assert counted == [(1, 0)]


def test_a_wrong_expression_is_found_when_the_flow_is_checked() -> None:
    assert problem("filter", {"where": ".a =="}).startswith("where: jq: syntax error")
    assert "is not available here" in problem("filter", {"where": "env.A"})


@given(BODIES)
def test_whatever_a_message_holds_it_is_kept_dropped_or_fails_typed(body: object) -> None:
    try:
        emitted = Built("filter", {"where": ".a.b or .c"}).emits(body)
    except NodeError:
        return
    assert emitted in ([], [("out", body)])


def test_an_old_filter_was_written_like_a_condition() -> None:
    old = {"field": "status", "operator": "equals", "value": "paid"}
    assert registry.get("filter").from_legacy(old) == {"where": '.status == "paid"'}
    assert registry.get("filter").from_legacy({"where": ".a"}) == {"where": ".a"}
    assert registry.canonical_name("data_filter") == "filter"
