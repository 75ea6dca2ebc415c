"""When a destination is called and when it is left alone: circuit, pause, calls at once."""

from __future__ import annotations

import json

import pytest

from continuitybridge.engine.circuit import CLOSED, PROBE_TIMEOUT_S, Circuit, CircuitPolicy, CircuitState
from continuitybridge.engine.destinations import Destinations, DestinationState, destination_name
from continuitybridge.errors import CircuitOpen, DeliveryFailed, DestinationPaused, Unavailable, Verdict

POLICY = CircuitPolicy(failures_to_open=3, wait_s=10, max_wait_s=35)


def opened(circuit: Circuit, now: float) -> None:
    for _ in range(POLICY.failures_to_open):
        assert circuit.admit(now) is None
        circuit.failed(now)
    assert circuit.phase(now) == "open"


def test_a_circuit_opens_after_so_many_failures_in_a_row_and_not_before() -> None:
    circuit = Circuit(POLICY)
    assert [circuit.failed(0), circuit.failed(0)] == [False, False]
    assert circuit.succeeded(0) is False
    assert [circuit.failed(0), circuit.failed(0)] == [False, False]
    assert circuit.phase(0) == "closed"
    assert circuit.failed(0) is True
    assert circuit.phase(0) == "open"
    assert circuit.admit(4) == 6


def test_one_call_probes_when_the_wait_is_over_and_a_success_closes() -> None:
    circuit = Circuit(POLICY)
    opened(circuit, 0)
    assert circuit.admit(10) is None
    assert circuit.admit(10) == POLICY.wait_s
    assert circuit.succeeded(11) is True
    assert circuit.state == CLOSED
    assert [circuit.admit(11) for _ in range(5)] == [None] * 5


def test_each_probe_that_fails_doubles_the_wait_up_to_the_longest() -> None:
    circuit, now = Circuit(POLICY), 0.0
    opened(circuit, now)
    waits = []
    for _ in range(4):
        waits.append(circuit.state.opened_until - now)
        now = circuit.state.opened_until
        assert circuit.admit(now) is None
        assert circuit.failed(now) is True
    assert waits == [10, 20, 35, 35]


def test_what_ends_late_neither_closes_nor_prolongs_an_open_circuit() -> None:
    circuit = Circuit(POLICY)
    opened(circuit, 0)
    before = circuit.state
    assert circuit.succeeded(5) is False
    assert circuit.failed(5) is False
    assert circuit.state == before


def test_a_probe_that_never_reports_does_not_keep_the_circuit_open_for_ever() -> None:
    circuit = Circuit(POLICY)
    opened(circuit, 0)
    assert circuit.admit(10) is None
    assert circuit.admit(10 + PROBE_TIMEOUT_S - 1) is not None
    assert circuit.admit(10 + PROBE_TIMEOUT_S) is None
    circuit.abandoned()
    assert circuit.admit(10 + PROBE_TIMEOUT_S) is None


def test_a_destination_that_says_when_to_come_back_is_believed_up_to_the_longest_wait() -> None:
    circuit = Circuit(CircuitPolicy(failures_to_open=1, wait_s=1, max_wait_s=60))
    circuit.failed(0, retry_after_s=20)
    assert circuit.admit(0) == 20
    circuit = Circuit(CircuitPolicy(failures_to_open=1, wait_s=1, max_wait_s=60))
    circuit.failed(0, retry_after_s=86_400)
    assert circuit.admit(0) == 60


def test_no_number_of_failures_opens_a_circuit_that_is_switched_off() -> None:
    circuit = Circuit(CircuitPolicy(failures_to_open=0))
    assert not any(circuit.failed(0) for _ in range(1000))
    assert circuit.admit(0) is None


def test_processes_tell_each_other_what_they_found() -> None:
    told: list[tuple[str, CircuitState]] = []
    now = [0.0]
    default = DestinationState("", policy=POLICY)
    first = Destinations(
        default=default, on_change=lambda name, circuit: told.append((name, circuit)), clock=lambda: now[0]
    )
    second = Destinations(default=default, clock=lambda: now[0])
    for _ in range(3):
        first.enter("warehouse")
        first.leave("warehouse", DeliveryFailed("503"))
    [(name, circuit)] = told
    state = DestinationState(name, policy=POLICY, circuit=circuit)
    second.put(DestinationState.from_data(json.loads(json.dumps(state.to_data()))))
    with pytest.raises(CircuitOpen) as refused:
        second.enter("warehouse")
    assert refused.value.facts == {"destination": "warehouse", "retry_after_s": 10}
    now[0] = 10
    second.enter("warehouse")
    second.leave("warehouse")
    second.enter("warehouse")


def test_only_transient_failures_of_the_destination_count() -> None:
    told: list[str] = []
    gate = Destinations(
        default=DestinationState("", policy=CircuitPolicy(failures_to_open=1)),
        on_change=lambda n, _: told.append(n),
    )
    for error in (
        None, DeliveryFailed("400", verdict=Verdict.TERMINAL), KeyboardInterrupt(), Unavailable("our database"),
    ):  # fmt: skip
        gate.enter("d")
        gate.leave("d", error)
    assert told == []
    gate.enter("d")
    gate.leave("d", DeliveryFailed("503"))
    assert told == ["d"]


def test_a_paused_destination_is_not_called_until_it_is_resumed() -> None:
    gate = Destinations([DestinationState("d", paused=True)])
    with pytest.raises(DestinationPaused) as refused:
        gate.enter("d")
    assert refused.value.verdict is Verdict.TRANSIENT
    assert refused.value.facts["retry_after_s"] > 0
    gate.enter("another")
    gate.forget("d")
    gate.enter("d")


def test_so_many_calls_are_under_way_at_once_and_no_more() -> None:
    gate = Destinations([DestinationState("d", max_concurrency=2)])
    gate.enter("d")
    assert gate.has_room("d")
    gate.enter("d")
    assert not gate.has_room("d")
    gate.leave("d", DeliveryFailed("503"))
    assert gate.has_room("d")


def test_a_destination_is_named_by_its_connection_else_by_its_host() -> None:
    assert destination_name("warehouse", "https://w.example/x") == "warehouse"
    assert destination_name(None, "https://API.Example.com:8443/x?y") == "api.example.com"
    assert destination_name(None, "http://[::1]:80/") == "::1"
