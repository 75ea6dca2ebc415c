"""Claims and settlements of stream workers: over all organizations, bounded, in order."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from inbox_world import Deployed, done, failed, handed_over, make_plan

from continuitybridge import database
from continuitybridge.database.connections import role_url
from continuitybridge.engine.message import Outcome
from continuitybridge.errors import Verdict
from continuitybridge.flows.ordering import Ordering
from continuitybridge.inbox import reconcile, triage
from continuitybridge.inbox.claim import Claimed, release
from continuitybridge.inbox.replay import replay
from continuitybridge.inbox.retry import RetryPolicy
from continuitybridge.inbox.settle.endings import ending_of
from continuitybridge.inbox.status import status
from continuitybridge.inbox.stream import StreamClaims, StreamSettlements, Wanted

SOON = RetryPolicy(max_attempts=3, base_s=0.001, max_s=0.001)
MIB = 1024 * 1024


class Worker:
    """One worker's claims and settlements, without an engine between them."""

    def __init__(self, owner: str = "w", *, policy: RetryPolicy = SOON) -> None:
        self.claims = StreamClaims(owner, 60)
        self.settlements = StreamSettlements()
        self.policy = policy

    async def claim(self, *flows: Deployed, most: int = 100, max_bytes: int = MIB, **more: Any) -> list[Claimed]:
        wanted = [Wanted(f.organization_id, f.environment, f.flow, most, **more) for f in flows]
        keys = flows[0].keyring
        return [unit.open(keys, self.claims.owner) for unit in await self.claims.claim(wanted, max_bytes)]

    async def settle(self, deployed: Deployed, *outcomes: tuple[Claimed, Outcome]) -> list[str]:
        keys, plan = deployed.keyring, deployed.plan
        endings = [ending_of(unit, outcome, keys, plan, self.policy) for unit, outcome in outcomes]
        return [*await self.settlements.settle(endings)]

    async def close(self) -> None:
        await self.claims.close()
        await self.settlements.close()


def stream(deployed: Deployed, **changes: Any) -> Deployed:
    """The flow, deployed anew as a stream."""
    deployed.deploy(make_plan(deployed.flow, "2.0.0", mode="stream", **changes))
    return deployed


def accept(deployed: Deployed, *keys: str | None) -> list[str]:
    """A message for each ordering key, accepted one after the other."""
    ordering = deployed.plan.ordering
    ids = []
    for n, key in enumerate(keys):
        body = json.dumps({"n": n, "key": key}).encode()
        ids += [deployed.take(body, mode=deployed.plan.mode, ordering=ordering)]
    return ids


def run(work: Callable[[Worker], Any]) -> Any:
    async def main() -> Any:
        worker = Worker()
        try:
            return await work(worker)
        finally:
            await worker.close()

    return asyncio.run(main())


def bodies(units: Sequence[Claimed]) -> list[int]:
    return [json.loads(unit.message.body)["n"] for unit in units]


@pytest.fixture
def make_stream(make_deployed: Callable[[], Deployed]) -> Callable[..., Deployed]:
    """Flows of organizations of their own, deployed as streams."""
    return lambda **changes: stream(make_deployed(), **changes)


def test_one_claim_takes_messages_of_many_organizations_and_one_settlement_ends_them(
    make_stream: Callable[..., Deployed],
) -> None:
    first, second = make_stream(), make_stream()
    ids = accept(first, *[None] * 3) + accept(second, None, None)

    async def work(worker: Worker) -> None:
        ready = await worker.claims.ready_flows()
        for each in (first, second):
            assert (each.organization_id, each.environment, each.flow) in ready
        units = await worker.claim(first, second)
        assert sorted(unit.message_id for unit in units) == sorted(ids)
        assert {(unit.epoch, unit.attempts, unit.owner, unit.batch_id) for unit in units} == {(1, 1, "w", None)}
        assert units[0].message.headers["x-request-id"] == "r1"
        assert await worker.claim(first, second) == []
        endings = [ending_of(unit, done(unit), first.keyring, None, SOON) for unit in units]
        assert await worker.settlements.settle(endings) == ["done"] * 5
        assert await worker.settlements.settle(endings) == ["stale"] * 5

    run(work)
    for each in (first, second):
        assert reconcile.violations(each.organization_id) == []


def test_what_is_not_a_streams_or_may_not_run_is_left_alone(make_stream: Callable[..., Deployed]) -> None:
    batch, disabled, paused, well = (make_stream() for _ in range(4))
    for each in (disabled, paused, well):
        accept(each, None)
    batch.deploy(make_plan(batch.flow, "3.0.0"))
    accept(batch, None)
    disabled.set_status("disabled")
    with database.tenant(paused.organization_id) as connection:
        connection.execute(
            "INSERT INTO bridge.flow_holds (organization_id, environment, flow, kind, by)"
            " VALUES (%s, %s, %s, 'pause', 'test')",
            (paused.organization_id, paused.environment, paused.flow),
        )

    async def work(worker: Worker) -> None:
        units = await worker.claim(batch, disabled, paused, well)
        assert [unit.flow for unit in units] == [well.flow]
        assert release(units) == 1
        assert (await worker.claim(well))[0].attempts == 1

    run(work)


