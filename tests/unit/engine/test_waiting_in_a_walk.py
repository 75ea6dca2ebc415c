"""Splits, groups and waits as one walk sees them: what comes together in it, and what leaves it to wait."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from engine_runs import PASS_ON, bodies, codes, ids, messages, plan_of, run
from hypothesis import given, settings
from hypothesis import strategies as st

from continuitybridge.engine import runner
from continuitybridge.engine.message import Outcome, Resume
from continuitybridge.flows.plan import Plan

ORDER = {"number": "PO-7", "lines": [{"sku": "A"}, {"sku": "B"}, {"sku": "C"}]}


def flow(*steps: str) -> Plan:
    return plan_of(PASS_ON + "".join(f"  - {step}\n" for step in steps))


SPLIT = "{id: lines, type: split, config: {items: .lines, keep: [number]}}"
GATHER = "{id: gather, type: aggregate, config: {result: '{number: .[0].number, skus: map(.sku)}'}}"


def waits(outcome: Outcome) -> list[tuple[str, str, str]]:
    return [(o.message.id, o.node_id, o.wait.kind) for o in outcome.outputs if o.wait is not None]


def test_a_split_is_gathered_again_under_the_parents_id(way: Any) -> None:
    plan = flow(SPLIT, "{id: mark, type: jq, config: {program: '.sku |= ascii_downcase'}}", GATHER)
    outcome = run(plan, messages(ORDER), using=way)["m1"]
    assert (outcome.status, ids(outcome)) == ("done", ["m1"])
    assert bodies(outcome) == [{"number": "PO-7", "skus": ["a", "b", "c"]}]
    assert outcome.outputs[0].message.vars["aggregate"] == {"reason": "complete", "received": 3, "failed": 0}
    assert "split" not in outcome.outputs[0].message.vars
    counts = {entry.node_id: (entry.received, entry.emitted) for entry in outcome.trace}
    assert counts == {"in": (1, 1), "parse": (1, 1), "lines": (1, 3), "mark": (3, 3), "gather": (3, 1)}


def test_a_list_of_one_makes_a_child_too() -> None:
    [output] = run(flow(SPLIT), messages({"number": 1, "lines": [{"sku": "A"}]}))["m1"].outputs
    assert (output.message.id, output.message.vars["split"]) == (
        "m1.1",
        {"parent": "m1", "index": 1, "count": 1},
    )


def test_what_a_filter_drops_is_not_waited_for(way: Any) -> None:
    plan = flow(SPLIT, "{id: some, type: filter, config: {where: '.sku != \"B\"'}}", GATHER)
    outcome = run(plan, messages(ORDER), using=way)["m1"]
    assert bodies(outcome) == [{"number": "PO-7", "skus": ["A", "C"]}]


def test_splits_within_splits_are_gathered_from_the_inside_out() -> None:
    plan = flow(
        "{id: outer, type: split}",
        "{id: inner, type: split}",
        "{id: sum, type: aggregate, config: {result: add}}",
        "{id: all, type: aggregate}",
    )
    outcome = run(plan, messages([[1, 2], [3], [4, 5, 6]]))["m1"]
    assert (ids(outcome), bodies(outcome)) == (["m1"], [[3, 3, 15]])


def test_branches_of_one_message_are_joined_by_the_steps_they_come_from(way: Any) -> None:
    plan = flow(
        "{id: fork, type: jq, config: {program: .}, next: [post, courier]}",
        "{id: post, type: jq, config: {program: '{price: 9}'}, next: offers}",
        "{id: courier, type: jq, config: {program: '{price: 14}'}}",
        "{id: offers, type: join, config: {streams: [courier, post], join: nested}}",
    )
    outcome = run(plan, messages({}), using=way)["m1"]
    assert bodies(outcome) == [{"courier": {"price": 14}, "post": {"price": 9}}]
    assert outcome.outputs[0].message.vars["join"] == {
        "reason": "complete",
        "streams": ["courier", "post"],
        "missing": [],
    }


def test_a_branch_that_ends_elsewhere_leaves_the_join_incomplete_at_once() -> None:
    steps = (
        "{id: fork, type: jq, config: {program: .}, next: [post, courier]}",
        "{id: post, type: jq, config: {program: '{price: 9}'}, next: offers}",
        "{id: courier, type: filter, config: {where: .far}}",
        "{id: offers, type: join%s}",
        "{id: late, type: logger}",
    )
    plan = flow(*(s.replace("%s", ", next: {out: end, timeout: late}") for s in steps))
    [output] = run(plan, messages({}))["m1"].outputs
    assert (output.node_id, output.message.body) == ("late", {"price": 9})
    assert output.message.vars["join"]["missing"] == ["courier"]
    unrouted = run(flow(*(s.replace("%s", ", next: end") for s in steps[:4])), messages({}))["m1"]
    assert codes(unrouted) == ["incomplete"]
    assert unrouted.failures[0].facts["missing"] == ["courier"]


def test_joins_inside_a_split_stay_apart() -> None:
    plan = flow(
        "{id: each, type: split, next: [left, right]}",
        "{id: left, type: jq, config: {program: '{l: .}'}, next: both}",
        "{id: right, type: jq, config: {program: '{r: .}'}}",
        "{id: both, type: join}",
        "{id: all, type: aggregate}",
    )
    outcome = run(plan, messages([1, 2]))["m1"]
    assert bodies(outcome) == [[{"l": 1, "r": 1}, {"l": 2, "r": 2}]]


def test_what_may_still_come_is_waited_for_in_the_tables() -> None:
    """A sibling that crosses into another stage, fails or waits by itself leaves the group open."""
    apart = flow(SPLIT, "{id: alone, type: jq, config: {program: .}, isolate: true}", GATHER)
    outcome = run(apart, messages(ORDER), stage="parse")["m1"]
    assert [(o.message.id, o.node_id) for o in outcome.outputs] == [(f"m1.{n}", "alone") for n in (1, 2, 3)]

    broken = flow(
        SPLIT, '{id: check, type: jq, config: {program: \'if .sku == "B" then error("b") end\'}}', GATHER
    )
    outcome = run(broken, messages(ORDER))["m1"]
    assert outcome.status == "failed"
    assert waits(outcome) == [("m1.1", "gather", "group"), ("m1.3", "gather", "group")]
    wait = outcome.outputs[0].wait
    assert wait is not None
    assert (wait.scope, wait.member, wait.need, wait.becomes) == ("m1", "1", 3, "m1")


def test_a_resumed_message_goes_on_behind_its_wait(way: Any) -> None:
    plan = flow(
        "{id: hold, type: delay, config: {for_s: 60}}", "{id: after, type: jq, config: {program: '.n + 1'}}"
    )
    parked = run(plan, messages({"n": 1}), using=way)["m1"]
    assert (parked.status, waits(parked)) == ("handed_over", [("m1", "hold", "time")])
    message = replace(parked.outputs[0].message, resume=Resume("due"))
    resumed = run(plan, [message], using=way, entry={"m1": "hold"})["m1"]
    assert (resumed.status, bodies(resumed)) == ("done", [2])
    counts = {entry.node_id: (entry.received, entry.emitted) for entry in resumed.trace}
    assert counts["hold"] == (0, 1)


def test_a_failed_resumption_keeps_what_it_is_resumed_with(way: Any) -> None:
    plan = flow("{id: pair, type: join, config: {key: .k, stream: .s, streams: [a, b]}}")
    [output] = run(plan, messages({"k": 1, "s": "a"}))["m1"].outputs
    resume = Resume("timeout", {"members": [{"member": "a"}]})
    message = replace(output.message, body=[output.message.body], resume=resume)
    [failure] = run(plan, [message], using=way, entry={"m1": "pair"})["m1"].failures
    assert (failure.code, failure.message.resume) == ("incomplete", resume)  # type: ignore[union-attr]


def test_a_node_where_nothing_waits_cannot_be_resumed() -> None:
    message = replace(messages({})[0], resume=Resume("due"))
    outcome = run(flow("{id: x, type: logger}"), [message], entry={"m1": "x"})["m1"]
    assert codes(outcome) == ["configuration-error"]


def test_nothing_waits_under_emulation() -> None:
    plan = flow(
        "{id: hold, type: delay, config: {for_s: 3600}}",
        "{id: ask, type: approval, config: {sample: rejected}, next: {approved: end, rejected: credit}}",
        "{id: credit, type: subflow, config: {flow: check, field: credit, sample: {granted: true}}}",
        "{id: window, type: aggregate, config: {key: .n, timeout_s: 5}}",
        "{id: pair, type: join, config: {stream: '\"a\"', streams: [a, b], key: '.[0].n', join: array,"
        " sample: {b: other}}}",
    )
    [output] = run(plan, messages({"n": 1}), emulate=True)["m1"].outputs
    assert output.message.body == [[{"n": 1, "credit": {"granted": True}}], "other"]
    assert output.message.vars["approval"]["decision"] == "rejected"


def test_a_failed_sibling_is_told_under_emulation() -> None:
    check = '{id: check, type: jq, config: {program: \'if .sku == "B" then error("b") end\'}}'
    strict = run(flow(SPLIT, check, GATHER), messages(ORDER), emulate=True)["m1"]
    assert codes(strict) == ["transform-failed", "incomplete"]
    lenient = GATHER.replace("{result", "{on_missing: partial, result")
    partial = run(flow(SPLIT, check, lenient), messages(ORDER), emulate=True)["m1"]
    assert bodies(partial) == [{"number": "PO-7", "skus": ["A", "C"]}]


SPLITS = (
    "{id: outer, type: split}",
    "{id: few, type: filter, config: {where: 'length != 1'}}",
    "{id: inner, type: split, config: {size: 2}}",
)
APART = flow(*SPLITS)
TOGETHER = flow(*SPLITS, "{id: gather-inner, type: aggregate}", "{id: gather-outer, type: aggregate}")


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=5))
def test_whatever_is_split_comes_together_once_in_its_order_with_the_same_ids(data: list[list[int]]) -> None:
    def once(plan: Plan) -> Outcome:
        return run(plan, messages(data), using=runner.run_inline)["m1"]

    chunks = [[part[at : at + 2] for at in range(0, len(part), 2)] for part in data if len(part) > 1]
    outcome = once(TOGETHER)
    assert bodies(outcome) == ([chunks] if chunks else [])
    assert ids(outcome) == (["m1"] if chunks else [])
    assert (
        ids(once(APART))
        == ids(once(APART))
        == [
            f"m1.{n}.{m}"
            for n, part in enumerate(data, 1)
            if len(part) > 1
            for m in range(1, (len(part) + 1) // 2 + 1)
        ]
    )


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        ("{id: x, type: aggregate}", "no split stands before"),
        ("{id: x, type: aggregate, config: {key: .a}}", "size or timeout_s is required"),
        ("{id: x, type: join, config: {streams: [parse, nobody]}}", "'nobody' does not lead here"),
        ("{id: x, type: join, config: {strategy: minimum, minimum: 2}}", "more than the 1 streams"),
        ("{id: x, type: delay}", "either for_s or until"),
    ],
)
def test_a_wait_that_could_not_end_is_refused_while_the_flow_is_checked(step: str, problem: str) -> None:
    from continuitybridge.errors import ConfigurationError

    with pytest.raises(ConfigurationError) as refused:
        flow(step)
    assert problem in str(refused.value.facts["problems"])
