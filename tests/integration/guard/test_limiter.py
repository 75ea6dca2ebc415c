"""Rate limits are what they say, in one process and in several."""

from __future__ import annotations

import asyncio
import logging
import time
from uuid import uuid4

import pytest

from continuitybridge.errors import TooManyRequests
from continuitybridge.guard import limiter
from continuitybridge.guard.limiter import Claim, Limiter, parsed

from .conftest import Valkey


def claim(text: str, key: str | None = None, name: str = "test") -> Claim:
    (limit,) = parsed(text)
    return Claim(name, limit, key or uuid4().hex)


async def admitted(limits: Limiter, *claims: Claim, tries: int) -> int:
    count = 0
    for _ in range(tries):
        try:
            await limits.admit(claims)
        except TooManyRequests:
            continue
        count += 1
    return count


async def away_from_the_end(window_s: int, needed_s: float = 1.0) -> None:
    """Wait for a window that does not end while the test runs in it."""
    left = window_s - time.time() % window_s
    if left < needed_s:
        await asyncio.sleep(left)


async def test_several_processes_together_admit_the_limit_and_no_more(shared_valkey: Valkey) -> None:
    await away_from_the_end(60, 5)
    for text, amount in (("7/minute", 7), ("230/minute", 230), ("100000/minute", 100_000)):
        processes = [Limiter(shared_valkey.url) for _ in range(3)]
        one = claim(text)
        counts = await asyncio.gather(*(admitted(each, one, tries=min(amount, 400)) for each in processes))
        assert sum(counts) == min(amount, 1200)


async def test_without_a_store_a_process_counts_by_itself() -> None:
    await away_from_the_end(60, 2)
    alone = Limiter(None)
    one = claim("5/minute")
    assert await admitted(alone, one, tries=9) == 5
    assert await admitted(alone, claim("5/minute"), tries=3) == 3, "another key is another account"


@pytest.mark.parametrize("text", ["1/2second", "3/second"])
async def test_who_waits_exactly_as_long_as_told_is_admitted(shared_valkey: Valkey, text: str) -> None:
    for limits in (Limiter(shared_valkey.url), Limiter(None)):
        one = claim(text)
        for _ in range(2):
            while True:
                try:
                    await limits.admit([one])
                except TooManyRequests as error:
                    wait_s = error.facts["retry_after_s"]
                    break
            assert 0 < wait_s <= 2
            await asyncio.sleep(wait_s)
            standing = (await limits.admit([one]))[0]
            assert standing.remaining == one.limit.amount - 1


async def test_a_busy_key_asks_the_store_once_a_block_and_a_used_up_one_never(shared_valkey: Valkey) -> None:
    await away_from_the_end(60, 10)
    limits, one = Limiter(shared_valkey.url), claim("5000/minute")

    def asked() -> int:
        stats = shared_valkey.client().info("commandstats")
        return int(stats.get("cmdstat_evalsha", {}).get("calls", 0))

    await limits.admit([one])
    before = asked()
    assert await admitted(limits, one, tries=4_999) == 4_999
    assert asked() - before <= 60
    assert await admitted(limits, one, tries=1) == 0
    used_up = asked()
    assert await admitted(limits, one, tries=500) == 0
    assert asked() == used_up


async def test_a_refusal_by_one_limit_takes_nothing_from_another(shared_valkey: Valkey) -> None:
    await away_from_the_end(60, 3)
    limits = Limiter(shared_valkey.url)
    narrow, wide = claim("2/minute", name="narrow"), claim("10/minute", name="wide")
    assert await admitted(limits, wide, narrow, tries=9) == 2
    assert await admitted(limits, wide, tries=9) == 8


async def test_while_the_store_is_down_each_process_counts_alone_and_says_so_once(
    own_valkey: Valkey, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limiter, "STORE_RETRY_S", 0.2)
    await away_from_the_end(60, 10)
    own_valkey.stop()
    first, second = Limiter(own_valkey.url), Limiter(own_valkey.url)
    one = claim("5/minute")
    with caplog.at_level(logging.WARNING, logger=limiter.log.name):
        assert await admitted(first, one, tries=9) == 5
        assert await admitted(first, claim("5/minute"), tries=9) == 5
        assert await admitted(second, one, tries=9) == 5
        assert [each.message for each in caplog.records].count(
            "rate limits are counted by this process alone: ConnectionError"
        ) == 2, "once each"
        own_valkey.start()
        await asyncio.sleep(0.3)
        another = claim("5/minute")
        assert await admitted(first, another, tries=3) + await admitted(second, another, tries=9) == 5
        assert "rate limits are counted together again" in caplog.text
    assert own_valkey.password not in caplog.text


async def test_a_caller_who_goes_away_takes_no_answer_from_others(shared_valkey: Valkey) -> None:
    limits, one = Limiter(shared_valkey.url), claim("100/minute")
    tasks = [asyncio.create_task(limits.admit([one])) for _ in range(5)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(done[0], asyncio.CancelledError)
    assert not any(isinstance(each, BaseException) for each in done[1:])


async def test_keys_of_past_windows_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiter, "MAX_LEASES", 10)
    alone = Limiter(None)
    for number in range(100):
        await alone.admit([claim("5/minute", f"key-{number}")])
    assert len(alone._leases) <= 10


def test_limits_are_told_in_the_drafts_own_form() -> None:
    standings = [limiter.Standing("user", 100, 60, 42, 17), limiter.Standing("organization", 9, 3600, 0, 8)]
    assert limiter.headers(standings) == [
        (b"ratelimit-policy", b'"user";q=100;w=60, "organization";q=9;w=3600'),
        (b"ratelimit", b'"user";r=42;t=17, "organization";r=0;t=8'),
    ]
