"""A stream worker: delivers what is accepted, and lets no message hold up another."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from stream_world import Destination, Flow, Working, wait_until

from continuitybridge import connections, database, destinations
from continuitybridge.engine.runner import Runner
from continuitybridge.inbox import holds, reconcile, triage
from continuitybridge.inbox.status import status
from continuitybridge.settings import Settings
from continuitybridge.stream import health
from continuitybridge.stream import worker as worker_module
from continuitybridge.stream.access import DirectAccess
from continuitybridge.stream.process import owner_here
from continuitybridge.vault.keyring import Cipher


def test_messages_of_several_organizations_are_delivered_and_settled(
    make_flow: Callable[[], Flow], working: Callable[..., Working], destination: Destination
) -> None:
    first, second = make_flow(), make_flow()
    before = first.send(1, 2)
    with working():
        sent = before + first.send(3) + second.send(*range(30))
        first.await_done(3)
        second.await_done(30)
    assert sorted(each.message_id for each in destination.deliveries) == sorted(sent)
    assert {each.key.split(":", 1)[1] for each in destination.deliveries} == {"deliver:1"}
    trace = status(first.id, sent[0]).trace
    assert [step["node_id"] for step in trace] == ["in", "read", "deliver"]
    assert reconcile.violations(first.id) == []


def test_a_message_is_delivered_a_moment_after_it_was_accepted(
    make_flow: Callable[[], Flow], working: Callable[..., Working], destination: Destination
) -> None:
    flow = make_flow()
    with working():
        flow.send(0)
        flow.await_done(1)
        waited = []
        for n in range(1, 8):
            time.sleep(0.05)
            accepted = time.monotonic()
            flow.send(n)
            wait_until(lambda n=n: len(destination.deliveries) > n)
            waited.append(destination.deliveries[-1].at - accepted)
    # Without notifications it would take half of a second, the wait between two looks.
    assert sorted(waited)[3] < 0.45


def test_what_fails_is_tried_again_with_the_same_key_and_dies_when_it_is_refused(
    make_flow: Callable[[], Flow], working: Callable[..., Working], destination: Destination
) -> None:
    flow = make_flow()
    tries: dict[int, int] = {}

    def answer(delivery: object) -> int:
        n = getattr(delivery, "n", 0)
        tries[n] = tries.get(n, 0) + 1
        return {1: 503 if tries[n] < 3 else 200, 2: 422}.get(n, 200)

    destination.answer = answer
    with working() as worker:
        worker._settler._policy = type(worker._settler._policy)(8, 0.01, 0.01)
        flow.send(1, 2, 3)
        wait_until(lambda: flow.states() == {"done": 2, "dead": 1})
    assert tries == {1: 3, 2: 1, 3: 1}
    assert len({each.key for each in destination.deliveries if each.n == 1}) == 1
    [dead] = triage.list_dead(flow.id)
    assert (dead.node_id, dead.code) == ("deliver", "delivery-failed")


def test_an_endless_and_a_greedy_program_cost_their_own_message_only(
    make_flow: Callable[[], Flow], working: Callable[..., Working], destination: Destination
) -> None:
    hostile, other = make_flow(), make_flow()
    hostile.deploy(
        "2.0.0",
        steps="  - {id: work, type: jq, config: {program: 'if .n == 3 then def f: f; f"
        " elif .n == 5 then .big = ([range(40000000)] | map(tostring)) else . end'}}\n",
    )
    with working(node_time_limit_s=0.5, node_memory_limit_bytes=128 * 1024 * 1024):
        hostile.send(*range(10))
        sent = time.monotonic()
        other.send(*range(5))
        other.await_done(5)
        assert max(each.at for each in destination.deliveries if each.path == f"/{other.name}") - sent < 30
        wait_until(lambda: hostile.states() == {"done": 8, "dead": 2}, what="hostile")
    assert sorted(destination.numbers(f"/{hostile.name}")) == [0, 1, 2, 4, 6, 7, 8, 9]
    assert {each.code for each in triage.list_dead(hostile.id)} == {"limit-exceeded"}


def test_a_slow_delivery_holds_up_neither_its_flow_nor_a_flooding_organization_the_others(
    make_flow: Callable[[], Flow], working: Callable[..., Working], destination: Destination
) -> None:
    loud, quiet = make_flow(), make_flow()
    slow = threading.Event()
    destination.answer = lambda delivery: slow.wait(20) and 200 if delivery.n == "slow" else 200
    with working(stream_max_messages=16):
        loud.send(*["slow"] * 40)
        wait_until(lambda: loud.states()["claimed"] == 8)
        quiet.send("slow", 1, 2, 3)
        wait_until(lambda: sorted(destination.numbers(f"/{quiet.name}")) == [1, 2, 3])
        assert loud.states() == {"accepted": 32, "claimed": 8}
        slow.set()
        loud.await_done(40)
        quiet.await_done(4)


def test_flows_take_turns_where_there_may_be_fewer_lanes_than_flows(
    make_flow: Callable[[], Flow], working: Callable[..., Working]
) -> None:
    flows = [make_flow() for _ in range(4)]
    with working(stream_lanes=1) as worker:
        for _ in range(3):
            for flow in flows:
                flow.send(*range(5))
        for flow in flows:
            flow.await_done(15)
        assert worker.lanes <= 1


def test_a_new_version_takes_over_and_every_message_finishes_on_its_own(
    make_flow: Callable[[], Flow], working: Callable[..., Working], destination: Destination
) -> None:
    flow = make_flow()
    flow.deploy("1.1.0", path="/old")
    destination.answer = lambda delivery: time.sleep(0.05) or 200
    with working():
        flow.send(*range(40))
        flow.deploy("2.0.0", path="/new")
        flow.send(*range(40, 80))
        flow.await_done(80)
    assert sorted(destination.numbers("/old")) == list(range(40))
    assert sorted(destination.numbers("/new")) == list(range(40, 80))


def test_a_changed_connection_is_used_within_a_moment(
    make_flow: Callable[[], Flow], working: Callable[..., Working], destination: Destination
) -> None:
    flow = make_flow()
    elsewhere = Destination()
    try:
        with working():
            flow.send(1)
            flow.await_done(1)
            connections.put(flow.id, "prod", "sink", {"base_url": elsewhere.url}, "test")

            def arrives() -> bool:
                flow.send(2)
                time.sleep(0.2)
                return bool(elsewhere.deliveries)

            wait_until(arrives)
    finally:
        elsewhere.stop()


def test_a_paused_flow_waits_and_goes_on_when_it_is_resumed(
    make_flow: Callable[[], Flow], working: Callable[..., Working]
) -> None:
    flow = make_flow()
    with working():
        holds.hold(flow.id, "prod", flow.name, "pause", by="anna")
        flow.send(1)
        time.sleep(0.5)
        assert flow.states() == {"accepted": 1}
        holds.resume(flow.id, "prod", flow.name)
        flow.await_done(1)


def test_a_lost_connection_costs_no_message(
    make_flow: Callable[[], Flow], working: Callable[..., Working]
) -> None:
    flow = make_flow()
    with working() as worker:
        wait_until(lambda: worker.listening)
        for n in range(3):
            with database.relay() as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name IN (%s, 'bridge-settlements')",
                    (worker.owner,),
                )
            flow.send(n)
            flow.await_done(n + 1)


def test_a_stopping_worker_finishes_what_is_under_way_and_gives_back_the_rest(
    make_flow: Callable[[], Flow], working: Callable[..., Working], destination: Destination
) -> None:
    flow = make_flow()
    stuck = threading.Event()

    def answer(delivery: object) -> int:
        if getattr(delivery, "n", 0) == "stuck":
            stuck.wait(30)
        time.sleep(0.3)
        return 200

    destination.answer = answer
    flow.send(1, 2, "stuck")
    worker = working(stream_drain_s=2.0)
    with worker:
        wait_until(lambda: destination.begun == 3)
        began = time.monotonic()
        worker.stop()
        assert time.monotonic() - began < 25, "what is stuck was waited for"
    stuck.set()
    assert flow.states() == {"done": 2, "accepted": 1}
    with database.tenant(flow.id) as connection:
        rows = connection.execute("SELECT attempts, lease_owner FROM bridge.messages").fetchall()
    assert rows == [(0, None)]
    with working():
        flow.await_done(3)


def test_ordered_messages_are_delivered_in_their_order_through_retries(
    make_flow: Callable[[], Flow], working: Callable[..., Working], destination: Destination
) -> None:
    flow = make_flow()
    flow.deploy("2.0.0", more="ordering: {key: $.key}\nconcurrency: 2")
    failed: set[str] = set()

    def answer(delivery: object) -> int:
        key = str(getattr(delivery, "key", ""))
        if getattr(delivery, "n", 0) % 3 == 0 and key not in failed:
            failed.add(key)
            return 503
        return 200

    destination.answer = answer
    with working() as worker, working() as second:
        for each in (worker, second):
            each._settler._policy = type(each._settler._policy)(8, 0.05, 0.05)
        for n in range(8):
            flow.send(n, key="a")
            flow.send(n + 100, key="b")
        flow.await_done(16)
    for key in ([n for n in destination.numbers() if n < 100], [n for n in destination.numbers() if n >= 100]):
        assert key == sorted(key)


def test_a_paused_destination_costs_no_attempt_and_resuming_it_lets_all_go_on_at_once(
    make_flow: Callable[[], Flow], working: Callable[..., Working], destination: Destination
) -> None:
    flow = make_flow()
    with working():
        flow.send(0)
        flow.await_done(1)
        destinations.pause(flow.id, "prod", "sink", by="anna")
        time.sleep(0.5)
        sent = flow.send(1, 2)
        wait_until(lambda: flow.states() == {"done": 1, "handed_over": 2})
        destinations.resume(flow.id, "prod", "sink", by="anna")
        flow.await_done(3)
    assert [status(flow.id, message_id).attempts for message_id in sent] == [1, 1]
    assert destination.numbers().count(1) == 1


def test_a_destination_that_fails_and_fails_is_left_alone_until_a_probe_finds_it_well(
    make_flow: Callable[[], Flow], working: Callable[..., Working], destination: Destination
) -> None:
    flow = make_flow()
    soon = {"circuit_failures": 3, "circuit_wait_s": 0.5, "circuit_max_wait_s": 0.5}
    destinations.configure(flow.id, "prod", "sink", soon)
    destination.answer = lambda delivery: 503
    with working() as worker:
        worker._settler._policy = type(worker._settler._policy)(8, 0.05, 0.05)
        sent = flow.send(*range(12))
        wait_until(lambda: circuit(flow) != "closed", what="an open circuit")
        tried = destination.begun
        destination.answer = lambda delivery: 200
        flow.await_done(12)
        wait_until(lambda: circuit(flow) == "closed", what="a closed circuit")
    assert tried < 12 * 3
    assert max(status(flow.id, message_id).attempts for message_id in sent) <= 8


def circuit(flow: Flow) -> str:
    return destinations.show(flow.id, "prod", "sink").circuit


def test_whatever_keeps_an_organizations_keys_away_holds_up_nobody_for_good(
    make_flow: Callable[[], Flow], runner: Runner, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = make_flow(), make_flow()
    broken = threading.Event()
    broken.set()

    class Failing(DirectAccess):
        async def keys(self, organization_id: UUID, *, fresh: bool = False) -> Cipher:
            if organization_id == first.id and broken.is_set():
                raise RuntimeError("what nobody expected")
            return await super().keys(organization_id, fresh=fresh)

    monkeypatch.setattr(worker_module, "REST_S", 0.1)
    changed = settings.model_copy(update={"stream_max_messages": 4})
    with Working(runner, changed, Failing) as worker:
        sent = first.send(*range(8))
        wait_until(lambda: worker.counts["claimed"] >= 4)
        other.send(*range(8))
        other.await_done(8, within_s=20)
        assert set(first.states()) <= {"accepted", "claimed"}, "no message dies of it"
        wait_until(lambda: worker._room.free == 4, within_s=20)
    assert sent


async def test_a_worker_says_that_it_is_at_work_as_soon_as_it_is(
    runner: Runner, settings: Settings, tmp_path: Path
) -> None:
    there = settings.model_copy(update={"state_dir": tmp_path})
    worker = worker_module.StreamWorker(owner_here(), DirectAccess(), runner, settings)
    telling = asyncio.create_task(health.report(worker, there))
    await asyncio.sleep(0)
    assert [each["listening"] for each in health.workers(there)] == [False]
    working = asyncio.create_task(worker.run())
    async with asyncio.timeout(health.EVERY_S - 1.0):
        await asyncio.to_thread(wait_until, lambda: health.workers(there)[0]["listening"])
    worker.stop()
    await working
    telling.cancel()
    await asyncio.gather(telling, return_exceptions=True)
    assert health.workers(there) == []
