"""Nodes that call outside, against a real HTTP server: overlap, bounds, deaths in the middle, emulation."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import Counter
from typing import Any

import pytest
from engine_destination import Destination
from engine_runs import (
    HEAD,
    PASS_ON,
    alive,
    bodies,
    codes,
    ids,
    messages,
    node_processes,
    plan_of,
    run,
    wait_until,
)

from continuitybridge.engine import runner
from continuitybridge.engine.calls import Calls
from continuitybridge.engine.chain import Chain
from continuitybridge.engine.limits import Limits
from continuitybridge.engine.message import Message
from continuitybridge.engine.progress import Progress
from continuitybridge.engine.runner import Runner
from continuitybridge.engine.services import LocalServices
from continuitybridge.engine.walk import Walk
from continuitybridge.errors import Verdict
from continuitybridge.nodes.base import ConnectionInfo


@pytest.fixture(autouse=True)
def none_of_other_tests() -> None:
    runner.close()


DELIVER = """
  - id: deliver
    type: http_request
    config: {connection: warehouse, path: '/{{ body.to | default("here") }}', retries: 0, attempt_timeout_s: 20}
"""
BRIEF = Limits(node_time_limit_s=1)
WORK = "  - {id: work, type: jq, config: {program: 'if .do == \"loop\" then last(range(1e15)) else . end'}}\n"


def which(field: str, target: str, *, otherwise: str) -> str:
    return f"""
  - id: which
    type: conditional
    config: {{branches: {{it: .{field}}}}}
    next: {{it: {target}, otherwise: {otherwise}}}
