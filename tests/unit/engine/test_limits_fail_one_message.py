"""Each limit is a typed failure of the message that exceeds it; those beside it are finished."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from engine_runs import HEAD, HOSTILE, PASS_ON, bodies, codes, ids, messages, plan_of, run

from continuitybridge.engine.limits import Limits
from continuitybridge.engine.message import Message, Outcome
from continuitybridge.errors import Verdict
from continuitybridge.settings import Settings

TIGHT = Limits(
    max_message_bytes=100_000,
    max_emitted_messages=50,
    max_nesting_depth=40,
    node_time_limit_s=0.3,
    node_memory_limit_bytes=128 * 1024 * 1024,
)


def limit_of(outcome: Outcome) -> Any:
    (failure,) = outcome.failures
    assert failure.code == "limit-exceeded", failure
    assert failure.verdict is Verdict.TERMINAL
    return failure.facts["limit"]


def beside(hostile: Any, limits: Limits = TIGHT, text: str = HOSTILE, **more: Any) -> Outcome:
    """Run a hostile message between two good ones, which must come through."""
    outcomes = run(plan_of(text), messages({"a": 1}, hostile, {"a": 2}), limits=limits, **more)
    assert bodies(outcomes["m1"]) == [{"a": 1}]
    assert bodies(outcomes["m3"]) == [{"a": 2}]
    return outcomes["m2"]


def test_an_endless_program_is_stopped_and_fails_its_message() -> None:
    outcome = beside({"do": "loop"})
    assert limit_of(outcome) == "node_time_limit_s"
    failure = outcome.failures[0]
    assert (failure.node_id, failure.node_type, failure.body) == ("work", "jq", {"do": "loop"})
    assert failure.facts["allowed"] == 0.3
    assert failure.facts["found"] >= 0.3
    assert [(t.node_id, t.failed) for t in outcome.trace] == [("in", 0), ("parse", 0), ("work", 1)]


@pytest.mark.parametrize("what", ["memory", "string"])
def test_a_program_that_takes_all_memory_fails_its_message(what: str) -> None:
    outcome = beside({"do": what}, replace(TIGHT, node_time_limit_s=20))
    assert codes(outcome)[0] in ("limit-exceeded", "node-crashed", "transform-failed")
    assert outcome.failures[0].node_id == "work"


def test_memory_that_one_message_took_is_not_held_against_the_next() -> None:
    limits = replace(TIGHT, max_message_bytes=20_000_000, node_time_limit_s=20)
    given = messages(*["x" * 4_000_000] * 40)
    assert {o.status for o in run(plan_of(PASS_ON), given, limits=limits).values()} == {"done"}


def test_a_regular_expression_that_explodes_fails_its_message() -> None:
    outcome = beside({"do": "regex"})
    assert outcome.status == "failed"
    assert outcome.failures[0].node_id == "work"


def test_a_message_beyond_the_size_limit_is_not_begun(way: Any) -> None:
    outcome = beside(b'"' + b"x" * 100_000 + b'"', using=way)
    assert limit_of(outcome) == "max_message_bytes"
    assert outcome.failures[0].facts == {"limit": "max_message_bytes", "allowed": 100_000, "found": 100_002}
    assert outcome.failures[0].body is None
    assert outcome.trace == []


def test_a_message_of_exactly_the_limit_passes(way: Any) -> None:
    assert beside(b'"' + b"x" * 99_998 + b'"', text=PASS_ON, using=way).status == "done"


def test_what_a_node_gives_is_bounded_too(way: Any) -> None:
    outcome = beside({"do": "large", "n": 100_001}, using=way)
    assert limit_of(outcome) == "max_message_bytes"
    assert outcome.failures[0].node_id == "work"


def test_what_one_message_gives_altogether_is_bounded(way: Any) -> None:
    text = (
        HOSTILE
        + """  - {id: swell, type: jq, config: {program: 'if type == "number" then "x" * 90000 else . end'}}\n"""
    )
    outcome = beside({"do": "split", "n": 20}, text=text, using=way)
    assert limit_of(outcome) == "max_message_bytes"
    assert outcome.outputs == []


def test_a_node_may_emit_so_many_messages_and_no_more(way: Any) -> None:
    assert len(beside({"do": "split", "n": 50}, using=way).outputs) == 50
    outcome = beside({"do": "split", "n": 51}, using=way)
    assert limit_of(outcome) == "max_emitted_messages"
    assert outcome.outputs == []


def test_an_endless_stream_of_messages_ends_at_the_limit(way: Any) -> None:
    assert limit_of(beside({"do": "split", "n": 10**15}, using=way)) == "max_emitted_messages"


def test_splits_in_a_row_cannot_multiply(way: Any) -> None:
    program = 'if type == "number" then range(40) else . end'
    again = "  - {{id: again-{n}, type: jq, config: {{program: '" + program + "'}}}}\n"
    text = HOSTILE + "".join(again.format(n=n) for n in range(6))
    outcome = beside({"do": "split", "n": 40}, text=text, using=way)
    assert {failure.facts["limit"] for failure in outcome.failures} == {"max_emitted_messages"}
    # Per node at most the limit beyond one for each received: sums, not products.
    assert sum(trace.emitted for trace in outcome.trace) < 2_500


def test_fan_out_counts_as_emitting(way: Any) -> None:
    """Ten nodes with three routes each would be 59,049 messages."""
    rungs = "".join(
        f"  - {{id: r{n}, type: logger, next: [a{n}, b{n}, c{n}]}}\n"
        + "".join(f"  - {{id: {x}{n}, type: logger, next: {f'r{n + 1}' if n < 9 else 'end'}}}\n" for x in "abc")
        for n in range(10)
    )
    outcome = run(plan_of(PASS_ON + rungs), messages({}), limits=TIGHT, using=way)["m1"]
    assert {failure.facts["limit"] for failure in outcome.failures} == {"max_emitted_messages"}


@pytest.mark.parametrize("depth", [39, 40])
def test_nesting_up_to_the_limit_passes(way: Any, depth: int) -> None:
    assert beside(b"[" * depth + b"]" * depth, text=PASS_ON, using=way).status == "done"


@pytest.mark.parametrize("depth", [41, 300, 1_100, 50_000])
def test_nesting_beyond_the_limit_fails_the_message_at_the_parser(way: Any, depth: int) -> None:
    outcome = beside(b"[" * depth + b"]" * depth, using=way)
    assert limit_of(outcome) == "max_nesting_depth"
    assert outcome.failures[0].node_id == "parse"


@pytest.mark.parametrize("depth", [41, 253, 255, 1_900, 3_000, 9_000])
def test_nesting_that_a_program_made_fails_the_message(depth: int) -> None:
    outcome = beside({"do": "deep", "n": depth})
    assert outcome.status == "failed"
    assert codes(outcome)[0] in ("limit-exceeded", "transform-failed")


def test_brackets_in_texts_do_not_count_as_nesting(way: Any) -> None:
    body = {"text": "[{" * 500}
    assert bodies(beside(body, using=way)) == [body]


def test_a_limit_that_is_met_takes_the_error_route_with_what_it_was() -> None:
    text = HOSTILE.replace("  - id: work", "  - id: work\n    on_error: mend\n    next: end") + (
        "  - {id: mend, type: jq, config: {program: "
        "'{limit: $vars.error.facts.limit, node: $vars.error.node_id, was: .}'}}\n"
    )
    outcome = beside({"do": "loop"}, text=text)
    assert outcome.status == "done"
    assert bodies(outcome) == [{"limit": "node_time_limit_s", "node": "work", "was": {"do": "loop"}}]


def test_only_the_child_that_exceeds_a_limit_fails() -> None:
    text = PASS_ON + (
        "  - {id: lines, type: jq, config: {program: '.lines[]'}}\n"
        "  - {id: work, type: jq, config: {program: 'if . == 2 then last(range(1e15)) else . end'}}\n"
    )
    outcome = run(plan_of(text), messages({"lines": [1, 2, 3]}), limits=TIGHT)["m1"]
    assert bodies(outcome) == [1, 3]
    assert ids(outcome) == ["m1.1", "m1.3"]
    assert [(f.message_id, f.node_id, f.body) for f in outcome.failures] == [("m1.2", "work", 2)]


def test_a_message_that_kills_again_and_again_is_given_up() -> None:
    text = PASS_ON + (
        "  - {id: lines, type: jq, config: {program: '.lines[]'}}\n"
        "  - {id: work, type: jq, config: {program: 'last(range(1e15))'}}\n"
    )
    given = messages({"lines": list(range(30))}, {"lines": []})
    outcomes = run(plan_of(text), given, limits=TIGHT)
    assert outcomes["m1"].status == "failed"
    assert {failure.facts["limit"] for failure in outcomes["m1"].failures} == {"node_time_limit_s"}
    assert outcomes["m2"].status == "done"


def test_the_limits_are_the_settings() -> None:
    settings = Settings(
        max_message_bytes=1, max_emitted_messages=2, max_nesting_depth=3, node_time_limit_s=4,
        node_memory_limit_bytes=2**28,
    )  # fmt: skip
    assert Limits.from_settings(settings) == Limits(1, 2, 3, 4, 2**28)


def test_the_default_limits_are_the_default_settings() -> None:
    assert Limits.from_settings(Settings(_env_file=None)) == Limits()  # type: ignore[call-arg]


def test_what_is_no_data_is_refused_at_the_door(way: Any) -> None:
    plan = plan_of(HEAD + "steps:\n  - {id: keep, type: logger}\n")
    outcome = run(plan, [Message("m1", object()), Message("m2", 1)], using=way)
    assert outcome["m1"].status == "failed"
    assert outcome["m2"].status == "done"
