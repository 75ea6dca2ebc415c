"""How many wait for one key management service, and how long, by a clock that stands still."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from clock import Clock
from continuitybridge.errors import Unavailable, Verdict
from continuitybridge.vault.kms import turns
from continuitybridge.vault.kms.turns import Turns

AFTER = 0.001
"""Just behind a limit."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(turns, "time", clock)
    return clock


def a_call(of: Turns, clock: Clock, took_s: float) -> None:
    with of.one():
        clock.now += took_s


def is_refused(of: Turns) -> bool:
    refused: list[Unavailable] = []
    try:
        with of.one():
            pass
    except Unavailable as error:
        refused.append(error)
    for each in refused:
        assert "transit:house takes long" in str(each)
        assert each.verdict is Verdict.TRANSIENT
        assert each.facts["retry_after_s"] > 0
    return bool(refused)


@pytest.mark.parametrize(
    ("took_s", "patience_s"),
    [
        # As long as a call may take, while nothing is known.
        ((), 8.0),
        # Quick ones tell nothing of one that is a little slower.
        ((0.1,), 1.0),
        # Three times as long as the slowest.
        ((0.5, 2.0, 0.1), 6.0),
        ((5.0,), 8.0),
        # The sixteen last ones count.
        ((2.0, *[0.1] * 15), 6.0),
        ((2.0, *[0.1] * 16), 1.0),
    ],
)
def test_while_a_call_takes_longer_than_calls_took_lately_no_other_begins(
    clock: Clock, took_s: tuple[float, ...], patience_s: float
) -> None:
    of = Turns("transit:house")
    for each in took_s:
        a_call(of, clock, each)
    with of.one():
        clock.now += patience_s - AFTER
        with of.one():
            clock.now += AFTER
            # The oldest of those that are under way counts.
            assert is_refused(of)
    assert not is_refused(of)


def test_what_failed_says_nothing_of_how_long_an_answer_takes(clock: Clock) -> None:
    of = Turns("transit:house")
    with suppress(ValueError), of.one():
        clock.now += 0.1
        raise ValueError("no answer")
    with of.one():
        clock.now += 8.0 - AFTER
        with suppress(ValueError), of.one():
            raise ValueError("no answer either")
        clock.now += AFTER
        assert is_refused(of)


def test_eight_calls_are_under_way_and_who_is_ninth_has_the_next_turn(clock: Clock) -> None:
    of, began = Turns("transit:house"), threading.Event()

    def ninth() -> None:
        with of.one():
            began.set()

    with ThreadPoolExecutor(1) as pool, ExitStack() as others:
        with ExitStack() as first:
            first.enter_context(of.one())
            for _ in range(7):
                others.enter_context(of.one())
            waiting = pool.submit(ninth)
            assert not began.wait(0.1)
        # Woken by the end of one, and long before his patience is over.
        assert began.wait(1)
        waiting.result(1)


def test_who_waits_for_his_turn_goes_when_the_oldest_call_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "AT_ONCE", 1)
    monkeypatch.setattr(turns, "FIRST_PATIENCE_S", 0.1)
    of = Turns("transit:house")
    with ThreadPoolExecutor(1) as pool, of.one():
        assert pool.submit(is_refused, of).result(5)


def test_who_wants_what_another_asks_for_waits_for_that_as_long_as_a_call_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "FIRST_PATIENCE_S", 0.1)
    of, asked, answer = Turns("transit:house"), threading.Event(), threading.Event()

    def slow() -> bytes:
        asked.set()
        assert answer.wait(5)
        return b"the key"

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(of.answer, "it", slow)
        assert asked.wait(5)
        with pytest.raises(Unavailable, match="takes long"):
            pool.submit(of.answer, "it", lambda: b"another").result(5)
        answer.set()
        assert first.result(5) == b"the key"
    # Then it is asked for anew.
    assert of.answer("it", lambda: b"another") == b"another"
