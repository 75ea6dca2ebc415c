"""How many offences make a block: to the offence, and to the second."""

from __future__ import annotations

import pytest

from clock import Clock
from continuitybridge.errors import BridgeError, HeadTooLarge, NotAllowed, NotFound, TooManyRequests
from continuitybridge.guard import offences
from continuitybridge.guard.known import Known
from continuitybridge.guard.limiter import Standing
from continuitybridge.guard.offences import Offences

SEARCHED = NotFound("no such address", rule="path")
SCANNER = NotAllowed("not served", rule="scanner")
BASE_S = 300.0


@pytest.fixture
def blocks(told: Known, clock: Clock) -> Known:
    return told


def offend(counted: Offences, address: str, *errors: BridgeError) -> None:
    for error in errors:
        counted.note(address, error)


def used_up(*standings: tuple[int, int]) -> TooManyRequests:
    """A refusal by limits of these amounts, of which so much remains."""
    told = [Standing("some", amount, 60, remaining, 30) for amount, remaining in standings]
    return TooManyRequests("used up", retry_after_s=30.0, standings=told)


def test_three_offences_of_an_address_are_a_block_and_what_led_to_it_is_forgotten(
    blocks: Known, clock: Clock
) -> None:
    counted = Offences(BASE_S)
    offend(counted, "a", SEARCHED, SCANNER)
    offend(counted, "b", SEARCHED, SEARCHED)
    assert blocks.blocked_until("a") is None
    offend(counted, "a", SEARCHED)
    assert blocks.blocked_until("a") == clock.now + BASE_S
    assert blocks.blocked_until("b") is None
    clock.now += BASE_S
    assert blocks.blocked_until("a") is None
    offend(counted, "a", SEARCHED, SEARCHED)
    assert blocks.blocked_until("a") is None
    offend(counted, "a", SEARCHED)
    assert blocks.blocked_until("a") == clock.now + BASE_S


@pytest.mark.parametrize(("after_s", "is_blocked"), [(600.0, True), (600.25, False)])
def test_offences_count_together_for_ten_minutes_from_the_first(
    blocks: Known, clock: Clock, after_s: float, is_blocked: bool
) -> None:
    counted = Offences(BASE_S)
    offend(counted, "a", SEARCHED)
    clock.now += 300
    offend(counted, "a", SEARCHED)
    clock.now += after_s - 300
    offend(counted, "a", SEARCHED)
    assert (blocks.blocked_until("a") is not None) is is_blocked
    if not is_blocked:
        offend(counted, "a", SEARCHED)
        assert blocks.blocked_until("a") is None, "that was the second one of a new time"
        offend(counted, "a", SEARCHED)
        assert blocks.blocked_until("a") is not None


@pytest.mark.parametrize(
    ("refusal", "times"),
    [
        (used_up((2, 0)), 20),
        (used_up((7, 0)), 70),
        (used_up((1, 1), (2, 0), (5, 0)), 20),
    ],
)
def test_who_is_refused_ten_times_as_often_as_his_limit_admits_is_blocked(
    blocks: Known, refusal: TooManyRequests, times: int
) -> None:
    counted = Offences(BASE_S)
    offend(counted, "a", *[refusal] * (times - 1))
    assert blocks.blocked_until("a") is None
    offend(counted, "a", refusal)
    assert blocks.blocked_until("a") is not None


def test_what_an_honest_client_may_do_is_no_offence(blocks: Known) -> None:
    counted = Offences(BASE_S)
    for error in (NotAllowed("not served", rule="crawler"), HeadTooLarge("too large", allowed=1)):
        offend(counted, "a", *[error] * 50)
    offend(counted, "a", SEARCHED, SEARCHED)
    assert blocks.blocked_until("a") is None


def test_the_memory_of_offences_has_a_bound(blocks: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offences, "MAX_ADDRESSES", 2)
    counted = Offences(BASE_S)
    offend(counted, "a", SEARCHED, SEARCHED)
    offend(counted, "b", SEARCHED)
    offend(counted, "c", SEARCHED)
    offend(counted, "a", SEARCHED, SEARCHED)
    assert blocks.blocked_until("a") is None, "c came when the memory was full"
    offend(counted, "a", SEARCHED)
    assert blocks.blocked_until("a") is not None
