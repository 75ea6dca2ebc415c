"""Rate limits to the token and to the second, by a clock that stands still, with a real store."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from clock import Clock
from continuitybridge.errors import TooManyRequests
from continuitybridge.guard import limiter
from continuitybridge.guard.limiter import Claim, Limiter, Standing, parsed
from continuitybridge.settings import get_settings

from .conftest import Valkey
from .test_limiter import admitted, claim

NOWHERE = "redis://127.0.0.1:1/0"
"""Nobody listens there."""


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """It stands 20 s after a minute began, and 800 s after an hour did."""
    clock = Clock()
    monkeypatch.setattr(limiter, "time", clock)
    return clock


@pytest.fixture(params=["alone", "together"])
def limits(request: pytest.FixtureRequest) -> Limiter:
    """One that counts by itself, and one that has a store."""
    if request.param == "alone":
        return Limiter(None)
    store: Valkey = request.getfixturevalue("shared_valkey")
    return Limiter(store.url)


async def refusal(limits: Limiter, *claims: Claim) -> TooManyRequests:
    with pytest.raises(TooManyRequests) as refused:
        await limits.admit(claims)
    return refused.value


async def test_what_is_left_is_told_and_the_next_window_begins_when_it_was_told(
    limits: Limiter, clock: Clock
) -> None:
    one = claim("3/minute")
    for remaining in (2, 1, 0):
        assert await limits.admit([one]) == [Standing("test", 3, 60, remaining, 40)]
    refused = await refusal(limits, one)
    assert refused.detail == "the rate limit is used up: test"
    assert refused.facts["retry_after_s"] == 40
    assert refused.facts["standings"] == [Standing("test", 3, 60, 0, 40)]
    clock.now += 38.5
    assert (await refusal(limits, one)).facts["retry_after_s"] == 1.5
    clock.now += 1.25
    refused = await refusal(limits, one)
    assert refused.facts["retry_after_s"] == 1
    assert refused.facts["standings"] == [Standing("test", 3, 60, 0, 1)]
    clock.now += 0.25
    assert await limits.admit([one]) == [Standing("test", 3, 60, 2, 60)]
    assert await admitted(limits, one, tries=9) == 2


async def test_of_several_limits_the_longest_wait_is_told_and_what_was_taken_is_given_back(
    limits: Limiter,
) -> None:
    short, long, wide = claim("1/minute", name="short"), claim("2/hour", name="long"), claim("9/hour", name="wide")
    await limits.admit([wide, short, long])
    for _ in range(3):
        refused = await refusal(limits, wide, short, long)
        assert refused.detail == "the rate limit is used up: short"
        assert refused.facts["retry_after_s"] == 40
    assert (await limits.admit([wide, long])) == [
        Standing("wide", 9, 3600, 7, 2800),
        Standing("long", 2, 3600, 0, 2800),
    ]
    for order in ((wide, long, short), (short, long, wide)):
        refused = await refusal(limits, *order)
        assert refused.detail == "the rate limit is used up: long, short"
        assert refused.facts["retry_after_s"] == 2800
    assert (await limits.admit([wide]))[0].remaining == 6


async def test_what_is_known_to_be_used_up_is_refused_without_counting(limits: Limiter, clock: Clock) -> None:
    never, one, hourly = claim("3/minute"), claim("3/minute"), claim("1/hour", name="hourly")
    limits.refuse_used_up([never, one])
    await limits.admit([one])
    limits.refuse_used_up([one, never])
    assert await admitted(limits, one, tries=9) == 2
    for known in ([one], [never, one], [one, never]):
        with pytest.raises(TooManyRequests) as refused:
            limits.refuse_used_up(known)
        assert refused.value.detail == "the rate limit is used up: test"
        assert refused.value.facts["retry_after_s"] == 40
        assert refused.value.facts["standings"] == [Standing("test", 3, 60, 0, 40)]
    assert await admitted(limits, hourly, tries=2) == 1
    for known in ([one, hourly], [hourly, one]):
        with pytest.raises(TooManyRequests) as refused:
            limits.refuse_used_up(known)
        assert refused.value.facts["retry_after_s"] == 2800
        assert sorted(each.name for each in refused.value.facts["standings"]) == ["hourly", "test"]
    clock.now += 40
    limits.refuse_used_up([one])
    with pytest.raises(TooManyRequests) as refused:
        limits.refuse_used_up([one, hourly])
    assert [each.name for each in refused.value.facts["standings"]] == ["hourly"]


async def test_nobody_is_refused_while_the_store_is_being_asked(shared_valkey: Valkey) -> None:
    limits, one = Limiter(shared_valkey.url), claim("1/minute")
    asking = asyncio.create_task(limits.admit([one]))
    await asyncio.sleep(0)
    limits.refuse_used_up([one])
    await asking
    assert await admitted(limits, one, tries=2) == 0
    with pytest.raises(TooManyRequests):
        limits.refuse_used_up([one])


@pytest.mark.parametrize("amount", [1, 99, 100, 101, 253, 1_000])
async def test_one_process_and_several_admit_exactly_the_limit(shared_valkey: Valkey, amount: int) -> None:
    one = claim(f"{amount}/minute")
    alone = Limiter(shared_valkey.url)
    for remaining in range(amount - 1, -1, -1):
        assert (await alone.admit([one]))[0].remaining == remaining
    assert (await refusal(alone, one)).facts["standings"][0].remaining == 0
    others = [Limiter(shared_valkey.url) for _ in range(2)]
    for each in others:
        assert (await refusal(each, one)).facts["standings"][0].remaining == 0
    another = claim(f"{amount}/minute")
    counts = await asyncio.gather(*(admitted(each, another, tries=amount) for each in (alone, *others)))
    assert sum(counts) == amount


@pytest.mark.parametrize(
    ("amount", "block"),
    [(1, 1), (49, 1), (50, 1), (99, 1), (100, 2), (5_000, 100), (50_000, 1_000), (10**6, 1_000)],
)
def test_a_fiftieth_of_a_limit_is_taken_at_once(amount: int, block: int) -> None:
    [limit] = parsed(f"{amount}/minute")
    assert limiter.block_of(limit) == block


def counter(store: Valkey, key: str) -> tuple[int, int]:
    """How many tokens the store gave for a key, and for how many seconds it remembers that."""
    client = store.client()
    [name] = client.keys(f"*{key}*")  # type: ignore[misc]
    return int(client.get(name) or 0), int(client.ttl(name))  # type: ignore[arg-type]


async def test_the_next_block_is_got_when_half_of_one_is_left_and_one_by_one_none_is_got_ahead(
    shared_valkey: Valkey,
) -> None:
    limits = Limiter(shared_valkey.url)
    busy, small, tiny = claim("1000/minute"), claim("100/minute"), claim("3/minute")

    async def got_after(taken: int, of: Claim) -> int:
        assert await admitted(limits, of, tries=taken) == taken
        await asyncio.sleep(0.05)
        return counter(shared_valkey, of.key)[0]

    assert await got_after(9, busy) == 20
    assert await got_after(1, busy) == 40
    assert await got_after(1, small) == 4
    assert await got_after(1, tiny) == 1
    assert 100 < counter(shared_valkey, busy.key)[1] <= 120


async def test_what_another_request_gives_back_meanwhile_is_taken_and_no_refusal_names_nothing(
    shared_valkey: Valkey,
) -> None:
    limits, (a, b, c) = Limiter(shared_valkey.url), (claim("1/minute", name=each) for each in "abc")
    await Limiter(shared_valkey.url).admit([b])
    real, gates = limits._shared.incr, {one.key: asyncio.Event() for one in (b, c)}

    async def late(key: str, *more: Any) -> Any:
        """The store's answer, when its gate is opened."""
        for one, gate in gates.items():
            if one in key:
                await gate.wait()
        return await real(key, *more)

    limits._shared.incr = late
    lends = asyncio.create_task(limits.admit([a, b]))
    await asyncio.sleep(0.05)
    assert (await refusal(limits, a)).detail == "the rate limit is used up: a"
    waits = asyncio.create_task(limits.admit([a, c]))
    await asyncio.sleep(0.05)
    gates[b.key].set()
    with pytest.raises(TooManyRequests, match=r"is used up: b$"):
        await lends
    gates[c.key].set()
    assert [each.remaining for each in await waits] == [0, 0]
    assert (await refusal(limits, a, c)).detail == "the rate limit is used up: a, c"


