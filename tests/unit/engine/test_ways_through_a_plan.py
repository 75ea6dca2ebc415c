"""Where messages go: ports, fan-out and fan-in, splits, error routes, stages; what each leaves behind."""

from __future__ import annotations

from typing import Any

import pytest
from engine_runs import HEAD, PASS_ON, bodies, codes, ids, messages, plan_of, run

from continuitybridge.engine.limits import Limits
from continuitybridge.engine.message import Message
from continuitybridge.engine.services import LocalServices
from continuitybridge.errors import ConfigurationError, Verdict

ROUTED = (
    PASS_ON
    + """
  - id: by-country
    type: conditional
    config: {branches: {domestic: '.country == "CH"', near: '.country == "DE"'}}
    next: {domestic: inland, near: [border, inland], otherwise: end}
  - {id: border, type: jq, config: {program: '.via = "border"'}, next: mark}
  - {id: inland, type: jq, config: {program: '.via = "inland"'}, next: mark}
  - {id: mark, type: jq, config: {program: '.marked = true'}, next: end}
"""
)

SPLIT = (
    PASS_ON
    + """
  - {id: lines, type: jq, config: {program: '.lines[]'}}
  - {id: half, type: jq, config: {program: 'if . == 13 then error("unlucky") else ., -. end'}}
"""
)

HANDLED = (
    PASS_ON
    + """
  - {id: risky, type: jq, config: {program: 'if .bad then error("bad") else . end'}, on_error: mend, next: end}
  - id: mend
    type: jq
    config:
      program: >-
        {mended: $vars.error.detail, at: $vars.error.node_id, verdict: $vars.error.verdict, was: .}
  - {id: last, type: jq, config: {program: 'if .was.worse then error("worse") else . end'}}
"""
)

STAGED = (
    PASS_ON
    + """
  - {id: alone, type: jq, config: {program: '.alone = true'}, isolate: true}
  - {id: after, type: jq, config: {program: '.after = true'}}
"""
)


def test_a_message_that_stays_one_message_keeps_its_id(way: Any) -> None:
    outcome = run(plan_of(PASS_ON), messages({"a": 1}), using=way)["m1"]
    assert (outcome.status, ids(outcome), bodies(outcome)) == ("done", ["m1"], [{"a": 1}])
    assert outcome.outputs[0].node_id == "parse"
    assert outcome.verdict is None


def test_a_branch_that_holds_takes_the_message(way: Any) -> None:
    outcome = run(plan_of(ROUTED), messages({"country": "CH"}), using=way)["m1"]
    assert bodies(outcome) == [{"country": "CH", "via": "inland", "marked": True}]
    assert ids(outcome) == ["m1"]


def test_a_branch_that_leads_to_the_end_lets_the_message_leave_there(way: Any) -> None:
    outcome = run(plan_of(ROUTED), messages({"country": "FR"}), using=way)["m1"]
    assert [(o.message.body, o.node_id) for o in outcome.outputs] == [({"country": "FR"}, "by-country")]


def test_a_port_with_two_targets_makes_two_children_that_meet_again(way: Any) -> None:
    outcome = run(plan_of(ROUTED), messages({"country": "DE"}), using=way)["m1"]
    assert ids(outcome) == ["m1.1", "m1.2"]
    assert [body["via"] for body in bodies(outcome)] == ["border", "inland"]
    mark = next(trace for trace in outcome.trace if trace.node_id == "mark")
    assert (mark.received, mark.emitted, mark.failed) == (2, 2, 0)


def test_children_share_nothing(way: Any) -> None:
    plan = plan_of(
        PASS_ON
        + """
  - {id: fan, type: filter, config: {where: 'true'}, next: [one, two]}
  - {id: one, type: validation, config: {rules: {missing: {required: true}}}, next: {out: end, invalid: note-one}}
  - {id: two, type: validation, config: {rules: {absent: {required: true}}}, next: {out: end, invalid: note-two}}
  - {id: note-one, type: jq, config: {program: '{body: ., vars: ($vars | keys)}'}, next: end}
  - {id: note-two, type: jq, config: {program: '{body: ., vars: ($vars | keys)}'}, next: end}
"""
    )
    outcome = run(plan, messages({"a": [1]}), using=way)["m1"]
    assert bodies(outcome) == [{"body": {"a": [1]}, "vars": ["one"]}, {"body": {"a": [1]}, "vars": ["two"]}]


def test_children_of_children_bear_their_ancestors_ids_in_the_order_of_emission(way: Any) -> None:
    outcome = run(plan_of(SPLIT), messages({"lines": [1, 2]}), using=way)["m1"]
    assert list(zip(ids(outcome), bodies(outcome), strict=True)) == [
        ("m1.1.1", 1),
        ("m1.1.2", -1),
        ("m1.2.1", 2),
        ("m1.2.2", -2),
    ]


