"""How much of a flood one claim takes."""

from __future__ import annotations

import threading
from collections.abc import Callable

from stream_world import Destination, Flow, Working, wait_until

from continuitybridge import database
from continuitybridge.inbox.neighbours import SHARE
from continuitybridge.stream.worker import MOST_AT_ONCE

FLOOD = 60


def claims(flow: Flow) -> list[int]:
    """How many messages each claim took, the first one first."""
    with database.tenant(flow.id) as connection:
        rows = connection.execute(
            "SELECT count(*) FROM bridge.messages WHERE state = 'claimed'"
            " GROUP BY lease_until ORDER BY lease_until"
        ).fetchall()
    return [row[0] for row in rows]


def test_a_flood_beside_others_is_claimed_by_its_share_and_alone_by_what_there_is(
    make_flow: Callable[[], Flow], working: Callable[..., Working], destination: Destination
) -> None:
    loud, quiet, alone = make_flow(), make_flow(), make_flow()
    held = threading.Event()
    destination.answer = lambda delivery: held.wait(30) and 200
    quiet.send(1)
    loud.send(*range(FLOOD))
    with working():
        wait_until(lambda: loud.states()["claimed"] == FLOOD)
        # Nobody knew of the quiet one before it was claimed too.
        first, *following = claims(loud)
        assert first < MOST_AT_ONCE
        assert max(following) <= SHARE
        held.set()
        loud.await_done(FLOOD)
        quiet.await_done(1)
    held.clear()
    alone.send(*range(FLOOD))
    with working():
        wait_until(lambda: alone.states()["claimed"] == FLOOD)
        assert claims(alone)[:2] == [MOST_AT_ONCE] * 2
        held.set()
        alone.await_done(FLOOD)
