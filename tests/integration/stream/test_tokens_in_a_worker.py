"""Flows that deliver by a connection with a token."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from stream_world import Flow, Working, wait_until

from continuitybridge import connections, database
from token_server import TokenServer


@pytest.fixture
def provider() -> Iterator[TokenServer]:
    server = TokenServer()
    yield server
    server.close()


def failures(flow: Flow) -> list[str]:
    with database.tenant(flow.id) as connection:
        rows = connection.execute("SELECT code FROM bridge.failures WHERE flow = %s", (flow.name,)).fetchall()
    return [row[0] for row in rows]


def test_messages_are_delivered_by_one_token_and_by_another_once_it_is_refused(
    make_flow: Callable[[], Flow], working: Callable[..., Working], provider: TokenServer
) -> None:
    flow = make_flow()
    provider.lifetime_s = None
    connections.put(flow.id, "prod", "sink", provider.oauth("refresh_token"), "test")
    with working():
        flow.send(*range(20))
        flow.await_done(20)
        assert provider.grants() == ["refresh_token"]
        provider.valid.clear()
        flow.send(*range(20, 40))
        flow.await_done(40)
        assert provider.grants() == ["refresh_token"] * 2
        keys = [call.headers["idempotency-key"] for call in provider.calls if "idempotency-key" in call.headers]
        assert len(set(keys)) == 40
        # Nobody renews it any more: each message fails for good, and says why; the server is asked once.
        provider.refresh_token = None
        provider.used.clear()
        provider.valid.clear()
        with database.tenant(flow.id) as connection:
            connection.execute("UPDATE bridge.tokens SET refused_at = NULL")
        flow.send(*range(40, 45))
        wait_until(lambda: flow.states()["dead"] == 5, what="5 dead")
    assert provider.grants() == ["refresh_token"] * 3
    assert set(failures(flow)) == {"reconnect-needed"}