def test_a_split_into_one_stays_the_message_itself(way: Any) -> None:
    assert ids(run(plan_of(SPLIT), messages({"lines": [5]}), using=way)["m1"]) == ["m1.1", "m1.2"]


def test_a_dropped_message_is_done_and_leaves_nothing(way: Any) -> None:
    outcome = run(plan_of(SPLIT), messages({"lines": []}), using=way)["m1"]
    assert (outcome.status, outcome.outputs, outcome.failures) == ("done", [], [])
    assert [(t.node_id, t.received, t.emitted) for t in outcome.trace] == [
        ("in", 1, 1),
        ("parse", 1, 1),
        ("lines", 1, 0),
    ]


def test_one_failed_child_fails_the_message_and_spoils_no_sibling(way: Any) -> None:
    outcome = run(plan_of(SPLIT), messages({"lines": [1, 13, 2]}), using=way)["m1"]
    assert outcome.status == "failed"
    assert bodies(outcome) == [1, -1, 2, -2]
    (failure,) = outcome.failures
    assert (failure.message_id, failure.node_id, failure.node_type, failure.body) == ("m1.2", "half", "jq", 13)
    assert (failure.code, failure.verdict) == ("transform-failed", Verdict.TERMINAL)
    half = outcome.trace[-1]
    assert (half.received, half.emitted, half.failed) == (3, 4, 1)


def test_a_failed_message_takes_its_error_route_and_knows_why(way: Any) -> None:
    outcome = run(plan_of(HANDLED), messages({"bad": True}), using=way)["m1"]
    assert outcome.status == "done"
    assert bodies(outcome) == [
        {"mended": "jq: bad", "at": "risky", "verdict": "terminal", "was": {"bad": True}},
    ]
    assert {t.node_id: t.failed for t in outcome.trace} == {"in": 0, "parse": 0, "risky": 1, "mend": 0, "last": 0}


def test_a_failure_behind_the_error_route_is_a_failure(way: Any) -> None:
    outcome = run(plan_of(HANDLED), messages({"bad": True, "worse": True}), using=way)["m1"]
    assert (outcome.status, codes(outcome), outcome.failures[0].node_id) == (
        "failed",
        ["transform-failed"],
        "last",
    )


def test_the_flows_error_route_serves_every_node_and_does_not_come_round_again(way: Any) -> None:
    plan = plan_of(
        PASS_ON
        + "  - {id: work, type: jq, config: {program: 'error(\"a\")'}, next: end}\n"
        + "  - {id: note, type: jq, config: {program: 'error(\"b\")'}}\n"
        + "on_error: note\n"
    )
    outcomes = run(plan, messages({}, b"not json"), using=way)
    assert [(f.node_id, f.detail) for f in outcomes["m1"].failures] == [("note", "jq: b")]
    assert outcomes["m2"].failures[0].node_id == "note"


def test_a_stage_boundary_hands_the_message_over(way: Any) -> None:
    plan = plan_of(STAGED)
    assert len(plan.stages) > 1
    outcome = run(plan, messages({}), using=way, stage=plan.stages[0].id)["m1"]
    assert outcome.status == "handed_over"
    (output,) = outcome.outputs
    assert (output.node_id, output.stage) == ("alone", plan.nodes["alone"].stage)


def test_stage_after_stage_gives_what_the_whole_plan_gives(way: Any) -> None:
    plan = plan_of(STAGED)
    whole = run(plan, messages({"a": 1}), using=way)["m1"]
    given, entry, last = messages({"a": 1}), {}, None
    for stage in plan.stages:
        last = run(plan, given, using=way, stage=stage.id, entry=entry)["m1"]
        given = [output.message for output in last.outputs]
        entry = {output.message.id: output.node_id for output in last.outputs}
    assert last is not None
    assert bodies(last) == bodies(whole) == [{"a": 1, "alone": True, "after": True}]
    assert last.status == whole.status == "done"


def test_a_message_begins_at_the_trigger_it_names_or_the_flows_first(way: Any) -> None:
    plan = plan_of(
        """
flow: tested
version: 1.0.0
triggers:
  - {id: first, type: manual_trigger}
  - {id: second, type: manual_trigger, next: b}
steps:
  - {id: a, type: jq, config: {program: '"a"'}, next: end}
  - {id: b, type: jq, config: {program: '"b"'}, next: end}
"""
    )
    given = [Message("m1", {}), Message("m2", {}, vars={"trigger": "second"}), Message("m3", {})]
    outcomes = run(plan, given, using=way, entry={"m3": "b"})
    assert [bodies(outcomes[name]) for name in ("m1", "m2", "m3")] == [["a"], ["b"], ["b"]]
    assert [trace.node_id for trace in outcomes["m2"].trace] == ["second", "b"]


