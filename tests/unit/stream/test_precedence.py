"""Whose claim waits a moment for whom."""

from __future__ import annotations

import math
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest

from continuitybridge.inbox.neighbours import SHARE
from continuitybridge.stream import precedence
from continuitybridge.stream.precedence import LATELY_S, MOST_BEHIND_S, PASS_S, Precedence

LOUD, QUIET, OTHER = uuid4(), uuid4(), uuid4()
MANY = 10 * SHARE


class Clock:
    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(precedence, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def world(clock: Clock) -> Precedence:
    """The loud one had much a moment ago."""
    made = Precedence()
    run(made, LOUD, MANY)
    return made


def run(precedence: Precedence, organization_id: UUID, units: int) -> None:
    for _ in range(units):
        precedence.began(organization_id)
    for _ in range(units):
        precedence.ended(organization_id)


def stays_behind(precedence: Precedence, organization_id: UUID) -> bool:
    precedence.look()
    return precedence.stays_behind(organization_id)


def test_who_has_much_stays_behind_while_a_unit_of_one_with_little_was_just_begun(
    world: Precedence, clock: Clock
) -> None:
    assert not stays_behind(world, LOUD)
    world.began(QUIET)
    assert stays_behind(world, LOUD)
    assert world.behind_until == clock.now + PASS_S
    assert not stays_behind(world, QUIET)
    assert world.behind_until == math.inf


def test_its_end_lets_the_others_go_on(world: Precedence) -> None:
    world.began(QUIET)
    world.began(QUIET)
    assert stays_behind(world, LOUD)
    assert not world.ended(QUIET)
    assert world.ended(QUIET)
    assert not stays_behind(world, LOUD)


def test_a_unit_that_takes_longer_holds_nobody_up(world: Precedence, clock: Clock) -> None:
    world.began(QUIET)
    clock.now += PASS_S
    world.began(LOUD)
    assert not stays_behind(world, LOUD)


def test_nobody_stays_behind_for_longer_than_so_long_however_many_the_others_are(
    world: Precedence, clock: Clock
) -> None:
    began = clock.now
    while True:
        other = uuid4()
        world.began(other)
        if not stays_behind(world, LOUD):
            break
        assert world.behind_until <= began + MOST_BEHIND_S
        clock.now += PASS_S / 2
    assert clock.now == pytest.approx(began + MOST_BEHIND_S, abs=1e-9)


def test_organizations_with_as_much_as_each_other_do_not_wait(world: Precedence) -> None:
    run(world, OTHER, MANY // 2 - SHARE // 2)
    world.began(OTHER)
    assert not stays_behind(world, LOUD)
    assert not stays_behind(world, OTHER)


def test_who_has_much_under_way_is_let_pass_by_nobody(world: Precedence) -> None:
    for _ in range(SHARE + 1):
        world.began(QUIET)
    assert not stays_behind(world, LOUD)
    world.ended(QUIET)
    assert stays_behind(world, LOUD)


def test_who_had_much_a_while_ago_has_little(world: Precedence, clock: Clock) -> None:
    clock.now += 10 * LATELY_S
    world.began(LOUD)
    world.began(QUIET)
    assert not stays_behind(world, LOUD)
