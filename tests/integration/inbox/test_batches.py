"""Batches: who gets which messages, and what a run finds when it begins."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from inbox_world import Deployed, done, failed

from continuitybridge import database
from continuitybridge.errors import Conflict, NotFound, Verdict
from continuitybridge.inbox import batches
from continuitybridge.inbox.claim import claim
from continuitybridge.inbox.retry import RetryPolicy
from continuitybridge.inbox.settle import settle
from continuitybridge.inbox.status import status

NOW = RetryPolicy(max_attempts=3, base_s=0.0, max_s=0.0)


def everyone_but(*deployed: Deployed) -> list[batches.FlowKey]:
    """Every other deployed flow, to be left alone."""
    ours = {(each.organization_id, each.environment, each.flow) for each in deployed}
    with database.relay() as connection:
        rows = connection.execute("SELECT organization_id, environment, flow FROM bridge.deployments")
        return [row for row in rows if row not in ours]


def test_a_batch_takes_the_messages_of_one_flow_and_version(deployed: Deployed) -> None:
    old = deployed.accept(2, version="0.9.0")
    new = deployed.accept(3)
    made = batches.dispatch_ready(paused=everyone_but(deployed), max_open_per_flow=5)
    assert sorted((batch.version, batch.messages) for batch in made) == [("0.9.0", 2), ("1.0.0", 3)]
    for batch in made:
        assert batch.dag_id == f"{deployed.organization.slug}.prod.{deployed.flow}"
        assert batch.run_id == f"bridge__{batch.batch_id}"
        assert batch.status == "created"
    of = {batch.version: batch for batch in made}
    assert of["1.0.0"].first_stage == "parse"
    assert of["0.9.0"].first_stage is None
    assert {status(deployed.organization_id, each).batch_id for each in new} == {of["1.0.0"].batch_id}
    assert {status(deployed.organization_id, each).run_id for each in old} == {of["0.9.0"].run_id}


def test_a_batch_is_bounded_and_the_rest_goes_into_the_next(deployed: Deployed) -> None:
    deployed.accept(7)
    sizes = [
        batch.messages
        for _ in range(3)
        for batch in batches.dispatch_ready(paused=everyone_but(deployed), max_messages=3, max_open_per_flow=5)
    ]
    assert sizes == [3, 3, 1]


def test_every_organization_gets_a_batch_before_any_gets_its_second(
    make_deployed: Callable[[], Deployed],
) -> None:
    flooding, modest = make_deployed(), make_deployed()
    flooding.accept(20)
    second_flow = Deployed(flooding.organization, flooding.keyring, f"flow-{uuid4().hex[:8]}")
    second_flow.accept(20)
    modest.accept(1)
    made = batches.dispatch_ready(paused=everyone_but(flooding, second_flow, modest), max_batches=2)
    assert {batch.organization_id for batch in made} == {flooding.organization_id, modest.organization_id}


def test_paused_disabled_and_busy_flows_keep_their_messages(deployed: Deployed) -> None:
    [message] = deployed.accept()
    key = (deployed.organization_id, deployed.environment, deployed.flow)
    assert batches.dispatch_ready(paused=[*everyone_but(deployed), key]) == []
    deployed.set_status("disabled")
    assert batches.dispatch_ready(paused=everyone_but(deployed)) == []
    deployed.set_status("active")
    assert len(batches.dispatch_ready(paused=everyone_but(deployed), max_open_per_flow=1)) == 1
    deployed.accept()
    assert batches.dispatch_ready(paused=everyone_but(deployed), max_open_per_flow=1) == []
    assert status(deployed.organization_id, message).state == "accepted"


def test_a_suspended_organization_keeps_its_messages(deployed: Deployed) -> None:
    deployed.accept()
    with database.platform() as connection:
        connection.execute(
            "UPDATE bridge.organizations SET status = 'suspended' WHERE organization_id = %s",
            (deployed.organization_id,),
        )
    assert batches.dispatch_ready(paused=everyone_but(deployed)) == []


def test_concurrent_dispatchers_put_no_message_into_two_batches(deployed: Deployed) -> None:
    ids = deployed.accept(60)
    paused = everyone_but(deployed)

    def dispatch(_: int) -> list[batches.Batch]:
        return batches.dispatch_ready(paused=paused, max_messages=10, max_open_per_flow=100)

    with ThreadPoolExecutor(6) as pool:
        made = [batch for found in pool.map(dispatch, range(12)) for batch in found]
    assert sum(batch.messages for batch in made) == 60
    taken = [unit.message_id for batch in made for unit in claim(batch, "w", 30, 100, keys=deployed.keyring)]
    assert sorted(taken) == sorted(ids)


def test_a_batch_whose_run_nobody_started_is_named_again(deployed: Deployed) -> None:
    batch, _ = deployed.batch()
    assert batch in batches.unstarted(older_than_s=0, limit=10_000)
    batches.adopt(
        batch.dag_id,
        batch.run_id,
        organization_id=deployed.organization_id,
        environment="prod",
        flow=deployed.flow,
        version="1.0.0",
        keys=deployed.keyring,
    )
    assert batch.batch_id not in {each.batch_id for each in batches.unstarted(older_than_s=0, limit=10_000)}


def adopt(deployed: Deployed, run_id: str, *bodies: bytes, **changes: object) -> batches.Batch:
    return batches.adopt(
        f"{deployed.organization.slug}.prod.{deployed.flow}",
        run_id,
        organization_id=deployed.organization_id,
        environment="prod",
        flow=deployed.flow,
        version=deployed.version,
        acceptances=[deployed.acceptance(body, source="manual", **changes) for body in bodies],
        keys=deployed.keyring,
    )


def test_a_run_that_began_elsewhere_brings_its_messages_once(deployed: Deployed) -> None:
    first = adopt(deployed, "manual__1", b"1", b"2")
    again = adopt(deployed, "manual__1", b"1", b"2")
    assert (first.status, first.messages, first.run_id) == ("started", 2, "manual__1")
    assert again == first
    assert len(claim(first, "w", 30, 10, keys=deployed.keyring)) == 2


def test_a_run_and_its_duplicate_at_the_same_moment_bring_the_messages_once(deployed: Deployed) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: adopt(deployed, "manual__1", b"1", b"2"), range(8)))
    assert len({batch.batch_id for batch in found}) == 1
    assert len(claim(found[0], "w", 30, 10, keys=deployed.keyring)) == 2


def test_adopting_with_a_key_used_for_another_body_makes_nothing(deployed: Deployed) -> None:
    deployed.accept(1, idempotency_key="k")
    with pytest.raises(Conflict):
        adopt(deployed, "manual__1", b"other", idempotency_key="k")
    with pytest.raises(NotFound):
        batches.find(f"{deployed.organization.slug}.prod.{deployed.flow}", "manual__1")


def test_a_batch_is_finished_when_nothing_is_left_in_it(deployed: Deployed) -> None:
    batch, _ = deployed.batch(2)
    first, second = claim(batch, "w", 30, 10, keys=deployed.keyring)
    settle(first, done(first), keys=deployed.keyring)
    assert not batches.finish(batch)
    outcome = failed(second, verdict=Verdict.TRANSIENT)
    assert settle(second, outcome, keys=deployed.keyring, plan=deployed.plan, policy=NOW) == "retry"
    assert batches.finish(batch)
    assert batches.find(batch.dag_id, batch.run_id).status == "settled"


def test_a_released_batch_gives_its_messages_to_the_next(deployed: Deployed) -> None:
    batch, ids = deployed.batch(3)
    [held] = claim(batch, "w", 30, 1, keys=deployed.keyring)
    assert batches.release(batch) == 2
    assert claim(batch, "w2", 30, 10, keys=deployed.keyring) == []
    following = deployed.dispatch()
    assert following.messages == 2
    assert settle(held, done(held), keys=deployed.keyring) == "done"
    rest = claim(following, "w2", 30, 10, keys=deployed.keyring)
    assert sorted([held.message_id, *(unit.message_id for unit in rest)]) == sorted(ids)


def test_what_is_in_mode_stream_is_left_to_the_stream_workers(deployed: Deployed) -> None:
    deployed.accept(2, mode="stream")
    batch, ids = deployed.batch(1)
    assert batch.messages == 1
    [unit] = claim(batch, "w", 30, 10, keys=deployed.keyring)
    assert [unit.message_id] == ids
