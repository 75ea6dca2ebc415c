"""How long a flood rests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from continuitybridge.inbox.neighbours import rest_s
from continuitybridge.settings import get_settings


@pytest.fixture
def factor(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[float]:
    monkeypatch.setenv("BRIDGE_FLOOD_REST", str(request.param))
    get_settings.cache_clear()
    yield request.param
    get_settings.cache_clear()


@pytest.mark.parametrize("factor", [0, 1.5, 4], indirect=True)
def test_a_flood_rests_so_many_times_as_long_as_it_took_and_not_longer_than_20_ms(factor: float) -> None:
    assert rest_s(0.002) == pytest.approx(0.002 * factor)
    assert rest_s(10.0) == (0.02 if factor else 0)
