"""Whose messages come into which commit, when one organization floods."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from inbox_world import Deployed

from continuitybridge import database
from continuitybridge.inbox import neighbours
from continuitybridge.inbox.accept.aio import GroupCommit
from continuitybridge.inbox.neighbours import LEAST_SHARE, SHARE

FLOOD = 64


@pytest.fixture
def felt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits at all feels the others' floods, fully and for long."""
    for name, value in (("WAIT_S", 0.0), ("FLOORS", 0.0), ("STEP", 1.0), ("FADES_S", 1e9)):
        monkeypatch.setattr(neighbours, name, value)


def commits(deployed: Deployed) -> Counter[Any]:
    """How many of its messages came with which commit, but for the first message."""
    with database.tenant(deployed.organization_id) as connection:
        rows = connection.execute("SELECT accepted_at FROM bridge.messages ORDER BY accepted_at").fetchall()
    return Counter(row[0] for row in rows[1:])


async def known(door: GroupCommit, *each: Deployed) -> None:
    """What is asked once of an organization was asked: its messages queue up in the order they are submitted."""
    for of in each:
        await door.submit(of.acceptance(b"before"))


def flood(door: GroupCommit, of: Deployed, count: int = FLOOD) -> list[Any]:
    return [door.submit(of.acceptance(str(n).encode())) for n in range(count)]


@pytest.mark.usefixtures("felt")
async def test_a_flood_that_others_feel_gets_its_share_of_each_commit(
    make_deployed: Callable[[], Deployed],
) -> None:
    loud, quiet, third = make_deployed(), make_deployed(), make_deployed()
    async with GroupCommit(loud.keyring) as door:
        await known(door, loud, quiet, third)
        await asyncio.gather(*flood(door, loud), *flood(door, quiet, SHARE), *flood(door, third, 1))
    of_loud = commits(loud)
    assert set(of_loud.values()) == {LEAST_SHARE}
    [first, *_] = of_loud
    # They came last, and were with the first.
    assert commits(quiet) == {first: SHARE}
    assert commits(third) == {first: 1}


async def test_a_flood_that_others_do_not_feel_is_not_held_back(
    make_deployed: Callable[[], Deployed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "WAIT_S", 1e9)
    loud, quiet = make_deployed(), make_deployed()
    async with GroupCommit(loud.keyring) as door:
        await known(door, loud, quiet)
        await asyncio.gather(*flood(door, loud), *flood(door, quiet, 1))
    assert list(commits(loud).values()) == [FLOOD]


@pytest.mark.usefixtures("felt")
async def test_a_flood_alone_is_not_held_back(make_deployed: Callable[[], Deployed]) -> None:
    loud = make_deployed()
    async with GroupCommit(loud.keyring) as door:
        await known(door, loud)
        await asyncio.gather(*flood(door, loud))
    assert list(commits(loud).values()) == [FLOOD]


@pytest.mark.usefixtures("felt")
async def test_floods_beside_each_other_take_turns_and_are_not_held_back(
    make_deployed: Callable[[], Deployed],
) -> None:
    one, other = make_deployed(), make_deployed()
    async with GroupCommit(one.keyring, max_group=FLOOD) as door:
        await known(door, one, other)
        await asyncio.gather(*flood(door, one), *flood(door, other))
    assert commits(one) == commits(other)
    assert set(commits(one).values()) == {FLOOD // 2}


@pytest.mark.usefixtures("felt")
async def test_messages_of_an_organization_keep_their_order_when_it_is_held_back(
    make_deployed: Callable[[], Deployed],
) -> None:
    loud, quiet = make_deployed(), make_deployed()
    async with GroupCommit(loud.keyring) as door:
        await known(door, loud, quiet)
        accepted = await asyncio.gather(*flood(door, loud), *flood(door, quiet, 1))
    with database.tenant(loud.organization_id) as connection:
        rows = connection.execute("SELECT message_id, accepted_at FROM bridge.messages").fetchall()
    at = dict(rows)
    times = [at[each.message_id] for each in accepted[:FLOOD]]
    assert times == sorted(times)


@pytest.mark.usefixtures("felt")
async def test_who_comes_while_a_flood_is_held_back_is_in_the_next_commit(
    make_deployed: Callable[[], Deployed],
) -> None:
    loud, quiet = make_deployed(), make_deployed()
    async with GroupCommit(loud.keyring) as door:
        await known(door, loud, quiet)
        flooding = [asyncio.create_task(each) for each in flood(door, loud)]
        await asyncio.wait(flooding, return_when=asyncio.FIRST_COMPLETED)
        await door.submit(quiet.acceptance(b"meanwhile"))
        assert sum(each.done() for each in flooding) <= 3 * SHARE
        await asyncio.gather(*flooding)


@pytest.mark.usefixtures("felt")
async def test_stopping_writes_at_once_what_is_held_back(make_deployed: Callable[[], Deployed]) -> None:
    loud, quiet = make_deployed(), make_deployed()
    door = GroupCommit(loud.keyring)
    await door.start()
    await known(door, loud, quiet)
    waiting = [asyncio.create_task(each) for each in (*flood(door, loud), *flood(door, quiet, 1))]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    await door.stop()
    assert all(not each.result().duplicate for each in waiting)
    assert sum(commits(loud).values()) == FLOOD
