"""Claiming and settling: one holder at a time, one settlement, every failure with its context."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from inbox_world import Deployed, done, failed, handed_over

from continuitybridge import database
from continuitybridge.engine.message import Message, Outcome, Output
from continuitybridge.errors import StaleLease, Verdict
from continuitybridge.inbox import batches, reconcile, triage
from continuitybridge.inbox.claim import claim, fence, release, renew
from continuitybridge.inbox.retry import RetryPolicy
from continuitybridge.inbox.settle import settle, settle_many, skip
from continuitybridge.inbox.status import status
from continuitybridge.inbox.sweep import sweep

POLICY = RetryPolicy(max_attempts=3, base_s=0.001, max_s=0.001)


@pytest.fixture(autouse=True)
def the_store_agrees_with_itself(deployed: Deployed) -> Any:
    yield
    assert reconcile.violations(deployed.organization_id) == []


def state(deployed: Deployed, message_id: str) -> str:
    return status(deployed.organization_id, message_id).state


def settled_rows(deployed: Deployed) -> list[Any]:
    with database.tenant(deployed.organization_id) as connection:
        return connection.execute("SELECT message_id, result, trace FROM bridge.settled_messages").fetchall()


def test_a_claim_gives_what_was_accepted_under_a_lease_and_an_epoch(deployed: Deployed) -> None:
    batch, [message_id] = deployed.batch(trigger="in")
    [unit] = claim(batch, "w", 30, 10, "parse", keys=deployed.keyring)
    assert unit.message == Message(
        message_id, b'{"n": 0}', {"content-type": "application/json", "x-request-id": "r1"}, {"trigger": "in"}
    )
    assert (unit.epoch, unit.attempts, unit.entry, unit.hand_over_id) == (1, 1, None, None)
    assert state(deployed, message_id) == "claimed"
    assert claim(batch, "other", 30, 10, keys=deployed.keyring) == []


def test_workers_that_claim_at_once_share_the_messages(deployed: Deployed) -> None:
    batch, ids = deployed.batch(60)
    with ThreadPoolExecutor(6) as pool:
        taken = list(pool.map(lambda n: claim(batch, f"w{n}", 30, 7, keys=deployed.keyring), range(12)))
    assert sorted(unit.message_id for units in taken for unit in units) == sorted(ids)


def test_new_messages_belong_to_the_first_stage_only(deployed: Deployed) -> None:
    batch, _ = deployed.batch()
    assert claim(batch, "w", 30, 10, "deliver", keys=deployed.keyring) == []
    assert len(claim(batch, "w", 30, 10, "parse", keys=deployed.keyring)) == 1


def test_a_done_message_is_settled_with_its_trace(deployed: Deployed) -> None:
    batch, [message_id] = deployed.batch()
    [unit] = claim(batch, "w", 30, 10, keys=deployed.keyring)
    assert settle(unit, done(unit), keys=deployed.keyring) == "done"
    [(settled, result, trace)] = settled_rows(deployed)
    assert (settled, result) == (message_id, "done")
    assert trace == [{"node_id": "parse", "received": 1, "emitted": 1, "failed": 0, "duration_us": 12}]
    assert state(deployed, message_id) == "done"


def test_nothing_is_settled_twice(deployed: Deployed) -> None:
    batch, _ = deployed.batch()
    [unit] = claim(batch, "w", 30, 10, keys=deployed.keyring)

    def once(_: int) -> str:
        try:
            return settle(unit, done(unit), keys=deployed.keyring)
        except StaleLease:
            return "stale"

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(once, range(16)))
    assert sorted(results) == ["done", *["stale"] * 15]
    assert len(settled_rows(deployed)) == 1


def test_a_stale_epoch_can_neither_settle_nor_renew(deployed: Deployed) -> None:
    batch, [message_id] = deployed.batch()
    [lost] = claim(batch, "w1", 0, 10, keys=deployed.keyring)
    sweep()
    [held] = claim(batch, "w2", 30, 10, keys=deployed.keyring)
    assert held.epoch == lost.epoch + 1
    assert renew([lost], 30) == []
    for outcome in (done(lost), failed(lost), handed_over(lost, "deliver")):
        with pytest.raises(StaleLease):
            settle(lost, outcome, keys=deployed.keyring, plan=deployed.plan)
    assert state(deployed, message_id) == "claimed"
    assert release([lost]) == 0
    assert settle(held, done(held), keys=deployed.keyring) == "done"


def test_an_epoch_given_twice_is_its_owners_alone(deployed: Deployed) -> None:
    """A crash of the database may forget a claim, and the next one gets the same epoch."""
    batch, ids = deployed.batch(2)
    forgotten = claim(batch, "first", 30, 10, keys=deployed.keyring)
    with database.relay() as connection:
        connection.execute(
            "UPDATE bridge.messages SET state = 'accepted', epoch = epoch - 1, attempts = attempts - 1,"
            " lease_owner = NULL, lease_until = NULL WHERE message_id = ANY(%s)",
            (ids,),
        )
    again = claim(batch, "second", 30, 10, keys=deployed.keyring)
    assert {unit.epoch for unit in forgotten} == {unit.epoch for unit in again} == {1}
    assert renew(forgotten, 30) == []
    assert release(forgotten) == 0
    outcomes = [(forgotten[0], done(forgotten[0])), (forgotten[1], failed(forgotten[1]))]
    assert settle_many(outcomes, keys=deployed.keyring, plan=deployed.plan) == ["stale", "stale"]
    assert settle_many([(unit, done(unit)) for unit in again], keys=deployed.keyring) == ["done", "done"]


def test_endings_of_every_kind_are_written_in_one_call(deployed: Deployed) -> None:
    batch, ids = deployed.batch(6)
    units = {unit.message_id: unit for unit in claim(batch, "w", 30, 10, "parse", keys=deployed.keyring)}
    parts_of, *rest = ids
    settle(units[parts_of], handed_over(units[parts_of], "deliver", children=["a", "b"]), keys=deployed.keyring)
    parts = claim(batch, "w", 30, 10, "deliver", keys=deployed.keyring)
    well, on, again, whole, dead = (units[message_id] for message_id in rest)
    outcomes = [
        (dead, failed(dead)),
        (parts[0], done(parts[0])),
        (well, done(well)),
        (again, failed(again, verdict=Verdict.TRANSIENT)),
        (well, done(well)),
        (whole, failed(whole, verdict=Verdict.TRANSIENT, known=False)),
        (parts[1], done(parts[1])),
        (on, handed_over(on, "deliver")),
    ]
    became = settle_many(outcomes, keys=deployed.keyring, plan=deployed.plan, policy=POLICY)
    assert became == ["dead", "handed_over", "done", "retry", "stale", "retry", "done", "handed_over"]
    ends = ["dead", "done", "handed_over", "accepted", "done", "handed_over"]
    assert [state(deployed, unit.message_id) for unit in (dead, well, again, whole, parts[0], on)] == ends
    traces = status(deployed.organization_id, parts_of).trace
    assert [(step["node_id"], step["emitted"]) for step in traces] == [("parse", 2), ("parse", 1), ("parse", 1)]


def test_a_lease_that_ran_out_but_was_not_taken_away_still_settles(deployed: Deployed) -> None:
    batch, _ = deployed.batch()
    [unit] = claim(batch, "w", 0, 10, keys=deployed.keyring)
    assert settle(unit, done(unit), keys=deployed.keyring) == "done"


def test_renewing_keeps_a_lease_from_the_sweep(deployed: Deployed) -> None:
    batch, _ = deployed.batch(2)
    kept, lost = claim(batch, "w", 0, 10, keys=deployed.keyring)
    [renewed] = renew([kept], 30)
    assert renewed.lease_until > kept.lease_until
    sweep()
    assert settle(renewed, done(kept), keys=deployed.keyring) == "done"
    with pytest.raises(StaleLease):
        settle(lost, done(lost), keys=deployed.keyring)


def test_released_units_are_available_at_once_and_lose_no_attempt(deployed: Deployed) -> None:
    batch, _ = deployed.batch(2)
    units = claim(batch, "w", 30, 10, keys=deployed.keyring)
    assert release(units) == 2
    again = claim(batch, "w", 30, 10, keys=deployed.keyring)
    assert [unit.attempts for unit in again] == [1, 1]
    assert [unit.epoch for unit in again] == [2, 2]


def test_a_task_that_begins_anew_fences_its_former_tries(deployed: Deployed) -> None:
    batch, _ = deployed.batch(2)
    former = claim(batch, "task#1", 300, 10, "parse", keys=deployed.keyring)
    assert fence(batch, "task#2", "deliver") == 0
    assert fence(batch, "task#2", "parse") == 2
    mine = claim(batch, "task#2", 300, 10, "parse", keys=deployed.keyring)
    assert len(mine) == 2
    assert fence(batch, "task#2", "parse") == 0
    assert settle_many([(unit, done(unit)) for unit in former], keys=deployed.keyring) == ["stale", "stale"]
    assert settle_many([(unit, done(unit)) for unit in mine], keys=deployed.keyring) == ["done", "done"]


# -- failures -----------------------------------------------------------------------------------------------


def test_a_terminal_failure_is_a_dead_letter_with_a_scrubbed_encrypted_context(deployed: Deployed) -> None:
    batch, [message_id] = deployed.batch()
    [unit] = claim(batch, "w", 30, 10, keys=deployed.keyring)
    became = settle(unit, failed(unit, token="s3cret"), keys=deployed.keyring, plan=deployed.plan)
    assert became == "dead"
    [letter] = triage.list_dead(deployed.organization_id)
    assert (letter.message_id, letter.node_id, letter.code) == (message_id, "deliver", "delivery-failed")
    assert letter.failure_id is not None
    with database.tenant(deployed.organization_id) as connection:
        [(stored,)] = connection.execute("SELECT context FROM bridge.failures").fetchall()
    assert b"destination" not in stored
    context = triage.context(deployed.organization_id, letter.failure_id, deployed.keyring)
    assert context is not None
    assert "s3cret" not in str(context)
    assert "k-123" not in str(context)
    assert context["detail"] == "the destination said 503"
    assert context["input"]["text"] == '{"order": 7, "password": "[scrubbed]"}'
    assert context["node"] == {
        "id": "deliver",
        "type": "logger",
        "config": {"message": "x", "api_key": "[scrubbed]"},
    }
    assert context["versions"]["flow"] == "1.0.0"
    assert context["owner"] == "w"
    assert triage.list_dead(deployed.organization_id, code="other") == []
    assert triage.list_dead(deployed.organization_id, flow=deployed.flow, environment="prod") == [letter]


@pytest.mark.parametrize("known", [True, False], ids=["at the failed node", "as a whole"])
def test_a_transient_failure_is_tried_again_until_its_attempts_are_used_up(
    deployed: Deployed, known: bool
) -> None:
    batch, [message_id] = deployed.batch()
    seen = []
    for attempt in (1, 2, 3):
        [unit] = claim(batch, "w", 30, 10, keys=deployed.keyring)
        assert unit.attempts == attempt
        seen.append((unit.entry, unit.message.body))
        outcome = failed(unit, verdict=Verdict.TRANSIENT, known=known)
        became = settle(unit, outcome, keys=deployed.keyring, plan=deployed.plan, policy=POLICY)
        assert became == ("dead" if attempt == 3 else "retry")
        if attempt < 3:
            assert batches.finish(batch)
            time.sleep(0.01)
            batch = deployed.dispatch()
    again = ("deliver", {"order": 7, "password": "s3cret-pw"}) if known else (None, b'{"n": 0}')
    assert seen == [(None, b'{"n": 0}'), again, again]
    found = status(deployed.organization_id, message_id)
    assert found.state == "dead"
    assert [(each.attempt, each.final) for each in found.failures] == [(1, False), (2, False), (3, True)]


def test_what_is_tried_again_waits_with_backoff_and_jitter(deployed: Deployed) -> None:
    policy = RetryPolicy(max_attempts=9, base_s=2.0, max_s=60.0)
    batch, [message_id] = deployed.batch()
    [unit] = claim(batch, "w", 30, 10, keys=deployed.keyring)
    outcome = failed(unit, verdict=Verdict.TRANSIENT, retry_after_s=40)
    assert settle(unit, outcome, keys=deployed.keyring, plan=deployed.plan, policy=policy) == "retry"
    [part] = status(deployed.organization_id, message_id).parts
    with database.relay() as connection:
        [(wait_s,)] = connection.execute("SELECT extract(epoch FROM %s - now())", (part.available_at,))
    assert 35 < wait_s <= 40
    waits = [policy.wait_s(4, []) for _ in range(200)]
    assert 8.0 <= min(waits) < 10 < 14 < max(waits) <= 16.0
    assert policy.wait_s(500, []) <= 60.0


def test_what_is_tried_again_may_stay_in_its_batch(deployed: Deployed) -> None:
    batch, _ = deployed.batch()
    [unit] = claim(batch, "w", 30, 10, keys=deployed.keyring)
    settle(
        unit,
        failed(unit, verdict=Verdict.TRANSIENT),
        keys=deployed.keyring,
        plan=deployed.plan,
        policy=POLICY,
        retry_in_batch=True,
    )
    assert not batches.finish(batch)
    time.sleep(0.01)
    [again] = claim(batch, "w", 30, 10, "deliver", keys=deployed.keyring)
    assert (again.entry, again.attempts) == ("deliver", 2)


def test_children_that_went_well_are_kept_when_one_fails(deployed: Deployed) -> None:
    batch, [message_id] = deployed.batch()
    [unit] = claim(batch, "w", 30, 10, "parse", keys=deployed.keyring)
    good = Output(Message(f"{message_id}.1", {"line": 1}), "deliver", "deliver")
    outcome = failed(unit, node="parse", child=f"{message_id}.2", outputs=[good])
    assert settle(unit, outcome, keys=deployed.keyring, plan=deployed.plan) == "handed_over"
    [part] = claim(batch, "w", 30, 10, "deliver", keys=deployed.keyring)
    assert part.message.id == f"{message_id}.1"
    assert settle(part, done(part), keys=deployed.keyring) == "dead"
    assert [(each.child_id, each.state) for each in status(deployed.organization_id, message_id).parts] == [
        (f"{message_id}.2", "dead")
    ]


def test_a_unit_that_cannot_be_decrypted_is_a_dead_letter_and_holds_up_nobody(deployed: Deployed) -> None:
    batch, [spoilt, fine] = deployed.batch(2)
    with database.relay() as connection:
        connection.execute(
            "UPDATE bridge.messages SET payload = set_byte(payload, 50, get_byte(payload, 50) # 1)"
            " WHERE organization_id = %s AND message_id = %s",
            (deployed.organization_id, spoilt),
        )
    [unit] = claim(batch, "w", 30, 10, keys=deployed.keyring)
    assert unit.message_id == fine
    [letter] = triage.list_dead(deployed.organization_id)
    assert (letter.message_id, letter.code) == (spoilt, "decryption-failed")


# -- stages -------------------------------------------------------------------------------------------------


def test_a_message_goes_from_stage_to_stage_and_is_settled_after_the_last(deployed: Deployed) -> None:
    batch, [message_id] = deployed.batch()
    [first] = claim(batch, "w", 30, 10, "parse", keys=deployed.keyring)
    assert settle(first, handed_over(first, "deliver"), keys=deployed.keyring) == "handed_over"
    assert state(deployed, message_id) == "handed_over"
    assert claim(batch, "w", 30, 10, "archive", keys=deployed.keyring) == []
    [second] = claim(batch, "w", 30, 10, "deliver", keys=deployed.keyring)
    assert (second.message.id, second.entry, second.attempts) == (message_id, "deliver", 1)
    assert second.message.body == {"child": message_id}
    assert second.message.vars == {"seen": [1, "ä"]}
    assert second.message.headers["x-request-id"] == "r1"
    assert settle(second, handed_over(second, "archive"), keys=deployed.keyring) == "handed_over"
    [third] = claim(batch, "w", 30, 10, "archive", keys=deployed.keyring)
    assert settle(third, done(third), keys=deployed.keyring) == "done"
    [(_, result, trace)] = settled_rows(deployed)
    assert result == "done"
    assert len(trace) == 3


def test_bodies_of_every_kind_cross_a_stage_unchanged(deployed: Deployed) -> None:
    bodies: list[Any] = [b"\x00\xff\n{", "text \ud800 \u0000", {"a": [1, 2.5, None, True, 10**30]}, None, ""]
    batch, [message_id] = deployed.batch()
    [unit] = claim(batch, "w", 30, 10, "parse", keys=deployed.keyring)
    outputs = [Output(Message(f"{message_id}.{n}", body), "deliver", "deliver") for n, body in enumerate(bodies)]
    settle(unit, Outcome(message_id, "handed_over", outputs), keys=deployed.keyring)
    parts = claim(batch, "w", 30, 10, "deliver", keys=deployed.keyring)
    found = {part.message.id: part.message.body for part in parts}
    assert [found[f"{message_id}.{n}"] for n in range(len(bodies))] == bodies


def test_a_fan_out_is_done_when_all_its_parts_are_whoever_ends_last(deployed: Deployed) -> None:
    batch, [message_id] = deployed.batch()
    [unit] = claim(batch, "w", 30, 10, "parse", keys=deployed.keyring)
    children = [f"{message_id}.{n}" for n in range(10)]
    settle(unit, handed_over(unit, "deliver", "archive", children=children), keys=deployed.keyring)
    parts = claim(batch, "w", 30, 100, keys=deployed.keyring)
    assert len(parts) == 20
    with ThreadPoolExecutor(10) as pool:
        became = list(pool.map(lambda part: settle(part, done(part), keys=deployed.keyring), parts))
    assert sorted(became) == ["done", *["handed_over"] * 19]
    assert [(row[0], row[1]) for row in settled_rows(deployed)] == [(message_id, "done")]


def test_what_is_no_data_cannot_cross_a_stage_and_is_a_dead_letter(deployed: Deployed) -> None:
    batch, [message_id] = deployed.batch()
    [unit] = claim(batch, "w", 30, 10, "parse", keys=deployed.keyring)
    output = Output(Message(message_id, {"x": object()}), "deliver", "deliver")
    assert settle(unit, Outcome(message_id, "handed_over", [output]), keys=deployed.keyring) == "dead"


def test_a_message_with_a_dead_part_is_dead_when_the_others_have_ended(deployed: Deployed) -> None:
    batch, [message_id] = deployed.batch()
    [unit] = claim(batch, "w", 30, 10, "parse", keys=deployed.keyring)
    settle(unit, handed_over(unit, "deliver", "archive"), keys=deployed.keyring)
    [deliver] = claim(batch, "w", 30, 10, "deliver", keys=deployed.keyring)
    [archive] = claim(batch, "w", 30, 10, "archive", keys=deployed.keyring)
    assert settle(deliver, failed(deliver), keys=deployed.keyring, plan=deployed.plan) == "handed_over"
    assert settle(archive, done(archive), keys=deployed.keyring) == "dead"
    assert state(deployed, message_id) == "dead"


# -- skipping and deciding ----------------------------------------------------------------------------------


def test_skipping_a_batch_settles_what_is_open_and_refuses_its_holders(deployed: Deployed) -> None:
    batch, ids = deployed.batch(3)
    first, second, _ = claim(batch, "w", 30, 3, "parse", keys=deployed.keyring)
    settle(first, handed_over(first, "deliver"), keys=deployed.keyring)
    assert skip(batch, stage="parse", by="anna") == 2
    with pytest.raises(StaleLease):
        settle(second, done(second), keys=deployed.keyring)
    assert sorted(state(deployed, each) for each in ids) == ["handed_over", "skipped", "skipped"]
    assert skip(batch, by="anna") == 1
    assert {state(deployed, each) for each in ids} == {"skipped"}
    assert status(deployed.organization_id, second.message_id).trace == [{"skipped_by": "anna", "stage": "parse"}]
    assert batches.finish(batch)


def test_a_discarded_dead_letter_is_settled_as_dead(deployed: Deployed) -> None:
    batch, [message_id] = deployed.batch()
    [other] = deployed.accept()
    [unit] = claim(batch, "w", 30, 10, keys=deployed.keyring)
    settle(unit, failed(unit), keys=deployed.keyring, plan=deployed.plan)
    assert triage.discard(deployed.organization_id, [message_id, other, "nothing"], by="anna") == [message_id]
    assert state(deployed, message_id) == "discarded"
    assert state(deployed, other) == "accepted"
    assert triage.list_dead(deployed.organization_id) == []
