"""Messages whose destination is paused or has its circuit open: they wait, lose no attempt, and go on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from inbox_world import Deployed, done, failed

from continuitybridge import database, destinations
from continuitybridge.engine.circuit import CircuitState
from continuitybridge.engine.message import Failure, Message, NodeTrace, Outcome, Output
from continuitybridge.errors import CircuitOpen, DestinationPaused, Verdict
from continuitybridge.inbox import batches, reconcile
from continuitybridge.inbox.claim import Claimed, claim
from continuitybridge.inbox.retry import RetryPolicy
from continuitybridge.inbox.settle import settle
from continuitybridge.inbox.status import status
from continuitybridge.inbox.sweep import sweep

POLICY = RetryPolicy(max_attempts=2, base_s=1, max_s=900)


@pytest.fixture(autouse=True)
def the_store_agrees_with_itself(deployed: Deployed) -> Iterator[None]:
    yield
    assert reconcile.violations(deployed.organization_id) == []


def turned_back(
    unit: Claimed, *, retry_after_s: float = 120, known: bool = True, error: Any = CircuitOpen
) -> Outcome:
    """The unit met a destination that is not called now."""
    message = Message(unit.message.id, {"order": 7}, {}, {})
    failure = Failure.of(
        message,
        "deliver",
        "http_request",
        error("not now", destination="warehouse", retry_after_s=retry_after_s),
    )
    if not known:
        failure.message = None
    return Outcome(unit.message.id, "failed", [], [failure], [NodeTrace("deliver", 1, 0, 1, 5)])


def waits_s(deployed: Deployed, message_id: str) -> list[float]:
    """Seconds until each part of the message is available."""
    with database.tenant(deployed.organization_id) as connection:
        rows = connection.execute(
            "SELECT extract(epoch FROM available_at - now())::float8 FROM bridge.hand_overs WHERE message_id = %s",
            (message_id,),
        ).fetchall()
    return [row[0] for row in rows]


def pass_time(deployed: Deployed) -> None:
    with database.tenant(deployed.organization_id) as connection:
        connection.execute("UPDATE bridge.hand_overs SET available_at = now()")
        connection.execute("UPDATE bridge.messages SET available_at = now()")


def run(deployed: Deployed) -> Claimed:
    [unit] = claim(deployed.dispatch(), "w", 30, 10, keys=deployed.keyring)
    return unit


def end(deployed: Deployed, unit: Claimed, outcome: Outcome) -> str:
    became = settle(unit, outcome, keys=deployed.keyring, plan=deployed.plan, policy=POLICY)
    with database.relay() as connection:
        [(dag_id, run_id)] = connection.execute(
            "SELECT dag_id, run_id FROM bridge.batches WHERE batch_id = %s", (unit.batch_id,)
        )
    batches.finish(batches.find(dag_id, run_id))
    return became


def test_being_turned_back_however_often_is_no_attempt_and_no_failure(deployed: Deployed) -> None:
    [message_id] = deployed.accept()
    for _ in range(2 * POLICY.max_attempts):
        unit = run(deployed)
        assert unit.attempts == 1
        assert end(deployed, unit, turned_back(unit)) == "retry"
        [wait] = waits_s(deployed, message_id)
        assert 119 < wait < 145
        pass_time(deployed)
    found = status(deployed.organization_id, message_id)
    assert [(part.node_id, part.attempts, part.waits_for) for part in found.parts] == [("deliver", 0, "warehouse")]
    assert found.failures == []
    assert len(found.trace) == 1
    unit = run(deployed)
    assert (unit.entry, unit.message.body) == ("deliver", {"order": 7})
    assert end(deployed, unit, done(unit)) == "done"


def test_attempts_made_before_still_count_after_a_message_was_turned_back(deployed: Deployed) -> None:
    [message_id] = deployed.accept()
    for outcome, became in (
        (lambda unit: failed(unit, verdict=Verdict.TRANSIENT), "retry"),
        (turned_back, "retry"),
        (lambda unit: failed(unit, verdict=Verdict.TRANSIENT), "dead"),
    ):
        unit = run(deployed)
        assert end(deployed, unit, outcome(unit)) == became
        pass_time(deployed)
    assert [each.final for each in status(deployed.organization_id, message_id).failures] == [False, True]


def test_a_message_that_cannot_go_on_at_its_node_waits_as_a_whole(deployed: Deployed) -> None:
    [message_id] = deployed.accept()
    unit = run(deployed)
    assert end(deployed, unit, turned_back(unit, known=False, error=DestinationPaused)) == "retry"
    found = status(deployed.organization_id, message_id)
    assert (found.state, found.attempts, found.waits_for) == ("accepted", 0, "warehouse")
    destinations.resume(deployed.organization_id, "prod", "warehouse", by="anna")
    assert run(deployed).entry is None


def test_a_branch_that_was_turned_back_leaves_the_others_alone(deployed: Deployed) -> None:
    [message_id] = deployed.accept()
    unit = run(deployed)
    outcome = turned_back(unit)
    outcome.outputs.append(Output(Message(f"{message_id}.1", 1), "archive", "archive"))
    assert end(deployed, unit, outcome) == "retry"
    parts = {part.node_id: part.waits_for for part in status(deployed.organization_id, message_id).parts}
    assert parts == {"archive": None, "deliver": "warehouse"}


def test_resuming_a_destination_lets_what_waits_go_on_at_once(deployed: Deployed) -> None:
    [message_id] = deployed.accept()
    destinations.pause(deployed.organization_id, "prod", "warehouse", by="anna")
    unit = run(deployed)
    end(deployed, unit, turned_back(unit, error=DestinationPaused))
    assert destinations.show(deployed.organization_id, "prod", "warehouse").waiting == 1
    sweep()
    assert waits_s(deployed, message_id)[0] > 60
    assert destinations.resume(deployed.organization_id, "prod", "warehouse", by="anna").waiting == 0
    assert run(deployed).message_id == message_id


def test_what_was_turned_back_just_when_it_was_resumed_is_found_by_the_sweep(deployed: Deployed) -> None:
    deployed.accept()
    unit = run(deployed)
    end(deployed, unit, turned_back(unit, error=DestinationPaused))
    assert sweep().turned_back_woken >= 1
    assert run(deployed).message_id == unit.message_id


def test_a_circuit_that_closes_wakes_what_waits_for_it(deployed: Deployed) -> None:
    [message_id] = deployed.accept()
    told = (deployed.organization_id, "prod", "warehouse")
    with database.relay() as connection:
        [(now,)] = connection.execute("SELECT extract(epoch FROM now())::float8")
    destinations.record(*told, CircuitState(failures=3, openings=1, opened_until=now + 60))
    unit = run(deployed)
    end(deployed, unit, turned_back(unit))
    sweep()
    assert waits_s(deployed, message_id)[0] > 60
    destinations.record(*told, CircuitState())
    assert run(deployed).message_id == message_id


def test_cancelling_skips_what_waits_for_the_destination_and_nothing_else(deployed: Deployed) -> None:
    waiting, whole, other = deployed.accept(3)
    batch = deployed.dispatch()
    units = {unit.message_id: unit for unit in claim(batch, "w", 30, 10, keys=deployed.keyring)}
    for message_id, known in ((waiting, True), (whole, False)):
        outcome = turned_back(units[message_id], known=known)
        settle(units[message_id], outcome, keys=deployed.keyring, plan=deployed.plan, policy=POLICY)
    assert destinations.cancel(deployed.organization_id, "prod", "elsewhere", by="anna") == 0
    assert destinations.cancel(deployed.organization_id, "prod", "warehouse", by="anna", reason="closed down") == 2
    for message_id in (waiting, whole):
        found = status(deployed.organization_id, message_id)
        assert found.state == "skipped"
        assert found.trace[-1] == {"skipped_by": "anna", "reason": "closed down", "destination": "warehouse"}
    assert status(deployed.organization_id, other).state == "claimed"
