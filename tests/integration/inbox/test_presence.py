"""What a killed stream worker held is taken from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
import pytest
from inbox_world import Deployed, handed_over

from continuitybridge.database.connections import role_url
from continuitybridge.inbox import presence
from continuitybridge.inbox.claim import Claimed, claim
from continuitybridge.inbox.presence import LostLeases, present
from continuitybridge.inbox.settle import settle
from continuitybridge.inbox.status import status
from continuitybridge.inbox.sweep import expire_leases


@contextmanager
def worker() -> Iterator[str]:
    """A stream worker that listens, as far as the database sees; gives its owner's name."""
    owner = f"{presence.PREFIX}{uuid4()}"
    with psycopg.connect(role_url("relay"), application_name=owner):
        yield owner


def held_by(deployed: Deployed, owner: str) -> Claimed:
    [unit] = claim(deployed.batch(1)[0], owner, 60, 1, keys=deployed.keyring)
    return unit


def state(deployed: Deployed, unit: Claimed) -> str:
    return status(deployed.organization_id, unit.message_id).state


def test_a_worker_is_there_as_long_as_it_listens() -> None:
    with worker() as owner:
        assert [each.owner for each in present() if each.owner == owner] == [owner]
    # The server hears of it a moment later.
    gone_by = time.monotonic() + 20
    while owner in [each.owner for each in present()] and time.monotonic() < gone_by:
        time.sleep(0.01)
    assert owner not in [each.owner for each in present()]


def test_what_a_worker_that_is_gone_held_is_there_for_others(
    make_deployed: Callable[[], Deployed], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = LostLeases()
    mine, batch = make_deployed(), make_deployed()
    with worker() as living, worker() as killed:
        kept, message = held_by(mine, living), held_by(make_deployed(), killed)
        other = make_deployed()
        run, _ = other.batch(1)
        [unit] = claim(run, killed, 60, 1, keys=other.keyring)
        settle(unit, handed_over(unit, "deliver"), keys=other.keyring)
        [part] = claim(run, killed, 60, 1, keys=other.keyring)
        task = held_by(batch, "a task of a run")
        assert lost.end() == 0
    with worker() as successor:
        # Not on the first look: it may have lost its connection only.
        kept = held_by(mine, successor)
        assert lost.end() == 0
        monkeypatch.setattr(presence, "ABSENT_S", 0.0)
        assert lost.end() >= 3
        assert lost.end() == 0
        # Of what is over, only so many are taken at once, and other tests may have left some.
        expire_leases()
        assert state(mine, kept) == "claimed"
        assert state(batch, task) == "claimed"
    for unit in (message, part):
        found = status(unit.organization_id, unit.message_id)
        assert found.state in ("accepted", "handed_over")
        assert [failure.code for failure in found.failures] == ["lease-expired"]


def test_nothing_is_taken_while_no_worker_is_to_be_seen(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "ABSENT_S", 0.0)
    unit = held_by(deployed, f"{presence.PREFIX}{uuid4()}")
    lost = LostLeases()
    assert [lost.end(), lost.end()] == [0, 0]
    assert state(deployed, unit) == "claimed"
