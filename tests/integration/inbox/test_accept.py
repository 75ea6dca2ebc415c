"""Accepting: durable, once per key, encrypted."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from inbox_world import Deployed

from continuitybridge import database
from continuitybridge.errors import Conflict, LimitExceeded, NotFound, Unavailable
from continuitybridge.inbox.accept import Accepted, accept
from continuitybridge.inbox.accept.aio import GroupCommit
from continuitybridge.inbox.status import status
from continuitybridge.settings import get_settings


def rows(deployed: Deployed) -> list[Any]:
    with database.tenant(deployed.organization_id) as connection:
        return connection.execute(
            "SELECT message_id, payload, headers, state FROM bridge.messages ORDER BY message_id"
        ).fetchall()


def test_an_accepted_message_is_stored_encrypted_and_may_be_claimed(deployed: Deployed) -> None:
    result = accept(
        deployed.acceptance(b'{"iban": "CH93"}', keys={"po": "4711\x00"}, trigger="in"), deployed.keyring
    )
    assert not result.duplicate
    [(message_id, payload, headers, state)] = rows(deployed)
    assert (message_id, state) == (result.message_id, "accepted")
    assert b"CH93" not in payload
    assert b"r1" not in headers
    found = status(deployed.organization_id, result.message_id)
    assert found.keys == {"po": "4711�"}
    assert (found.state, found.size_bytes, found.source) == ("accepted", 16, "webhook")


def test_a_repeat_under_the_same_key_gives_the_first_message(deployed: Deployed) -> None:
    first = accept(deployed.acceptance(idempotency_key="k1"), deployed.keyring)
    again = accept(deployed.acceptance(idempotency_key="k1"), deployed.keyring)
    assert again == Accepted(first.message_id, duplicate=True)
    assert len(rows(deployed)) == 1


def test_another_body_under_the_same_key_is_a_conflict_and_stores_nothing(deployed: Deployed) -> None:
    accept(deployed.acceptance(b"1", idempotency_key="k1"), deployed.keyring)
    with pytest.raises(Conflict):
        accept(deployed.acceptance(b"2", idempotency_key="k1"), deployed.keyring)
    assert len(rows(deployed)) == 1


def test_a_key_counts_per_environment_and_endpoint(deployed: Deployed) -> None:
    made = [
        accept(deployed.acceptance(idempotency_key="k1", **place), deployed.keyring)
        for place in ({}, {"endpoint": "other"}, {"endpoint": None}, {"environment": "test"})
    ]
    assert [each.duplicate for each in made] == [False] * 4


def test_a_repeat_after_a_key_rotation_is_still_recognised(deployed: Deployed) -> None:
    accept(deployed.acceptance(idempotency_key="k1"), deployed.keyring)
    with database.platform() as connection:
        assert deployed.keyring.create_key(connection, deployed.organization_id) == 2
    deployed.keyring.forget(deployed.organization_id)
    assert accept(deployed.acceptance(idempotency_key="k1"), deployed.keyring).duplicate
    with pytest.raises(Conflict):
        accept(deployed.acceptance(b"other", idempotency_key="k1"), deployed.keyring)


def test_a_key_whose_window_is_over_is_new_again(deployed: Deployed) -> None:
    first = accept(deployed.acceptance(idempotency_key="k1"), deployed.keyring)
    with database.relay() as connection:
        connection.execute(
            "UPDATE bridge.idempotency_keys SET expires_at = now() WHERE organization_id = %s",
            (deployed.organization_id,),
        )
    again = accept(deployed.acceptance(idempotency_key="k1"), deployed.keyring)
    assert not again.duplicate
    assert again.message_id != first.message_id


def test_a_message_that_its_caller_named_is_accepted_once(deployed: Deployed) -> None:
    first = accept(deployed.acceptance(message_id="run-1"), deployed.keyring)
    again = accept(deployed.acceptance(message_id="run-1"), deployed.keyring)
    assert (first.message_id, first.duplicate, again.duplicate) == ("run-1", False, True)
    with pytest.raises(Conflict):
        accept(deployed.acceptance(b"other", message_id="run-1"), deployed.keyring)


def test_a_hundred_concurrent_copies_become_one_message(deployed: Deployed) -> None:
    barrier = threading.Barrier(20)

    def send(n: int) -> Accepted:
        if n < 20:
            barrier.wait()
        return accept(deployed.acceptance(idempotency_key="same"), deployed.keyring)

    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(send, range(100)))
    assert len({each.message_id for each in results}) == 1
    assert sum(not each.duplicate for each in results) == 1
    assert len(rows(deployed)) == 1


def test_a_body_above_the_limit_is_refused(deployed: Deployed) -> None:
    with pytest.raises(LimitExceeded, match="BRIDGE_MAX_MESSAGE_BYTES"):
        accept(deployed.acceptance(b"x" * (get_settings().max_message_bytes + 1)), deployed.keyring)


def test_an_organization_without_a_key_accepts_nothing(deployed: Deployed) -> None:
    from uuid import uuid4

    with pytest.raises(NotFound):
        accept(deployed.acceptance(organization_id=uuid4()), deployed.keyring)


def test_those_who_listen_hear_of_a_new_message(deployed: Deployed) -> None:
    heard: list[str] = []
    ready = threading.Event()

    def hear() -> None:
        for notify in database.listen(["bridge_accepted", "bridge_test_ready"], timeout_s=10):
            if notify.channel == "bridge_test_ready":
                ready.set()
            elif str(deployed.organization_id) in notify.payload:
                heard.append(notify.payload)
                return

    thread = threading.Thread(target=hear)
    thread.start()
    while not ready.wait(0.05):
        with database.relay() as connection:
            connection.execute("SELECT pg_notify('bridge_test_ready', '')")
    deployed.accept()
    thread.join(10)
    assert heard == [f"{deployed.organization_id}/prod/{deployed.flow}"]


# -- group commit -------------------------------------------------------------------------------------------


async def test_group_commit_answers_each_caller_for_its_own_message(make_deployed: Any) -> None:
    ours, theirs = make_deployed(), make_deployed()
    async with GroupCommit(ours.keyring) as door:
        results = await asyncio.gather(
            *(door.submit((ours if n % 2 else theirs).acceptance(str(n).encode())) for n in range(200)),
            *(door.submit(ours.acceptance(b"same", idempotency_key="k")) for _ in range(100)),
            door.submit(ours.acceptance(b"other", idempotency_key="k")),
            door.submit(theirs.acceptance(b"same", idempotency_key="k")),
            return_exceptions=True,
        )
    assert len({each.message_id for each in results[:200]}) == 200
    copies = results[200:300]
    assert len({each.message_id for each in copies}) == 1
    assert sum(not each.duplicate for each in copies) == 1
    assert isinstance(results[300], Conflict)
    assert not results[301].duplicate
    assert len(rows(ours)) == 101
    assert len(rows(theirs)) == 101


async def test_a_key_repeated_in_a_later_group_is_recognised(deployed: Deployed) -> None:
    async with GroupCommit(deployed.keyring) as door:
        first = await door.submit(deployed.acceptance(idempotency_key="k"))
        again = await door.submit(deployed.acceptance(idempotency_key="k"))
        with pytest.raises(Conflict):
            await door.submit(deployed.acceptance(b"other", idempotency_key="k"))
    assert again == Accepted(first.message_id, duplicate=True)


async def test_a_message_the_database_refuses_does_not_spoil_its_group(deployed: Deployed) -> None:
    async with GroupCommit(deployed.keyring) as door:
        results = await asyncio.gather(
            *(door.submit(deployed.acceptance(str(n).encode())) for n in range(10)),
            door.submit(deployed.acceptance(source="nowhere")),
            return_exceptions=True,
        )
    assert all(isinstance(each, Accepted) for each in results[:10])
    assert isinstance(results[10], Exception)
    assert len(rows(deployed)) == 10


async def test_a_full_queue_refuses_at_once(deployed: Deployed) -> None:
    async with GroupCommit(deployed.keyring, max_queued=5, max_group=1) as door:
        results = await asyncio.gather(
            *(door.submit(deployed.acceptance(str(n).encode())) for n in range(50)), return_exceptions=True
        )
    refused = [each for each in results if isinstance(each, Unavailable)]
    accepted = [each for each in results if isinstance(each, Accepted)]
    assert refused
    assert all(each.facts["retry_after_s"] for each in refused)
    assert len(rows(deployed)) == len(accepted) == 50 - len(refused)


async def test_a_group_may_hold_every_kind_of_message_and_each_gets_its_own_answer(deployed: Deployed) -> None:
    async with GroupCommit(deployed.keyring) as door:
        await door.submit(deployed.acceptance(b"warm", idempotency_key="known"))
        results = await asyncio.gather(
            door.submit(deployed.acceptance(b"1")),
            door.submit(deployed.acceptance(b"2", idempotency_key="a", idempotency_window_days=30)),
            door.submit(deployed.acceptance(b"2", idempotency_key="a", idempotency_window_days=30)),
            door.submit(deployed.acceptance(b"other", idempotency_key="known")),
            door.submit(deployed.acceptance(b"other", idempotency_key="known", changed_body="same")),
            door.submit(deployed.acceptance(b"3", message_id="named", keys={"po": "4711\0"})),
            door.submit(deployed.acceptance(b"3", message_id="named")),
            door.submit(deployed.acceptance(b"4", endpoint="others", content_type="text/plain", headers={})),
            return_exceptions=True,
        )
    kinds = [each.duplicate if isinstance(each, Accepted) else type(each) for each in results]
    assert kinds == [False, False, True, Conflict, True, False, True, False]
    with database.tenant(deployed.organization_id) as connection:
        stored = connection.execute(
            "SELECT message_id, endpoint, content_type, keys, size_bytes FROM bridge.messages"
        ).fetchall()
        windows = connection.execute(
            "SELECT round(extract(epoch FROM expires_at - now()) / 86400) FROM bridge.idempotency_keys"
        ).fetchall()
    assert {row[0]: row[1:] for row in stored}["named"] == ("orders", "application/json", {"po": "4711\ufffd"}, 1)
    assert sorted((row[1], row[2]) for row in stored)[-1] == ("others", "text/plain")
    assert len(stored) == 5
    assert sorted(int(row[0]) for row in windows) == [7, 7, 30]


async def test_stopping_answers_everybody_who_was_let_in(deployed: Deployed) -> None:
    door = GroupCommit(deployed.keyring, max_group=3)
    await door.start()
    await door.submit(deployed.acceptance(b"warm"))
    waiting = [asyncio.create_task(door.submit(deployed.acceptance(str(n).encode()))) for n in range(30)]
    await asyncio.sleep(0)
    await door.stop()
    assert all(isinstance(each, Accepted) for each in await asyncio.gather(*waiting))
    with pytest.raises(Unavailable):
        await door.submit(deployed.acceptance())


async def test_stopping_while_keys_are_looked_up_leaves_nobody_waiting(deployed: Deployed) -> None:
    door = GroupCommit(deployed.keyring)
    await door.start()
    deployed.keyring.forget()
    waiting = [asyncio.create_task(door.submit(deployed.acceptance(str(n).encode()))) for n in range(5)]
    await asyncio.sleep(0)
    await door.stop()
    async with asyncio.timeout(30):
        results = await asyncio.gather(*waiting, return_exceptions=True)
    accepted = [each for each in results if isinstance(each, Accepted)]
    assert all(isinstance(each, Accepted | Unavailable) for each in results)
    assert len(rows(deployed)) == len(accepted)


async def test_a_caller_that_left_before_the_commit_leaves_no_message(deployed: Deployed) -> None:
    door = GroupCommit(deployed.keyring)
    await door.start()
    await door.submit(deployed.acceptance(b"warm"))
    gone = asyncio.create_task(door.submit(deployed.acceptance(b"gone")))
    await asyncio.sleep(0)
    gone.cancel()
    await door.stop()
    assert len(rows(deployed)) == 1


async def test_a_fault_in_writing_one_group_ends_neither_the_others_nor_their_waiting(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with GroupCommit(deployed.keyring) as door:

        def break_once(*_: object) -> object:
            monkeypatch.undo()
            raise LookupError("a fault")

        monkeypatch.setattr("continuitybridge.inbox.accept.rows.notifications", break_once)
        # It is on disk when the fault comes.
        await asyncio.wait_for(door.submit(deployed.acceptance()), 10)
        await asyncio.wait_for(door.submit(deployed.acceptance()), 10)
    assert len(rows(deployed)) == 2