async def test_an_account_is_its_name_its_key_and_its_limit(limits: Limiter) -> None:
    key = uuid4().hex
    for one in (claim("2/minute", key), claim("2/minute", key, "other"), claim("2/hour", key), claim("2/minute")):
        assert await admitted(limits, one, tries=5) == 2


async def test_a_store_that_was_away_is_asked_again_after_a_while_and_counts_together_again(
    own_valkey: Valkey, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Limiter(own_valkey.url), Limiter(own_valkey.url)
    begun = claim("100/minute")
    assert await admitted(first, begun, tries=1) == 1
    own_valkey.stop()

    async def both(amount: int) -> int:
        one = claim(f"{amount}/minute")
        return await admitted(first, one, tries=amount + 1) + await admitted(second, one, tries=amount + 1)

    with caplog.at_level(logging.WARNING, logger=limiter.log.name):
        assert await both(3) == 6
        clock.now += 5
        assert await both(3) == 6
        assert [each.message[:38] for each in caplog.records] == ["rate limits are counted by this proces"] * 2
        assert await admitted(first, begun, tries=200) == 99, "what the store gave before counts"
        own_valkey.start()
        clock.now += 4.75
        assert await both(3) == 6, "it is not asked yet"
        clock.now += 0.25
        caplog.clear()
        assert await both(3) == 3
        assert [each.message for each in caplog.records] == ["rate limits are counted together again"] * 2
        caplog.clear()
        assert await both(3) == 3
        assert caplog.records == []
        own_valkey.stop()
        assert await both(3) == 6
        assert len(caplog.records) == 2, "that it is away again is told again"


async def test_who_has_taken_all_gets_no_more_when_the_store_goes_away(own_valkey: Valkey) -> None:
    limits, one = Limiter(own_valkey.url), claim("2/minute")
    assert await admitted(limits, one, tries=2) == 2
    own_valkey.stop()
    assert (await refusal(limits, one)).facts["standings"] == [Standing("test", 2, 60, 0, 40)]


@pytest.fixture
def silent() -> Iterator[str]:
    """A store that hears and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        yield f"redis://127.0.0.1:{listening.getsockname()[1]}/0"


async def test_a_store_that_does_not_answer_holds_nobody_up(silent: str) -> None:
    limits, one = Limiter(silent), claim("2/minute")
    began = time.monotonic()
    assert await limits.admit([one]) == [Standing("test", 2, 60, 1, 40)]
    assert time.monotonic() - began < 1.2


async def test_when_there_are_too_many_keys_those_of_past_windows_are_forgotten_first(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(limiter, "MAX_LEASES", 3)
    limits = Limiter(None)
    used_up = claim("1/minute")
    assert await admitted(limits, used_up, claim("9/second"), tries=2) == 1
    await limits.admit([claim("9/second")])
    clock.now += 1
    await limits.admit([claim("9/second")])
    assert await admitted(limits, used_up, tries=1) == 0
    await limits.admit([claim("9/minute")])
    assert await admitted(limits, used_up, tries=1) == 0
    await limits.admit([claim("9/minute")])
    assert await admitted(limits, used_up, tries=1) == 1, "all are of this window: all are forgotten"


async def test_a_loop_has_one_limiter_and_its_store_is_that_of_the_settings(
    shared_valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limiter, "_limiters", {})

    async def admits(url: str | None) -> int:
        """How many the process's limiter admits of three that the store counted already."""
        limiter._limiters.clear()
        monkeypatch.delenv("BRIDGE_REDIS_URL", raising=False)
        if url is not None:
            monkeypatch.setenv("BRIDGE_REDIS_URL", url)
        get_settings.cache_clear()
        one = claim("3/minute")
        assert await admitted(Limiter(shared_valkey.url), one, tries=3) == 3
        assert limiter.current() is limiter.current()
        return await admitted(limiter.current(), one, tries=4)

    try:
        assert await admits(shared_valkey.url) == 0
        assert await admits(None) == 3
        own = Limiter(NOWHERE)
        limiter.install(own)
        assert limiter.current() is own
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()


@pytest.mark.parametrize(("text", "amounts"), [(None, []), ("", []), ("7/minute; 9/hour", [7, 9])])
def test_limits_are_read_as_they_are_written(text: Any, amounts: list[int]) -> None:
    assert [each.amount for each in parsed(text)] == amounts


def test_what_is_no_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="many"):
        parsed("many")
