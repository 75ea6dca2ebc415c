"""Replaying: the same id again, from the beginning or from where it failed, on this version or another."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from inbox_world import Deployed, done, failed, handed_over, make_plan

from continuitybridge import database
from continuitybridge.engine.message import Message, Output
from continuitybridge.errors import ConfigurationError, Conflict, NotFound
from continuitybridge.inbox import batches, reconcile, triage
from continuitybridge.inbox.claim import Claimed, claim
from continuitybridge.inbox.replay import Replayed, replay
from continuitybridge.inbox.settle import settle
from continuitybridge.inbox.status import status


@pytest.fixture(autouse=True)
def the_store_agrees_with_itself(deployed: Deployed) -> Any:
    yield
    assert reconcile.violations(deployed.organization_id) == []


def run(deployed: Deployed) -> Claimed:
    """Dispatch and claim the one message that is ready."""
    batch = deployed.dispatch()
    [unit] = claim(batch, "w", 30, 10, keys=deployed.keyring)
    return unit


def make_dead(deployed: Deployed, **changes: Any) -> str:
    batch, [message_id] = deployed.batch(**changes)
    [unit] = claim(batch, "w", 30, 10, keys=deployed.keyring)
    assert settle(unit, failed(unit), keys=deployed.keyring, plan=deployed.plan) == "dead"
    batches.finish(batch)
    return message_id


def make_done(deployed: Deployed, **changes: Any) -> str:
    batch, [message_id] = deployed.batch(**changes)
    [unit] = claim(batch, "w", 30, 10, keys=deployed.keyring)
    assert settle(unit, done(unit), keys=deployed.keyring) == "done"
    batches.finish(batch)
    return message_id


def replay_one(deployed: Deployed, message_id: str, **how: Any) -> Replayed:
    [result] = replay(deployed.organization_id, [message_id], by="anna", **how)
    return result


def test_a_dead_letter_runs_again_from_the_beginning_with_id_and_generation(deployed: Deployed) -> None:
    message_id = make_dead(deployed, trigger="in")
    assert replay_one(deployed, message_id) == Replayed(message_id, "1.0.0", 1)
    unit = run(deployed)
    assert (unit.message.id, unit.message.generation, unit.entry, unit.attempts) == (message_id, 1, None, 1)
    assert unit.message.body == b'{"n": 0}'
    assert settle(unit, done(unit), keys=deployed.keyring) == "done"
    found = status(deployed.organization_id, message_id)
    assert (found.state, found.replays) == ("done", 1)
    assert "anna" in str(found.trace)


def test_a_dead_letter_goes_on_where_it_failed(deployed: Deployed) -> None:
    message_id = make_dead(deployed)
    assert replay_one(deployed, message_id, start="failure").refused is None
    unit = run(deployed)
    assert (unit.entry, unit.attempts, unit.message.generation) == ("deliver", 1, 1)
    assert unit.message.body == {"order": 7, "password": "s3cret-pw"}
    assert settle(unit, done(unit), keys=deployed.keyring) == "done"


def test_going_on_where_it_failed_leaves_alone_what_went_well(deployed: Deployed) -> None:
    batch, [message_id] = deployed.batch()
    [unit] = claim(batch, "w", 30, 10, "parse", keys=deployed.keyring)
    good = Output(Message(f"{message_id}.1", 1), "archive", "archive")
    settle(unit, failed(unit, child=f"{message_id}.2", outputs=[good]), keys=deployed.keyring, plan=deployed.plan)
    [part] = claim(batch, "w", 30, 10, "archive", keys=deployed.keyring)
    assert settle(part, done(part), keys=deployed.keyring) == "dead"
    batches.finish(batch)
    replay_one(deployed, message_id, start="failure")
    again = run(deployed)
    assert again.message.id == f"{message_id}.2"
    assert settle(again, done(again), keys=deployed.keyring) == "done"


def test_a_dead_letter_without_a_known_node_starts_at_the_beginning(deployed: Deployed) -> None:
    batch, [message_id] = deployed.batch()
    [unit] = claim(batch, "w", 30, 10, keys=deployed.keyring)
    settle(unit, failed(unit, known=False), keys=deployed.keyring, plan=deployed.plan)
    batches.finish(batch)
    replay_one(deployed, message_id, start="failure")
    assert run(deployed).entry is None


def test_a_settled_message_runs_again_and_its_first_record_stays(deployed: Deployed) -> None:
    message_id = make_done(deployed)
    assert replay_one(deployed, message_id) == Replayed(message_id, "1.0.0", 1)
    assert status(deployed.organization_id, message_id).state == "accepted"
    unit = run(deployed)
    assert unit.message.body == b'{"n": 0}'
    assert unit.message.headers["x-request-id"] == "r1"
    settle(unit, done(unit), keys=deployed.keyring)
    found = status(deployed.organization_id, message_id)
    assert (found.state, found.replays) == ("done", 1)
    [counts] = reconcile.counts(deployed.organization_id)
    assert (counts.accepted, counts.done) == (1, 1)


def test_a_discarded_message_runs_again_from_the_beginning_only(deployed: Deployed) -> None:
    message_id = make_dead(deployed)
    triage.discard(deployed.organization_id, [message_id], by="anna")
    assert isinstance(replay_one(deployed, message_id, start="failure").refused, Conflict)
    assert replay_one(deployed, message_id).refused is None
    assert run(deployed).message.id == message_id


def test_another_body_takes_a_new_generation(deployed: Deployed) -> None:
    for message_id in (make_dead(deployed), make_done(deployed)):
        result = replay_one(deployed, message_id, body=b'{"n": 99}', keys=deployed.keyring)
        assert result.generation == 2
        unit = run(deployed)
        assert (unit.message.id, unit.message.body, unit.message.generation) == (message_id, b'{"n": 99}', 2)
        assert status(deployed.organization_id, message_id).size_bytes == 9
        settle(unit, done(unit), keys=deployed.keyring)


def test_the_newest_version_takes_a_new_generation_and_its_own_stages(deployed: Deployed) -> None:
    message_id = make_dead(deployed, trigger="in")
    deployed.deploy(make_plan(deployed.flow, "1.1.0", nodes=("check", "deliver")))
    result = replay_one(deployed, message_id, start="failure", version="newest")
    assert (result.version, result.generation) == ("1.1.0", 2)
    batch = deployed.dispatch()
    assert (batch.version, batch.first_stage) == ("1.1.0", "check")
    [unit] = claim(batch, "w", 30, 10, "deliver", keys=deployed.keyring)
    assert (unit.version, unit.entry, unit.message.generation) == ("1.1.0", "deliver", 2)


def test_another_version_runs_in_its_own_mode(deployed: Deployed) -> None:
    dead, settled = make_dead(deployed), make_done(deployed)
    deployed.deploy(make_plan(deployed.flow, "2.0.0", mode="stream"))
    for message_id, start in ((dead, "failure"), (settled, "beginning")):
        assert replay_one(deployed, message_id, start=start, version="newest").refused is None
    with database.tenant(deployed.organization_id) as connection:
        modes = connection.execute(
            "SELECT mode FROM bridge.messages UNION ALL SELECT mode FROM bridge.hand_overs"
        ).fetchall()
    assert modes == [("stream",)] * 3


def test_newest_is_no_change_while_no_other_version_is_deployed(deployed: Deployed) -> None:
    assert replay_one(deployed, make_dead(deployed), version="newest").generation == 1


def test_a_version_that_lacks_the_failed_node_is_refused_and_changes_nothing(deployed: Deployed) -> None:
    message_id = make_dead(deployed)
    deployed.deploy(make_plan(deployed.flow, "2.0.0", nodes=("check", "send")))
    refused = replay_one(deployed, message_id, start="failure", version="2.0.0").refused
    assert isinstance(refused, Conflict)
    assert "'deliver'" in refused.detail
    assert status(deployed.organization_id, message_id).state == "dead"
    assert isinstance(replay_one(deployed, message_id, version="7.7.7").refused, Conflict)


@pytest.mark.parametrize("version", ["original", "newest", "1.0.0"])
def test_a_message_whose_flow_was_taken_out_stays_in_triage_until_it_is_deployed_again(
    deployed: Deployed, version: str
) -> None:
    message_id = make_dead(deployed)
    deployed.set_status("removed")
    refused = replay_one(deployed, message_id, version=version).refused
    assert isinstance(refused, Conflict)
    assert "not deployed in prod" in refused.detail
    assert status(deployed.organization_id, message_id).state == "dead"
    # One that is disabled is there: its messages wait, as those that it has accepted.
    deployed.set_status("disabled")
    assert replay_one(deployed, message_id, version=version).refused is None


def test_bulk_replay_answers_for_each_message(deployed: Deployed, make_deployed: Callable[[], Deployed]) -> None:
    dead, finished = make_dead(deployed), make_done(deployed)
    [under_way] = deployed.accept()
    theirs = make_dead(make_deployed())
    results = replay(deployed.organization_id, [dead, under_way, "nothing", theirs, finished], by="anna")
    assert [type(each.refused) for each in results] == [
        type(None),
        Conflict,
        NotFound,
        NotFound,
        type(None),
    ]


def test_concurrent_replays_make_one(deployed: Deployed) -> None:
    for message_id in (make_dead(deployed), make_done(deployed)):
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _, m=message_id: replay_one(deployed, m), range(8)))
        assert sum(each.refused is None for each in results) == 1


def test_another_body_is_for_one_message_from_the_beginning(deployed: Deployed) -> None:
    with pytest.raises(ConfigurationError):
        replay(deployed.organization_id, ["a", "b"], by="anna", body=b"", keys=deployed.keyring)
    with pytest.raises(ConfigurationError):
        replay(deployed.organization_id, ["a"], by="anna", body=b"", start="failure", keys=deployed.keyring)


def test_a_settlement_from_before_the_replay_is_stale(deployed: Deployed) -> None:
    batch, [message_id] = deployed.batch()
    [unit] = claim(batch, "w", 30, 10, "parse", keys=deployed.keyring)
    settle(unit, handed_over(unit, "deliver"), keys=deployed.keyring)
    [late] = claim(batch, "w", 30, 10, "deliver", keys=deployed.keyring)
    settle(late, failed(late), keys=deployed.keyring, plan=deployed.plan)
    replay_one(deployed, message_id, start="failure")
    from continuitybridge.errors import StaleLease

    with pytest.raises(StaleLease):
        settle(late, done(late), keys=deployed.keyring)