"""


def test_calls_of_several_messages_overlap_up_to_the_bound(destination: Destination, way: Any) -> None:
    destination.open.clear()
    threading.Thread(target=lambda: (wait_until(lambda: destination.waiting == 5), destination.open.set())).start()
    given = messages(*[{"n": n} for n in range(20)])
    outcomes = run(plan_of(PASS_ON + DELIVER), given, using=way, services=destination.services(), concurrency=5)
    assert {o.status for o in outcomes.values()} == {"done"}
    assert destination.most_waiting == 5
    assert Counter(destination.keys) == Counter(f"m{n}:deliver:1" for n in range(1, 21))


def test_a_message_that_waits_does_not_hold_those_that_do_not(destination: Destination, way: Any) -> None:
    plan = plan_of(PASS_ON + which("slow", "deliver", otherwise="end") + DELIVER)
    destination.open.clear()
    outcomes = way(
        plan, messages({"slow": True}, {}, {}), services=destination.services(), limits=Limits(), concurrency=2
    )
    assert [next(outcomes).message_id, next(outcomes).message_id] == ["m2", "m3"]
    destination.open.set()
    assert next(outcomes).message_id == "m1"


def test_children_are_delivered_side_by_side_and_keep_their_order(destination: Destination, way: Any) -> None:
    plan = plan_of(PASS_ON + "  - {id: lines, type: jq, config: {program: '.[] | {n: .}'}}\n" + DELIVER)
    destination.open.clear()
    threading.Thread(target=lambda: (wait_until(lambda: destination.waiting == 4), destination.open.set())).start()
    outcome = run(plan, messages(list(range(10))), using=way, services=destination.services(), concurrency=4)["m1"]
    assert ids(outcome) == [f"m1.{n}" for n in range(1, 11)]
    assert [body["n"] for body in bodies(outcome)] == list(range(10))
    assert set(destination.keys) == {f"m1.{n}:deliver:1" for n in range(1, 11)}
    deliver = outcome.trace[-1]
    assert (deliver.node_id, deliver.received, deliver.emitted) == ("deliver", 10, 10)


def test_a_refusal_of_the_destination_fails_that_message(destination: Destination, way: Any) -> None:
    given = messages({}, {"to": "missing"})
    outcomes = run(plan_of(PASS_ON + DELIVER), given, using=way, services=destination.services())
    assert outcomes["m1"].status == "done"
    assert (codes(outcomes["m2"]), outcomes["m2"].verdict) == (["delivery-failed"], Verdict.TERMINAL)


def test_a_destination_that_never_answers_is_a_failure_that_may_pass(destination: Destination, way: Any) -> None:
    destination.open.clear()
    plan = plan_of(PASS_ON + DELIVER.replace("attempt_timeout_s: 20", "timeout_s: 0.3"))
    outcomes = run(plan, messages({}), using=way, services=destination.services())
    assert (codes(outcomes["m1"]), outcomes["m1"].verdict) == (["delivery-failed"], Verdict.TRANSIENT)


def test_a_run_that_follows_uses_the_same_connection(fresh: Runner, destination: Destination) -> None:
    plan = plan_of(PASS_ON + DELIVER)
    for _ in range(3):
        run(plan, messages({}), using=fresh.run, services=destination.services())
    assert len(destination.keys) == 3
    assert len(destination.peers) == 1


def test_a_program_that_does_not_end_fails_alone_and_the_others_are_delivered(destination: Destination) -> None:
    plan = plan_of(PASS_ON + WORK + DELIVER)
    given = messages({}, {}, {"do": "loop"}, *[{}] * 10)
    outcomes = run(plan, given, services=destination.services(), limits=BRIEF)
    assert codes(outcomes.pop("m3")) == ["limit-exceeded"]
    assert {o.status for o in outcomes.values()} == {"done"}
    assert set(destination.keys) == {f"m{n}:deliver:1" for n in range(1, 14) if n != 3}


def test_the_failure_of_such_a_program_repeats_no_delivery_made_before_it(destination: Destination) -> None:
    plan = plan_of(PASS_ON + DELIVER + WORK)
    outcomes = run(plan, messages({"do": "loop"}), services=destination.services(), limits=BRIEF)
    assert codes(outcomes["m1"]) == ["limit-exceeded"]
    assert destination.keys == ["m1:deliver:1"]


def test_a_template_that_does_not_end_is_found_inside_the_event_loop(destination: Destination) -> None:
    endless = "{% for a in body.n %}" * 5 + "{% if a == 0 %}x{% endif %}" + "{% endfor %}" * 5
    plan = plan_of(
        PASS_ON
        + which("bad", "burn", otherwise="deliver")
        + "  - id: burn\n    type: http_request\n    next: end\n"
        + f"    config: {{connection: warehouse, body: '{endless}'}}\n"
        + DELIVER
    )
    given = messages({}, {"bad": True, "n": list(range(1000))}, {})
    outcomes = run(plan, given, services=destination.services(), limits=BRIEF)
    assert [o.status for _, o in sorted(outcomes.items())] == ["done", "failed", "done"]
    assert outcomes["m2"].failures[0].node_id == "burn"


def test_a_delivery_whose_process_dies_is_made_again_with_the_same_key(
    fresh: Runner, destination: Destination
) -> None:
    destination.open.clear()
    outcomes = fresh.run(
        plan_of(PASS_ON + DELIVER), messages({}, {}), services=destination.services(), limits=Limits()
    )
    killer = threading.Thread(
        target=lambda: (
            wait_until(lambda: destination.waiting == 2),
            [os.kill(pid, signal.SIGKILL) for pid in node_processes()],
            wait_until(lambda: destination.waiting == 4),
            destination.open.set(),
        )
    )
    killer.start()
    assert {o.status for o in outcomes} == {"done"}
    killer.join()
    assert Counter(destination.keys) == {"m1:deliver:1": 2, "m2:deliver:1": 2}


def test_an_owner_that_gives_up_leaves_no_call_running(fresh: Runner, destination: Destination) -> None:
    destination.open.clear()
    plan = plan_of(
        PASS_ON
        + which("slow", "deliver", otherwise="end")
        + f"  - {{id: deliver, type: http_request, config: {{url: '{destination.url}/x'}}}}\n"
    )
    outcomes = fresh.run(
        plan, messages({"slow": True}, {}), services=destination.services(), limits=Limits(), concurrency=2
    )
    assert next(outcomes).message_id == "m2"
    wait_until(lambda: destination.waiting == 1)
    pids = node_processes()
    outcomes.close()  # type: ignore[attr-defined]
    wait_until(lambda: not any(map(alive, pids)))


# -- connections --------------------------------------------------------------------------------------------


def test_a_connection_is_asked_of_the_caller_once_per_run(destination: Destination) -> None:
    asked: list[str] = []

    class Asked(LocalServices):
        def connection(self, name: str, *, refused: int | None = None) -> ConnectionInfo:
            asked.append(name)
            return super().connection(name)

    services = Asked(
        {
            "warehouse": ConnectionInfo(
                "warehouse", destination.url, {"x-tenant": "7"}, {"type": "bearer", "token": "t0k"}
            )
        }
    )
    for _ in range(2):
        run(plan_of(PASS_ON + DELIVER), messages(*[{}] * 20), services=services)
    assert asked == ["warehouse", "warehouse"]
    assert {(h["authorization"], h["x-tenant"]) for h in destination.headers} == {("Bearer t0k", "7")}


def test_a_connection_that_does_not_exist_fails_the_message(way: Any) -> None:
    outcome = run(plan_of(PASS_ON + DELIVER), messages({}), using=way)["m1"]
    assert codes(outcome) == ["not-found"]
    assert "no connection 'warehouse'" in outcome.failures[0].detail


def test_a_look_up_that_breaks_is_a_failure_that_may_pass_and_tells_no_secret() -> None:
    class Broken(LocalServices):
        def connection(self, name: str, *, refused: int | None = None) -> ConnectionInfo:
            raise RuntimeError("postgresql://app:canary@host")

    outcome = run(plan_of(PASS_ON + DELIVER), messages({}), services=Broken())["m1"]
    assert (codes(outcome), outcome.verdict) == (["unavailable"], Verdict.TRANSIENT)
    assert "canary" not in repr(outcome)


# -- emulation ----------------------------------------------------------------------------------------------


def test_emulation_calls_nobody_and_needs_no_connection(destination: Destination, way: Any) -> None:
    plan = plan_of(
        PASS_ON
        + DELIVER.replace("config: {", "config: {response: body.answer, sample: {status: 201, body: {ok: 1}}, ")
        + f"  - {{id: other, type: http_request, config: {{url: '{destination.url}/x', response: body}}}}\n"
    )
    outcome = run(plan, messages({"a": 1}), using=way, emulate=True)["m1"]
    assert outcome.status == "done"
    assert destination.keys == []
    assert [t.node_id for t in outcome.trace] == ["in", "parse", "deliver", "other"]


def test_emulation_refuses_what_the_real_node_would_refuse(way: Any) -> None:
    plan = plan_of(PASS_ON + DELIVER.replace("default(", "upper | default("))
    outcome = run(plan, [Message("m1", b"[1]")], using=way, emulate=True)["m1"]
    assert outcome.status in ("done", "failed")
    broken = plan_of(PASS_ON + DELIVER.replace('body.to | default("here")', "body.nothing"))
    assert run(broken, messages({}), using=way, emulate=True)["m1"].status == "failed"


def test_an_error_route_takes_what_could_not_be_delivered(destination: Destination, way: Any) -> None:
    plan = plan_of(
        PASS_ON
        + DELIVER.rstrip()
        + "\n    on_error: note\n    next: end\n"
        + "  - {id: note, type: jq, config: {program: '$vars.error | {code, node_id}'}}\n"
    )
    given = messages({"to": "missing"}, {})
    outcomes = run(plan, given, using=way, services=destination.services())
    assert bodies(outcomes["m1"]) == [{"code": "delivery-failed", "node_id": "deliver"}]
    assert bodies(outcomes["m2"]) == [{}]


def test_a_flow_of_nothing_but_a_trigger_and_a_call_delivers_bytes_as_they_came(
    destination: Destination, way: Any
) -> None:
    plan = plan_of(HEAD + "steps:\n" + DELIVER.replace("path: '/{{ body.to | default(\"here\") }}', ", ""))
    outcome = run(plan, [Message("m1", b"\xff\0")], using=way, services=destination.services())["m1"]
    assert bodies(outcome) == [b"\xff\0"]


def test_a_call_that_ignores_that_its_time_is_over_does_not_hold_its_message(destination: Destination) -> None:
    """No node does so on purpose: one of a plan built here is made to."""
    destination.open.clear()
    chain = Chain(plan_of(PASS_ON + DELIVER))
    chain.begin(destination.services(), now=0.0)
    step = chain.steps["deliver"]
    deliver, step.timeout_s = step.process, 0.2

    async def stubborn(message: Message, context: Any) -> Any:
        while True:
            try:
                return await deliver(message, context)
            except asyncio.CancelledError:
                continue

    step.process = stubborn

    async def walk() -> Walk:
        walking = Walk(chain, 0, Message("m1", b"{}"), Progress())
        await walking.run_async(None, Calls(1))
        destination.open.set()
        return walking

    (failure,) = asyncio.run(walk()).failures
    assert (failure.code, failure.verdict, failure.facts) == (
        "delivery-failed",
        Verdict.TRANSIENT,
        {"timeout_s": 0.2},
    )