@pytest.mark.parametrize(
    ("message", "entry"),
    [(Message("m1", b"{}", vars={"trigger": "elsewhere"}), {}), (Message("m1", b"{}"), {"m1": "elsewhere"})],
)
def test_an_unknown_beginning_fails_that_message(way: Any, message: Message, entry: dict[str, str]) -> None:
    outcomes = run(plan_of(PASS_ON), [message, Message("m2", b"{}")], using=way, entry=entry)
    assert codes(outcomes["m1"]) == ["configuration-error"]
    assert outcomes["m2"].status == "done"


def test_a_plan_without_such_a_stage_is_refused(way: Any) -> None:
    with pytest.raises(ConfigurationError, match="no stage 'nowhere'"):
        run(plan_of(PASS_ON), messages({}), using=way, stage="nowhere")


def test_the_log_of_a_flow_reaches_the_caller(way: Any) -> None:
    lines: list[tuple[str, str, Any]] = []
    plan = plan_of(
        PASS_ON + "  - {id: note, type: logger, config: {message: 'saw {{ body.a }}', level: warning}}\n"
    )
    services = LocalServices(log=lambda level, text, fields: lines.append((level, text, fields["node_id"])))
    run(plan, messages({"a": 7}), using=way, services=services)
    assert lines == [("warning", "saw 7", "note")]


@pytest.mark.parametrize(
    "body",
    [b"\x00\xff", "text \ud800", None, True, 3, 10**40, -0.5, [], {"a": {"b": [1, 2.5, None]}}, ""],
    ids=repr,
)
def test_every_kind_of_body_arrives_as_it_left(way: Any, body: Any) -> None:
    plan = plan_of(HEAD + "steps:\n  - {id: keep, type: logger}\n")
    outcome = run(plan, [Message("m1", body, {"content-type": "x"}, {"v": [1]}, 3)], using=way)["m1"]
    assert outcome.outputs[0].message == Message("m1", body, {"content-type": "x"}, {"v": [1]}, 3)


def test_the_callers_message_is_left_as_it_was(way: Any) -> None:
    given = Message("m1", {"lines": [1, 2]}, {"h": "1"}, {"v": {"w": 1}})
    run(plan_of(HEAD + "steps:\n  - {id: lines, type: jq, config: {program: '.lines[]'}}\n"), [given], using=way)
    assert given == Message("m1", {"lines": [1, 2]}, {"h": "1"}, {"v": {"w": 1}})


def test_both_ways_give_the_same(way: Any) -> None:
    """Everything but the times."""
    given = messages({"lines": [1, 13, 2]}, {"lines": []}, b"{", {"lines": list(range(30))})
    told = {
        name: (ids(o), bodies(o), codes(o), o.status) for name, o in run(plan_of(SPLIT), given, using=way).items()
    }
    assert told == {
        name: (ids(o), bodies(o), codes(o), o.status) for name, o in run(plan_of(SPLIT), given).items()
    }


def test_a_failed_message_can_go_on_where_it_failed(way: Any) -> None:
    flow = plan_of(
        HEAD
        + """
steps:
  - {id: parse, type: json_parser}
  - {id: split, type: jq, config: {program: '.[]'}}
  - {id: work, type: jq, config: {program: 'if .bad then error("no") else {done: .n} end'}}
"""
    )
    given = Message("m", b'[{"n": 1}, {"n": 2, "bad": true}]', {"x-of": "sender"}, {"trigger": "in"}, 3)
    [failure] = run(flow, [given], using=way)["m"].failures
    assert failure.message == Message("m.2", {"n": 2, "bad": True}, {"x-of": "sender"}, {"trigger": "in"}, 3)
    failure.message.body["bad"] = False
    outcome = run(flow, [failure.message], using=way, entry={"m.2": failure.node_id})["m.2"]
    assert bodies(outcome) == [{"done": 2}]


def test_who_does_not_look_at_results_gets_what_goes_on_alone() -> None:
    """Their limits hold all the same."""
    text = PASS_ON + (
        "  - {id: lines, type: jq, config: {program: '.[]'}}\n"
        "  - {id: which, type: conditional, config: {branches: {far: . == 2}}, next: {far: far, otherwise: end}}\n"
        "  - {id: far, type: logger, isolate: true}\n"
    )
    given = messages([1, 2, 3], [1], [])
    limits = Limits(max_message_bytes=610)
    plan = plan_of(text)
    stage = plan.nodes["lines"].stage
    outcomes = run(plan, given, stage=stage, results=False, limits=limits)
    assert [[o.node_id for o in outcome.outputs] for outcome in outcomes.values()] == [["far"], [], []]
    assert [outcome.status for outcome in outcomes.values()] == ["handed_over", "done", "done"]
    assert bodies(outcomes["m1"]) == [2]
    program = "{program: '\"x\" * 700'}"
    large = plan_of(PASS_ON + f"  - {{id: large, type: jq, config: {program}}}\n")
    outcome = run(large, messages({}), results=False, limits=limits)["m1"]
    assert codes(outcome) == ["limit-exceeded"]