def test_a_claim_is_bounded_in_bytes_but_never_empty_for_them(make_stream: Callable[..., Deployed]) -> None:
    big, small = make_stream(), make_stream()
    for _ in range(3):
        big.take(b"x" * 1000, mode="stream")
        small.take(b"x", mode="stream")

    async def work(worker: Worker) -> None:
        assert len(await worker.claim(big, max_bytes=1)) == 1
        units = await worker.claim(big, small, max_bytes=1001)
        assert sorted(len(unit.message.body) for unit in units) == [1, 1000]

    run(work)


def test_retries_come_back_at_their_node_and_leave_room_for_new_messages(
    make_stream: Callable[..., Deployed],
) -> None:
    deployed = make_stream()
    accept(deployed, *[None] * 6)

    async def work(worker: Worker) -> None:
        units = await worker.claim(deployed, most=4)
        ends = [(unit, failed(unit, verdict=Verdict.TRANSIENT)) for unit in units]
        assert await worker.settle(deployed, *ends) == ["retry"] * 4
        await asyncio.sleep(0.01)
        units = await worker.claim(deployed, most=4)
        assert sorted(unit.entry or "" for unit in units) == ["", "", "deliver", "deliver"]
        assert {unit.attempts for unit in units if unit.entry} == {2}
        assert {unit.message.body["order"] for unit in units if unit.entry} == {7}
        assert len(await worker.claim(deployed, most=4)) == 2

    run(work)


def test_no_more_than_its_concurrency_is_under_way_however_many_claim(
    make_stream: Callable[..., Deployed],
) -> None:
    bounded, free = make_stream(concurrency=3), make_stream()
    accept(bounded, *[None] * 12)
    accept(free, *[None] * 4)

    async def work(worker: Worker) -> None:
        workers = [worker, *(Worker(f"w{n}") for n in range(4))]
        taken: list[Claimed] = []
        for _ in range(3):
            claimed = await asyncio.gather(*(each.claim(bounded, concurrency=3) for each in workers))
            taken += [unit for units in claimed for unit in units]
        assert len(taken) == 3
        both = [Wanted(f.organization_id, f.environment, f.flow, 9, c) for f, c in ((bounded, 3), (free, None))]
        assert [unit.flow for unit in await worker.claims.claim(both, MIB)] == [free.flow] * 4
        ends = [(taken[0], done(taken[0])), (taken[1], handed_over(taken[1], "deliver"))]
        await worker.settle(bounded, *ends)
        assert len(await worker.claim(bounded, concurrency=3)) == 2
        for each in workers[1:]:
            await each.close()

    run(work)


# -- order --------------------------------------------------------------------------------------------------


def ordered(make_stream: Callable[..., Deployed], after_dead_letter: str = "hold", **more: Any) -> Deployed:
    return make_stream(ordering=Ordering("$.key", after_dead_letter), **more)


def test_of_each_ordering_key_the_first_runs_alone_and_the_others_follow(
    make_stream: Callable[..., Deployed],
) -> None:
    deployed = ordered(make_stream)
    accept(deployed, "a", "a", None, "b", "a", "b", None)

    async def work(worker: Worker) -> None:
        seen = []
        while units := await worker.claim(deployed):
            seen.append(bodies(units))
            await worker.settle(deployed, *[(unit, done(unit)) for unit in units])
        assert seen == [[0, 2, 3, 6], [1, 5], [4]]

    run(work)


def test_a_head_that_is_tried_again_keeps_those_behind_it_waiting(make_stream: Callable[..., Deployed]) -> None:
    deployed = ordered(make_stream)
    first, second = accept(deployed, "a", "a")

    async def work(worker: Worker) -> None:
        for known in (True, False, True):
            [unit] = await worker.claim(deployed)
            assert unit.message_id == first
            worker.policy = RetryPolicy(9, 60, 60)
            again = failed(unit, verdict=Verdict.TRANSIENT, known=known)
            assert await worker.settle(deployed, (unit, again)) == ["retry"]
            assert await worker.claim(deployed) == []
            make_due(deployed)
        [unit] = await worker.claim(deployed)
        assert await worker.settle(deployed, (unit, done(unit))) == ["done"]
        assert [unit.message_id for unit in await worker.claim(deployed)] == [second]

    run(work)


