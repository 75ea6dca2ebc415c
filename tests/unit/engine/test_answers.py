"""What a flow answers to a caller who waits: made from what leaves the flow, by which way it ever does."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from typing import Any

import orjson
import pytest
from engine_runs import codes, messages, plan_of, run

from continuitybridge.engine import runner
from continuitybridge.engine.inline import run_inline
from continuitybridge.engine.limits import Limits
from continuitybridge.engine.message import Message, Outcome, Reply
from continuitybridge.flows.plan import Plan

FLOW = """
flow: answers
version: 1.0.0
triggers:
  - id: in
    type: webhook_trigger
    config:
      slug: in
      reply: result
      result: {result}
  - {{id: by-hand, type: manual_trigger}}
steps:
  - {{id: parse, type: json_parser}}
{steps}
"""
JSON = {"content-type": "application/json"}


def flow(steps: str = "", **result: Any) -> Plan:
    steps = textwrap.indent(textwrap.dedent(steps).strip("\n"), "  ")
    return plan_of(FLOW.format(result=orjson.dumps(result).decode(), steps=steps))


def answer(plan: Plan, body: Any, **more: Any) -> Reply | None:
    [outcome] = run(plan, messages(body), **more).values()
    return outcome.reply


@pytest.mark.parametrize("using", [runner.run, run_inline])
def test_the_answer_is_made_from_the_message_that_left_the_flow(using: Any) -> None:
    plan = flow(
        "- {id: price, type: jq, config: {program: '.price = 3'}}", status=201, headers={"X-N": "{{ body.n }}"}
    )
    assert answer(plan, {"n": 7}, using=using) == Reply(201, {**JSON, "x-n": "7"}, b'{"n":7,"price":3}', "m1")


def test_nobody_is_answered_who_does_not_wait() -> None:
    by_hand = Message("m", b"{}", vars={"trigger": "by-hand"})
    assert run(flow(), [by_hand])["m"].reply is None


def test_a_filtered_message_is_answered_with_204() -> None:
    assert answer(flow("- {id: big, type: filter, config: {where: .n > 5}}", status=201), {"n": 1}) == Reply(204)


def test_of_several_messages_the_first_is_the_answer() -> None:
    plan = flow("- {id: each, type: jq, config: {program: '.[]'}}")
    assert answer(plan, [10, 20, 30]) == Reply(200, JSON, b"10", "m1.1")


FORKED = """
- {id: fork, type: jq, config: {program: .}, next: [slow, fast]}
- {id: slow, type: jq, config: {program: '"slow"'}, isolate: true, next: end}
- {id: fast, type: jq, config: {program: '"fast"'}, next: end}
"""


def test_the_named_steps_are_the_ones_that_answer() -> None:
    assert answer(flow(FORKED), 1) == Reply(200, {"content-type": "text/plain; charset=utf-8"}, b"slow", "m1.1")
    named = answer(flow(FORKED, **{"from": ["fast"]}), 1)
    assert named is not None
    assert (named.body, named.message_id) == (b"fast", "m1.2")


def test_each_stage_answers_for_what_leaves_the_flow_in_it() -> None:
    plan = flow(FORKED)
    first = run(plan, messages(1), stage=plan.stages[0].id)["m1"]
    assert [output.stage for output in first.outputs] == ["slow", None] or first.reply is not None
    [handed] = [output for output in first.outputs if output.stage == "slow"]
    second = run(plan, [handed.message], stage="slow", entry={handed.message.id: "slow"})["m1.1"]
    assert second.reply == Reply(200, {"content-type": "text/plain; charset=utf-8"}, b"slow", "m1.1")


def test_a_failure_that_nobody_takes_leaves_the_answer_to_the_failure() -> None:
    outcome = run(flow(), messages(b"{"))["m1"]
    assert (codes(outcome), outcome.reply) == (["invalid-payload"], None)


def test_a_failure_that_a_step_takes_is_answered_as_that_step_leaves_it() -> None:
    plan = flow(
        """
        - {id: no, type: jq, config: {program: 'error("no")'}, on_error: note, next: end}
        - {id: note, type: logger, config: {message: failed}}
        """,
        status="{{ 502 if vars.error is defined else 200 }}",
        body={"code": "{{ vars.error.code }}"},
    )
    assert answer(plan, {}) == Reply(502, JSON, b'{"code":"transform-failed"}', "m1")


@pytest.mark.parametrize(
    "result",
    [{"body": "{{ body.missing }}"}, {"body": "{{ body.all | join }}" * 2}, {"status": "{{ body.all | length }}"}],
)
def test_an_answer_that_cannot_be_made_fails_no_message(result: dict[str, Any]) -> None:
    lines: list[str] = []

    class Services:
        def log(self, level: str, text: str, fields: Any) -> None:
            lines.append(text)

    limits = Limits(max_reply_bytes=1_000)
    outcome = run(flow(**result), messages({"all": ["x" * 700]}), limits=limits, services=Services())["m1"]
    assert outcome.status == "done"
    assert outcome.reply == Reply(message_id="m1", code="reply-failed")
    assert "answer cannot be made" in lines[0]


ENDLESS = "{% for a in body.l %}{% for b in body.l %}{% for c in body.l %}{% endfor %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("body", [ENDLESS, "{{ 'x' | center(3000000000) }}"])
def test_a_template_that_ends_its_process_fails_no_message_and_runs_none_again(body: str) -> None:
    limits = replace(Limits(), node_time_limit_s=0.3, node_memory_limit_bytes=128 * 1024 * 1024)
    plan = flow("- {id: seen, type: logger, config: {message: seen}}", body=body)
    seen: list[str] = []

    class Services:
        def log(self, level: str, text: str, fields: Any) -> None:
            if text == "seen":
                seen.append(str(fields["message_id"]))

    outcomes: dict[str, Outcome] = run(
        plan, messages(*[{"l": list(range(2_000))}] * 3), limits=limits, services=Services()
    )
    assert {outcome.status for outcome in outcomes.values()} == {"done"}
    assert {outcome.reply.code for outcome in outcomes.values() if outcome.reply} == {"reply-failed"}
    assert seen == ["m1", "m2", "m3"]
