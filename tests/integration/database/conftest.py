"""Pools of connections of one test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from continuitybridge.database import aio, connections
from continuitybridge.settings import get_settings


@pytest.fixture
async def fresh() -> AsyncIterator[None]:
    """Pools of this test's own."""
    connections.close_pools()
    yield
    connections.close_pools()
    await aio.close_pools()


@pytest.fixture
def one_connection(monkeypatch: pytest.MonkeyPatch, fresh: None) -> Iterator[None]:
    """A pool has one connection, for which nobody waits long."""
    monkeypatch.setenv("BRIDGE_DATABASE_POOL_SIZE", "1")
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT_S", 0.3)
    monkeypatch.setattr(aio, "CONNECT_TIMEOUT_S", 0.3)
    get_settings.cache_clear()
    yield
    monkeypatch.undo()
    get_settings.cache_clear()