def make_due(deployed: Deployed) -> None:
    """Let the time of what waits for another try have come."""
    with database.tenant(deployed.organization_id) as connection:
        for table in ("messages", "hand_overs"):
            connection.execute(f"UPDATE bridge.{table} SET available_at = now() WHERE available_at > now()")


def test_a_dead_head_holds_its_key_until_it_is_replayed_or_discarded(make_stream: Callable[..., Deployed]) -> None:
    deployed = ordered(make_stream, "hold")
    first, second, third, other = accept(deployed, "a", "a", "a", "b")

    async def work(worker: Worker) -> None:
        units = await worker.claim(deployed)
        assert [unit.message_id for unit in units] == [first, other]
        assert await worker.settle(deployed, *[(unit, failed(unit)) for unit in units]) == ["dead", "dead"]
        assert await worker.claim(deployed) == []
        replay(deployed.organization_id, [first], by="anna")
        [again] = await worker.claim(deployed)
        assert again.message_id == first
        await worker.settle(deployed, (again, failed(again)))
        assert await worker.claim(deployed) == []
        triage.discard(deployed.organization_id, [first], by="anna")
        [unit] = await worker.claim(deployed)
        assert unit.message_id == second
        await worker.settle(deployed, (unit, done(unit)))
        assert [unit.message_id for unit in await worker.claim(deployed)] == [third]

    run(work)


def test_a_dead_head_is_passed_where_the_flow_says_continue(make_stream: Callable[..., Deployed]) -> None:
    deployed = ordered(make_stream, "continue")
    first, second, third = accept(deployed, "a", "a", "a")

    async def work(worker: Worker) -> None:
        [unit] = await worker.claim(deployed)
        assert await worker.settle(deployed, (unit, failed(unit))) == ["dead"]
        [unit] = await worker.claim(deployed)
        assert unit.message_id == second
        # Replayed, it waits for what has begun, and comes before what has not.
        replay(deployed.organization_id, [first], by="anna")
        assert await worker.claim(deployed) == []
        await worker.settle(deployed, (unit, done(unit)))
        [unit] = await worker.claim(deployed)
        assert unit.message_id == first
        await worker.settle(deployed, (unit, done(unit)))
        assert [unit.message_id for unit in await worker.claim(deployed)] == [third]

    run(work)


def test_keys_stay_in_order_whatever_becomes_of_their_messages_and_however_many_work(
    make_stream: Callable[..., Deployed],
) -> None:
    deployed = ordered(make_stream, "continue")
    chance = random.Random(7)
    keys = [chance.choice("abcdefgh") for _ in range(120)]
    ids = accept(deployed, *keys)
    key_of = dict(zip(ids, keys, strict=True))
    running: dict[str, str] = {}
    ended: dict[str, list[str]] = {key: [] for key in keys}

    async def one(worker: Worker) -> None:
        idle = 0
        while sum(map(len, ended.values())) < len(ids) and idle < 200:
            units = await worker.claim(deployed, most=chance.choice([1, 5, 40]))
            idle = 0 if units else idle + 1
            outcomes, final = [], []
            for unit in units:
                key = key_of[unit.message_id]
                assert running.setdefault(key, unit.message_id) == unit.message_id
                fate = chance.choice(["done", "done", "again", "whole", "dead"])
                transient = {"verdict": Verdict.TRANSIENT, "known": fate == "again"}
                ends = {"done": done(unit), "dead": failed(unit)}
                outcomes.append((unit, ends.get(fate) or failed(unit, **transient)))
                final.append(fate in ends or unit.attempts >= SOON.max_attempts)
            await asyncio.sleep(chance.random() / 100)
            for (unit, _), ends_here in zip(outcomes, final, strict=True):
                if ends_here:
                    # From its commit on, which comes before its answer, the next may run.
                    key = key_of[unit.message_id]
                    del running[key]
                    ended[key].append(unit.message_id)
            became = await worker.settle(deployed, *outcomes) if outcomes else []
            assert [each in ("done", "dead") for each in became] == final

    async def work(worker: Worker) -> None:
        workers = [worker, Worker("w2"), Worker("w3")]
        await asyncio.gather(*map(one, workers))
        for each in workers[1:]:
            await each.close()

    run(work)
    assert ended == {key: [each for each in ids if key_of[each] == key] for key in ended}
    assert reconcile.violations(deployed.organization_id) == []


def test_a_batch_runs_the_messages_of_a_key_one_by_one(make_deployed: Callable[[], Deployed]) -> None:
    from continuitybridge.inbox.claim import claim
    from continuitybridge.inbox.settle import settle

    deployed = make_deployed()
    deployed.deploy(make_plan(deployed.flow, "2.0.0", ordering=Ordering("$.key")))
    ids = accept(deployed, "a", "a", "b", "a")
    batch = deployed.dispatch()
    assert batch.messages == 4
    seen = []
    while units := claim(batch, "w", 60, 10, keys=deployed.keyring):
        seen.append(bodies(units))
        for unit in units:
            fails = unit.message_id == ids[1]
            settle(unit, failed(unit) if fails else done(unit), keys=deployed.keyring, plan=deployed.plan)
    assert seen == [[0, 2], [1]]
    assert status(deployed.organization_id, ids[3]).state == "accepted"


