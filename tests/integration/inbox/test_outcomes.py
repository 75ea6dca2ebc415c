"""Counting what became of each flow's messages, and knowing who holds which."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from inbox_world import Deployed, done, failed

from continuitybridge import database
from continuitybridge.inbox.claim import claim
from continuitybridge.inbox.leases import leased_to
from continuitybridge.inbox.outcomes import Outcomes, count, counted_until
from continuitybridge.inbox.settle import settle, skip

LATER = timedelta(hours=1)


def key(deployed: Deployed) -> tuple[object, str, str]:
    return deployed.organization_id, deployed.environment, deployed.flow


def test_outcomes_are_counted_per_flow_within_the_time_asked_for(make_deployed: Callable[[], Deployed]) -> None:
    busy, quiet = make_deployed(), make_deployed()
    began = datetime.now(UTC) - timedelta(seconds=5)
    batch, _ = busy.batch(4)
    units = claim(batch, "w", 30, 3, "parse", keys=busy.keyring)
    settle(units[0], done(units[0]), keys=busy.keyring)
    settle(units[1], done(units[1]), keys=busy.keyring)
    settle(units[2], failed(units[2]), keys=busy.keyring)
    skip(batch, by="test")
    flows = {key(busy): began, key(quiet): began}
    assert count(flows, began + LATER) == {key(busy): Outcomes(done=2, skipped=1, dead=1)}
    assert count({key(busy): began - LATER}, began) == {}
    assert count({key(busy): began + LATER}, began + 2 * LATER) == {}


def test_each_flow_is_counted_from_its_own_time_on(make_deployed: Callable[[], Deployed]) -> None:
    first, second = make_deployed(), make_deployed()
    for deployed in (first, second):
        [unit] = claim(deployed.batch(1)[0], "w", 30, 1, "parse", keys=deployed.keyring)
        settle(unit, failed(unit), keys=deployed.keyring)
    now = datetime.now(UTC)
    found = count({key(first): now - LATER, key(second): now + LATER}, now + LATER)
    assert found == {key(first): Outcomes(done=0, skipped=0, dead=1)}


def test_what_a_transaction_has_not_committed_yet_is_counted_after_it_has(deployed: Deployed) -> None:
    with database.relay() as settling:
        [(began,)] = settling.execute("SELECT now()")
        assert counted_until() <= began
    assert counted_until() < datetime.now(UTC)


def test_an_owner_holds_what_is_leased_to_it_and_no_longer(make_deployed: Callable[[], Deployed]) -> None:
    mine, theirs = make_deployed(), make_deployed()
    held = claim(mine.batch(1)[0], "stream/1@", 30, 1, keys=mine.keyring)
    claim(theirs.batch(1)[0], "stream/2@", 30, 1, keys=theirs.keyring)
    claim(theirs.batch(1)[0], "stream/3@", 0, 1, keys=theirs.keyring)
    assert leased_to("stream/1@") == {(mine.organization_id, "prod")}
    assert leased_to("stream/1@", theirs.organization_id) == set()
    assert leased_to("stream/3@") == set()
    settle(held[0], done(held[0]), keys=mine.keyring)
    assert leased_to("stream/1@") == set()
