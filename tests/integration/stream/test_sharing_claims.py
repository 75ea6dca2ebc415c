"""How much of a flood one claim takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from stream_world import Destination, Flow, Working, wait_until

from continuitybridge import database
from continuitybridge.inbox import neighbours
from continuitybridge.inbox.neighbours import SHARE
from continuitybridge.stream import precedence

FLOOD = 60


@pytest.fixture
def felt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits at all feels the others' floods, fully and for long."""
    for name, value in (("WAIT_S", 0.0), ("FLOORS", 0.0), ("STEP", 1.0), ("FADES_S", 1e9)):
        monkeypatch.setattr(neighbours, name, value)


def claims(flow: Flow) -> list[int]:
    """How many messages each claim took, the first one first."""
    with database.tenant(flow.id) as connection:
        rows = connection.execute(
            "SELECT count(*) FROM bridge.messages WHERE state = 'claimed'"
            " GROUP BY lease_until ORDER BY lease_until"
        ).fetchall()
    return [row[0] for row in rows]


@pytest.mark.usefixtures("felt")
def test_a_flood_that_others_feel_is_claimed_by_its_share(
    make_flow: Callable[[], Flow], working: Callable[..., Working], destination: Destination
) -> None:
    loud, quiet = make_flow(), make_flow()
    held = threading.Event()
    destination.answer = lambda delivery: held.wait(30) and 200
    quiet.send(1)
    loud.send(*range(FLOOD))
    with working():
        wait_until(lambda: loud.states()["claimed"] == FLOOD)
        # Nobody knew of the quiet one before it was claimed too.
        _, *following = claims(loud)
        assert max(following) <= SHARE
        held.set()
        loud.await_done(FLOOD)
        quiet.await_done(1)


def test_a_flood_that_nobody_feels_is_claimed_by_what_there_is(
    make_flow: Callable[[], Flow],
    working: Callable[..., Working],
    destination: Destination,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(neighbours, "WAIT_S", 1e9)
    loud, quiet = make_flow(), make_flow()
    held = threading.Event()
    destination.answer = lambda delivery: held.wait(30) and 200
    quiet.send(1)
    loud.send(*range(FLOOD))
    with working():
        wait_until(lambda: loud.states()["claimed"] == FLOOD)
        assert max(claims(loud)) > 2 * SHARE
        held.set()
        loud.await_done(FLOOD)
        quiet.await_done(1)


def test_who_had_much_stays_behind_while_a_message_of_another_is_run(
    make_flow: Callable[[], Flow],
    working: Callable[..., Working],
    destination: Destination,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("PASS_S", "MOST_BEHIND_S", "LATELY_S"):
        monkeypatch.setattr(precedence, name, 60.0)
    loud, quiet = make_flow(), make_flow()
    held = threading.Event()
    with working():
        loud.send(*range(FLOOD))
        loud.await_done(FLOOD)
        destination.answer = lambda delivery: held.wait(30) and 200
        quiet.send(1)
        wait_until(lambda: quiet.states()["claimed"] == 1)
        loud.send(FLOOD)
        time.sleep(0.2)
        assert loud.states()["accepted"] == 1
        held.set()
        loud.await_done(FLOOD + 1)
        quiet.await_done(1)
