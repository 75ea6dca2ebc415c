"""Whose messages are in the next commit, and how long a flood stays behind the others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from continuitybridge.inbox import neighbours
from continuitybridge.inbox.accept import waiting
from continuitybridge.inbox.accept.waiting import AFTER_S, MOST_OF_PARTS, PARTS, Waiting
from continuitybridge.inbox.neighbours import LEAST_SHARE, MOST_REST_S, SHARE

LOUD, QUIET = uuid4(), uuid4()
FLOOD = 8 * SHARE
TOOK_S = 0.001


class Queue:
    """A queue of commits at a time of its own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waiting = Waiting()

    def put(self, organization_id: UUID, count: int = 1) -> bool:
        """Whether the last of them is to be written at once."""
        at_once = False
        for _ in range(count):
            row: Any = SimpleNamespace(acceptance=SimpleNamespace(organization_id=organization_id), payload=b"")
            future: Any = SimpleNamespace(cancelled=lambda: False)
            at_once = self.waiting.put(row, future)
        return at_once

    def commit(self) -> tuple[int, int, float]:
        """So many of the loud one's and of the quiet one's messages are written; how long to rest then."""
        group = [row.acceptance.organization_id for row, _ in self.waiting.take(512, 1 << 20)]
        self.now += TOOK_S
        return group.count(LOUD), group.count(QUIET), self.waiting.written(TOOK_S)


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    """In which the quiet one felt the loud one's flood, which had its share of the last commit."""
    for name, value in (("WAIT_S", 0.0), ("FLOORS", 0.0), ("STEP", 1.0), ("FADES_S", 1e9)):
        monkeypatch.setattr(neighbours, name, value)
    made = Queue()
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: made.now))
    made.put(QUIET)
    made.commit()
    made.put(LOUD, FLOOD)
    loud, quiet, rest_s = made.commit()
    assert (loud, quiet) == (LEAST_SHARE, 0)
    assert rest_s > 0
    return made


def test_what_comes_while_a_flood_stays_behind_is_written_by_itself(queue: Queue) -> None:
    assert not queue.put(LOUD)
    assert queue.put(QUIET)
    assert queue.commit()[:2] == (0, 1)


def test_after_it_the_flood_rests_a_moment_more(queue: Queue) -> None:
    queue.now += 0.01
    queue.put(QUIET)
    _, _, rest_s = queue.commit()
    assert rest_s == pytest.approx(AFTER_S)
    queue.now += rest_s
    assert queue.commit()[:2] == (LEAST_SHARE, 0)


def test_others_hold_a_flood_up_for_so_long_at_most_however_many_they_are(queue: Queue) -> None:
    began = queue.now
    while True:
        queue.put(QUIET)
        loud, _, rest_s = queue.commit()
        if loud:
            break
        assert queue.now + rest_s <= began + MOST_REST_S + TOOK_S
    assert loud == LEAST_SHARE
    assert queue.now == pytest.approx(began + MOST_REST_S, abs=3 * TOOK_S)


def test_a_flood_that_nobody_feels_goes_with_the_others(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "SLIGHT", 2.0)
    queue.put(QUIET)
    assert queue.commit() == (FLOOD - LEAST_SHARE, 1, 0.0)


@pytest.mark.parametrize(
    ("waiting_for_it", "share"), [(10 * PARTS, 10), (2 * MOST_OF_PARTS * PARTS, MOST_OF_PARTS)]
)
def test_the_longer_the_queue_of_a_flood_the_more_is_written_at_once(
    queue: Queue, waiting_for_it: int, share: int
) -> None:
    queue.put(LOUD, waiting_for_it - (FLOOD - LEAST_SHARE))
    assert queue.commit()[0] == share
