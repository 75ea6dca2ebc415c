"""Outside calls that must not begin, or must wait: pause, circuit breaker, most calls at once."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
from engine_destination import Destination
from engine_lanes import Services, Told, until
from engine_runs import PASS_ON, bodies, codes, messages, node_processes, plan_of, run

from continuitybridge.engine import runner
from continuitybridge.engine.circuit import CircuitPolicy, CircuitState
from continuitybridge.engine.destinations import OF_OTHERS, DestinationState
from continuitybridge.engine.runner import Runner
from continuitybridge.errors import Verdict
from continuitybridge.nodes.base import ConnectionInfo

DELIVER = PASS_ON + (
    "  - id: deliver\n    type: http_request\n"
    "    config: {connection: warehouse, retries: 0, path: '/{{ body.to | default(\"here\") }}'}\n"
)
TOUCHY = CircuitPolicy(failures_to_open=3, wait_s=30)


@pytest.fixture(autouse=True)
def none_of_other_tests() -> None:
    runner.close()


def services(destination: Destination) -> Any:
    return Services(ConnectionInfo("warehouse", destination.url, {}, {"type": "none"}))


def test_a_paused_destination_is_not_called_and_no_error_route_takes_the_message(destination: Destination) -> None:
    plan = plan_of(
        DELIVER
        + "    on_error: mend\n    next: end\n  - {id: mend, type: jq, config: {program: '{mended: true}'}}\n"
    )
    paused = [DestinationState("warehouse", paused=True)]
    outcomes = run(plan, messages({}, {}), services=destination.services(), destinations=paused)
    assert [codes(outcome) for outcome in outcomes.values()] == [["destination-paused"]] * 2
    (failure,) = outcomes["m1"].failures
    assert (failure.node_id, failure.verdict, failure.body) == ("deliver", Verdict.TRANSIENT, {})
    assert failure.facts["destination"] == "warehouse"
    assert failure.facts["retry_after_s"] > 0
    assert destination.keys == []
    destination.status = 503
    assert bodies(run(plan, messages({}), services=destination.services())["m1"]) == [{"mended": True}]


def test_a_destination_without_a_connection_is_known_by_its_host(destination: Destination) -> None:
    plan = plan_of(PASS_ON + f"  - {{id: d, type: http_request, config: {{url: '{destination.url}/x'}}}}\n")
    for name, code in (("127.0.0.1", ["destination-paused"]), ("warehouse", [])):
        paused = [DestinationState(name, paused=True)]
        assert codes(run(plan, messages({}), destinations=paused)["m1"]) == code


def test_failures_in_a_row_open_the_circuit_and_the_caller_hears_of_it_first(destination: Destination) -> None:
    destination.status = 503
    heard: list[Any] = []
    with Runner() as own:
        for outcome in own.run(
            plan_of(DELIVER),
            messages(*[{}] * 10),
            services=destination.services(),
            limits=runner.Limits(),
            concurrency=1,
            destinations=[DestinationState(OF_OTHERS, policy=TOUCHY)],
            on_circuit=lambda name, circuit: heard.append((name, circuit)),
        ):
            heard.append(codes(outcome)[0])
    (at,) = (n for n, h in enumerate(heard) if isinstance(h, tuple))
    name, circuit = heard.pop(at)
    assert at <= 2
    assert (name, circuit.openings, circuit.failures) == ("warehouse", 1, 3)
    assert heard == ["delivery-failed"] * 3 + ["circuit-open"] * 7
    assert len(destination.keys) == 3


def test_messages_that_cannot_be_built_or_are_refused_open_no_circuit(destination: Destination) -> None:
    plan = plan_of(DELIVER.replace("body.to | default", "body.to | upper | default"))
    given = messages(*[{"to": []}] * 5, *[{"to": "missing"}] * 5, {"to": "here"})
    touchy = [DestinationState("warehouse", policy=TOUCHY)]
    outcomes = run(plan, given, services=destination.services(), destinations=touchy)
    assert {code for outcome in outcomes.values() for code in codes(outcome)} <= {
        "transform-failed",
        "delivery-failed",
    }
    assert outcomes["m11"].status == "done"


async def test_a_lane_learns_of_a_pause_and_of_its_end_while_messages_come(destination: Destination) -> None:
    with Runner() as own:
        told = Told(own, DELIVER, services=services(destination))
        await told.lane.start()
        told.lane.set_destination(DestinationState("warehouse", paused=True))
        told.submit({})
        assert codes((await told.all())[1]) == ["destination-paused"]
        told.lane.set_destination(DestinationState("warehouse"))
        told.submit({})
        assert (await told.all())[2].status == "done"
        await told.lane.aclose()
    assert destination.keys == ["m1:deliver:1"]


async def test_what_was_said_and_found_of_destinations_outlives_the_node_process(destination: Destination) -> None:
    destination.status = 503
    found: list[tuple[str, CircuitState]] = []
    with Runner() as own:
        told = Told(
            own,
            DELIVER,
            services=services(destination),
            destinations=[DestinationState("warehouse", policy=TOUCHY)],
            on_circuit=lambda name, circuit: found.append((name, circuit)),
        )
        await told.lane.start()
        told.submit(*[{}] * 3)
        await told.all()
        assert [name for name, _ in found] == ["warehouse"]
        os.kill(node_processes()[0], signal.SIGKILL)
        await asyncio.sleep(0.1)
        destination.status = 200
        told.submit({})
        assert codes((await told.all())[4]) == ["circuit-open"]
        told.lane.set_destination(DestinationState("warehouse", policy=TOUCHY))
        told.submit({})
        assert (await told.all())[5].status == "done"
        await told.lane.aclose()


async def test_so_many_calls_are_under_way_as_may_be_the_others_wait_their_turn(destination: Destination) -> None:
    destination.open.clear()
    with Runner() as own:
        told = Told(
            own,
            DELIVER,
            services=services(destination),
            destinations=[DestinationState("warehouse", max_concurrency=2)],
        )
        await told.lane.start()
        told.submit(*[{} for _ in range(12)])
        await until(lambda: destination.waiting == 2)
        told.lane.set_destination(DestinationState("warehouse", max_concurrency=5))
        await until(lambda: destination.waiting == 5)
        await asyncio.sleep(0.2)
        assert destination.waiting == 5
        told.lane.set_destination(DestinationState("warehouse", paused=True, max_concurrency=5))
        await until(lambda: len(told.outcomes) == 7)
        destination.open.set()
        outcomes = await told.all()
        await told.lane.aclose()
    assert [codes(outcomes[n]) for n in range(1, 13)] == [[]] * 5 + [["destination-paused"]] * 7
    assert destination.most_waiting == 5
