"""How far a flood is held back for its neighbours' sake."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from continuitybridge.inbox.neighbours import (
    FADES_S,
    FLOODED_S,
    LEAST_SHARE,
    MOST_SHARE,
    NEIGHBOUR_S,
    SELDOM_S,
    WAIT_S,
    Sparing,
)
from continuitybridge.settings import get_settings

LOUD, QUIET, OTHER = uuid4(), uuid4(), uuid4()
LONG, SHORT = 2 * WAIT_S, WAIT_S / 2


@pytest.fixture
def sparing() -> Sparing:
    made = Sparing()
    made.took(0.001)
    return made


def test_nothing_holds_a_flood_back_that_nobody_feels(sparing: Sparing) -> None:
    sparing.waited(QUIET, SHORT, 100.0)
    assert sparing.share(LOUD, 100.0) is None
    assert sparing.rest_s(1.0, 100.0) == 0


def test_the_more_it_is_felt_the_smaller_its_share_down_to_what_is_no_flood(sparing: Sparing) -> None:
    shares = []
    for _ in range(3):
        sparing.waited(QUIET, LONG, 100.0)
        shares.append(sparing.share(LOUD, 100.0))
    assert shares == [round((LEAST_SHARE * MOST_SHARE) ** 0.5), LEAST_SHARE, LEAST_SHARE]


def test_one_that_sends_seldom_adds_less(sparing: Sparing) -> None:
    sparing.waited(QUIET, SHORT, 100.0)
    sparing.waited(QUIET, LONG, 101.0)
    share = sparing.share(LOUD, 101.0)
    assert share is None
    for n in range(6):
        sparing.waited(QUIET, LONG, 101.0 + n * SELDOM_S)
    assert sparing.share(LOUD, 101.0 + 5 * SELDOM_S) == LEAST_SHARE


def test_what_was_felt_fades(sparing: Sparing) -> None:
    for _ in range(4):
        sparing.waited(QUIET, LONG, 100.0)
    sparing.waited(QUIET, SHORT, 100.0 + FADES_S)
    share = sparing.share(LOUD, 100.0 + FADES_S)
    assert share is not None
    assert LEAST_SHARE < share < MOST_SHARE
    later = 100.0 + 4 * FADES_S
    sparing.waited(QUIET, SHORT, later)
    assert sparing.share(LOUD, later) is None


def test_who_floods_or_was_not_seen_for_long_is_no_neighbour(sparing: Sparing) -> None:
    sparing.waited(QUIET, LONG, 100.0)
    sparing.waited(OTHER, LONG, 100.0)
    assert sparing.share(QUIET, 100.0) is not None
    sparing.floods(OTHER, 100.0)
    assert sparing.share(QUIET, 100.0) is None
    assert sparing.share(LOUD, 100.0) is not None
    sparing.waited(QUIET, LONG, 100.0)
    assert sparing.share(LOUD, 100.0 + NEIGHBOUR_S) is None


def test_what_is_left_of_a_flood_feels_nobody_s(sparing: Sparing) -> None:
    sparing.waited(QUIET, SHORT, 100.0)
    sparing.floods(LOUD, 100.0)
    sparing.waited(LOUD, LONG, 100.0 + FLOODED_S / 2)
    assert sparing.share(LOUD, 100.0 + FLOODED_S / 2) is None
    sparing.waited(LOUD, LONG, 100.0 + FLOODED_S)
    assert sparing.share(LOUD, 100.0 + FLOODED_S) is not None


def test_where_every_transaction_takes_long_that_is_not_the_flood_s_doing() -> None:
    sparing = Sparing()
    sparing.took(0.05)
    sparing.waited(QUIET, 0.14, 100.0)
    assert sparing.share(LOUD, 100.0) is None
    sparing.waited(QUIET, 0.2, 100.0)
    assert sparing.share(LOUD, 100.0) is not None


@pytest.fixture
def factor(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[float]:
    monkeypatch.setenv("BRIDGE_FLOOD_REST", str(request.param))
    get_settings.cache_clear()
    yield request.param
    get_settings.cache_clear()


@pytest.mark.parametrize("factor", [0, 1.5, 4], indirect=True)
def test_a_flood_that_is_felt_rests_so_many_times_as_long_as_it_took_and_not_longer_than_20_ms(
    factor: float, sparing: Sparing
) -> None:
    for _ in range(2):
        sparing.waited(QUIET, LONG, 100.0)
    assert sparing.rest_s(0.002, 100.0) == pytest.approx(0.002 * factor)
    assert sparing.rest_s(10.0, 100.0) == (0.02 if factor else 0)