def test_a_batch_takes_nothing_behind_a_message_that_will_not_be_in_it(
    make_deployed: Callable[[], Deployed],
) -> None:
    from continuitybridge.inbox.batches import release as give_up
    from continuitybridge.inbox.claim import claim
    from continuitybridge.inbox.settle import settle

    deployed = make_deployed()
    deployed.deploy(make_plan(deployed.flow, "2.0.0", ordering=Ordering("$.key")))
    accept(deployed, "a", "a", "b")
    batch = deployed.dispatch()
    slow = RetryPolicy(9, 60, 60)
    for unit in claim(batch, "w", 60, 10, keys=deployed.keyring):
        again = failed(unit, verdict=Verdict.TRANSIENT)
        settle(unit, again, keys=deployed.keyring, plan=deployed.plan, policy=slow)
    assert give_up(batch) == 1
    accept(deployed, "c")
    later = deployed.dispatch()
    assert later.messages == 1
    assert bodies(claim(later, "w", 60, 10, keys=deployed.keyring)) == [0]


# -- cost ---------------------------------------------------------------------------------------------------


def test_a_flood_of_one_organization_costs_the_others_claims_nothing(make_stream: Callable[..., Deployed]) -> None:
    quiet, loud = make_stream(), ordered(make_stream)
    accept(quiet, None)
    accept(loud, None)

    async def looked_at(worker: Worker) -> int:
        connection = await worker.claims._ready()
        counts = []
        for _ in range(3):
            before = await blocks(connection)
            [unit] = await worker.claim(quiet)
            flows = {flow for _, _, flow in await worker.claims.ready_flows()}
            assert loud.flow in flows
            counts.append(await blocks(connection) - before)
            assert release([unit]) == 1
        return min(counts)

    async def work(worker: Worker) -> None:
        alone = await looked_at(worker)
        flood(loud, 20_000)
        assert await looked_at(worker) <= alone + 50

    run(work)


def flood(deployed: Deployed, count: int, *, age_s: float = 0.0) -> None:
    """So many messages of that age; half of them of one ordering key where the flow has an order."""
    with database.relay() as connection:
        connection.execute(
            "INSERT INTO bridge.messages (organization_id, message_id, environment, flow, version, source,"
            " payload, size_bytes, mode, ordering_key, accepted_at, available_at)"
            " SELECT %s, 'm' || n, %s, %s, %s, 'api', 'x', 1, 'stream', CASE WHEN n %% 2 = 0 AND %s THEN 'k' END,"
            " now() - make_interval(secs => %s), now() - make_interval(secs => %s)"
            " FROM generate_series(1, %s) AS n",
            (
                *(deployed.organization_id, deployed.environment, deployed.flow, deployed.version),
                *(deployed.plan.ordering is not None, age_s, age_s, count),
            ),
        )


async def blocks(connection: Any) -> int:
    """Blocks that this session has looked at so far."""
    await connection.execute("SELECT pg_stat_force_next_flush()")
    cursor = await connection.execute(
        "SELECT sum(hits + reads)::int8 FROM pg_stat_get_backend_io(pg_backend_pid()) WHERE object = 'relation'"
    )
    row = await cursor.fetchone()
    return int(row[0])


def test_what_was_claimed_costs_later_claims_nothing_while_a_long_transaction_keeps_it_in_the_indexes(
    make_stream: Callable[..., Deployed],
) -> None:
    deployed = make_stream()

    async def work(worker: Worker) -> None:
        with psycopg.connect(role_url("relay")) as other:
            # As a backup does it: nothing that is deleted from now on can be tidied up.
            other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            other.execute("SELECT count(*) FROM bridge.messages WHERE organization_id = %s", (uuid4(),))
            flood(deployed, 3_000, age_s=60)
            taken = 0
            while taken < 3_000:
                units = await worker.claims.claim(wanted(deployed, 500), MIB)
                taken += len(units)
            accept(deployed, None)
            [_] = await worker.claim(deployed)
            counts = []
            for _ in range(3):
                accept(deployed, None)
                connection = await worker.claims._ready()
                before = await blocks(connection)
                [_] = await worker.claim(deployed)
                counts.append(await blocks(connection) - before)
            assert min(counts) < 60

    run(work)


def wanted(deployed: Deployed, most: int) -> list[Wanted]:
    return [Wanted(deployed.organization_id, deployed.environment, deployed.flow, most)]
