"""One timer for many tasks: who waits too long gets a time-out, nobody else anything."""

from __future__ import annotations

import asyncio
import time

import pytest

from continuitybridge.webhooks.deadlines import Deadlines


async def within(deadlines: Deadlines, wait_s: float) -> str:
    try:
        with deadlines:
            await asyncio.sleep(wait_s)
    except TimeoutError:
        return "late"
    return "done"


async def test_who_waits_longer_than_the_limit_is_told_and_the_others_go_on() -> None:
    deadlines = Deadlines(0.1)
    began = time.monotonic()
    answers = await asyncio.gather(*(within(deadlines, wait_s) for wait_s in (0.0, 5.0, 0.01, 5.0, 0.05)))
    assert answers == ["done", "late", "done", "late", "done"]
    assert 0.09 < time.monotonic() - began < 3
    assert await within(deadlines, 5.0) == "late", "the timer is armed again"
    assert await within(deadlines, 0.0) == "done"


async def test_each_has_its_own_time_from_when_it_began() -> None:
    deadlines = Deadlines(0.3)
    first = asyncio.create_task(within(deadlines, 5.0))
    await asyncio.sleep(0.2)
    second = asyncio.create_task(within(deadlines, 0.2))
    assert await first == "late"
    assert await second == "done"


async def test_a_cancelled_task_is_cancelled_and_an_error_is_itself() -> None:
    deadlines = Deadlines(5.0)
    task = asyncio.create_task(within(deadlines, 10.0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(KeyError), deadlines:
        raise KeyError
    late = Deadlines(0.01)

    async def both() -> None:
        with late:
            await asyncio.sleep(10)

    other = asyncio.create_task(both())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.01, other.cancel)
    with pytest.raises((asyncio.CancelledError, TimeoutError)):
        await other
