"""kill -9 between every two steps: nothing accepted is lost, nothing is settled twice.

A step is one exchange with the database (a statement, a BEGIN, a COMMIT) with what a process does before the
next. A forked child lives through a chapter of a story that uses every verb, and kills itself after exchange
number N, for every N that leaves something else behind: after every BEGIN and every COMMIT; and within a
transaction, which is undone wherever it ends, after each different statement once. The parent, which knows only
what was acknowledged, sends again what was not and lets others finish.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from inbox_world import Deployed, done, failed, handed_over

from continuitybridge import database
from continuitybridge.database.embedded import EmbeddedPostgres
from continuitybridge.errors import StaleLease, Unavailable, Verdict
from continuitybridge.inbox import batches, reconcile, triage
from continuitybridge.inbox.accept import accept
from continuitybridge.inbox.accept.aio import GroupCommit
from continuitybridge.inbox.claim import Claimed, claim, fence, renew
from continuitybridge.inbox.replay import replay
from continuitybridge.inbox.retry import RetryPolicy
from continuitybridge.inbox.settle import settle, settle_many
from continuitybridge.inbox.sweep import sweep

AT_ONCE = RetryPolicy(max_attempts=1_000, base_s=0.0, max_s=0.0)
KEYS = ("plain", "stages", "fan-out", "transient", "terminal")


@dataclass
class Ledger:
    """Files outside the database, as sender and destination keep them."""

    path: Path

    def write(self, kind: str, *words: str) -> None:
        # One short append is one write: what a killed process wrote stands whole or not at all.
        with (self.path / kind).open("a") as file:
            file.write(" ".join(words) + "\n")

    def read(self, kind: str) -> list[list[str]]:
        with contextlib.suppress(FileNotFoundError):
            return [line.split() for line in (self.path / kind).read_text().splitlines()]
        return []


class Story:
    """What happens to one message of each kind, told in verbs."""

    def __init__(self, deployed: Deployed, ledger: Ledger) -> None:
        self.deployed = deployed
        self.ledger = ledger

    def accept(self) -> None:
        """A chapter: a message comes in."""
        self.send(KEYS[0])

    def first_pass(self) -> None:
        """A chapter: a batch is dispatched, claimed, renewed, delivered and settled, stage by stage."""
        batch = self.deployed.dispatch()
        fence(batch, "first", "parse")
        units = claim(batch, "first", 0.001, 3, "parse", keys=self.deployed.keyring)
        units = renew(units, 60) + claim(batch, "first", 60, 10, "parse", keys=self.deployed.keyring)
        self.work(units)
        while units := claim(batch, "first", 60, 10, keys=self.deployed.keyring):
            self.work(units)
        batches.finish(batch)

    def aftermath(self) -> None:
        """A chapter: what failed is dispatched again, what died is replayed."""
        batch = self.deployed.dispatch()
        self.work(claim(batch, "second", 60, 10, keys=self.deployed.keyring))
        batches.finish(batch)
        dead = [letter.message_id for letter in triage.list_dead(self.deployed.organization_id)]
        self.ledger.write("repaired", "yes")
        replay(self.deployed.organization_id, dead, by="test", start="failure")
        batch = self.deployed.dispatch()
        units = claim(batch, "third", 0, 10, keys=self.deployed.keyring)
        sweep()
        self.work(units)

    def send(self, key: str) -> None:
        accepted = accept(self.deployed.acceptance(key.encode(), idempotency_key=key), self.deployed.keyring)
        self.ledger.write("acknowledged", key, accepted.message_id)

    def work(self, units: list[Claimed]) -> None:
        """Deliver and settle; half of it one by one, half of it in bulk."""
        results = [(unit, self.outcome(unit)) for unit in units]
        for unit, outcome in results[::2]:
            with contextlib.suppress(StaleLease):
                settle(unit, outcome, keys=self.deployed.keyring, plan=self.deployed.plan, policy=AT_ONCE)
        settle_many(results[1::2], keys=self.deployed.keyring, plan=self.deployed.plan, policy=AT_ONCE)

    def outcome(self, unit: Claimed) -> Any:
        if unit.hand_over_id is None:
            kind = unit.message.body.decode()
            if kind == "stages":
                return handed_over(unit, "deliver")
            if kind == "fan-out":
                children = [f"{unit.message_id}.1", f"{unit.message_id}.2"]
                return handed_over(unit, "deliver", children=children)
            if kind == "transient":
                return failed(unit, verdict=Verdict.TRANSIENT)
            if kind == "terminal" and not self.ledger.read("repaired"):
                return failed(unit)
        self.ledger.write("delivered", unit.message_id, unit.message.id, str(unit.message.generation))
        return done(unit)

    def finish(self) -> None:
        """What is left, whoever left it: sweep, dispatch, claim, settle, and replay what died."""
        for key in set(KEYS) - {key for key, _ in self.ledger.read("acknowledged")}:
            self.send(key)
        make_leases_run_out(self.deployed)
        deadline = time.monotonic() + 60
        while True:
            # More than once: the server needs a moment to notice that the child is gone and to let go of its rows.
            sweep(created_idle_s=0, started_idle_s=0)
            with contextlib.suppress(ValueError):
                batch = self.deployed.dispatch()
                while units := claim(batch, "other", 60, 2, keys=self.deployed.keyring):
                    self.work(units)
                batches.finish(batch)
                continue
            dead = [letter.message_id for letter in triage.list_dead(self.deployed.organization_id)]
            if dead:
                self.ledger.write("repaired", "yes")
                replay(self.deployed.organization_id, dead, by="test", start="failure")
                continue
            [counts] = reconcile.counts(self.deployed.organization_id)
            if not counts.unsettled:
                return
            assert time.monotonic() < deadline, counts

    def check(self) -> None:
        """Sender's and destination's ledgers against the store."""
        [counts] = reconcile.counts(self.deployed.organization_id)
        assert (counts.accepted, counts.done) == (len(KEYS), len(KEYS))
        assert reconcile.violations(self.deployed.organization_id) == []
        acknowledged = {line[0]: line[1] for line in self.ledger.read("acknowledged")}
        assert set(acknowledged) == set(KEYS)
        ledger = reconcile.check(self.deployed.organization_id, acknowledged.values())
        assert sorted(ledger.done) == sorted(acknowledged.values())
        delivered = Counter((line[0], line[1]) for line in self.ledger.read("delivered"))
        expected = {(message_id, message_id) for key, message_id in acknowledged.items() if key != "fan-out"}
        fanned = acknowledged["fan-out"]
        expected |= {(fanned, f"{fanned}.1"), (fanned, f"{fanned}.2")}
        assert set(delivered) == expected
        assert {line[2] for line in self.ledger.read("delivered")} == {"1"}


def make_leases_run_out(deployed: Deployed) -> None:
    """The dead child's leases would hold for a minute."""
    with database.relay() as connection:
        for table in ("messages", "hand_overs"):
            connection.execute(
                f"UPDATE bridge.{table} SET lease_until = now() WHERE organization_id = %s AND state = 'claimed'",
                (deployed.organization_id,),
            )


COUNTED = ("_enter_gen", "_execute_gen", "_executemany_gen_pipeline", "_executemany_gen_no_pipeline", "_exit_gen")


class Exchanges:
    """Counts the exchanges of transactions with the database and calls `after` after each. `points` are the
    numbers of those that leave something else behind than any other does."""

    def __init__(self, after: Callable[[int], None]) -> None:
        self.count = 0
        self.after = after
        self.points: list[int] = []
        self._statements: set[Any] = set()

    def _note(self, exchange: Any) -> None:
        statement = exchange.gi_frame.f_locals.get("query")
        if statement is None or statement not in self._statements:
            self.points.append(self.count)
        self._statements.add(statement)
        self.count += 1

    def install(self, patch: pytest.MonkeyPatch) -> None:
        real = psycopg.Connection.wait

        def wait(connection: Any, exchange: Any, *args: Any, **options: Any) -> Any:
            # What the pool asks and says for itself changes nothing.
            if connection.autocommit or exchange.gi_code.co_name not in COUNTED:
                return real(connection, exchange, *args, **options)
            n = self.count
            self._note(exchange)
            result = real(connection, exchange, *args, **options)
            self.after(n)
            return result

        patch.setattr(psycopg.Connection, "wait", wait)


CHAPTERS = ("accept", "first_pass", "aftermath")
PARTS = 2


def open_book(deployed: Deployed, directory: Path, chapter: str) -> Story:
    """A story of which the chapters before this one were told in peace."""
    directory.mkdir()
    story = Story(deployed, Ledger(directory))
    for key in KEYS if chapter != "accept" else KEYS[1:]:
        story.send(key)
    if chapter == "aftermath":
        story.first_pass()
    return story


def tell_in_a_child(story: Story, chapter: str, after: Callable[[int], None]) -> int:
    """Tell the chapter in a forked child; returns its wait status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    status = 1
    try:
        Exchanges(after).install(pytest.MonkeyPatch())
        getattr(story, chapter)()
        status = 0
    finally:
        os._exit(status)


def tell_in_peace(story: Story, chapter: str) -> list[int]:
    """Tell the chapter and the end; returns the points of the chapter at which to kill."""
    exchanges = Exchanges(lambda n: None)
    with pytest.MonkeyPatch.context() as patch:
        exchanges.install(patch)
        getattr(story, chapter)()
    story.finish()
    story.check()
    return exchanges.points


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_process_killed_between_any_two_steps_loses_nothing_and_settles_nothing_twice(
    make_deployed: Callable[[], Deployed], tmp_path: Path, chapter: str, part: int
) -> None:
    points = tell_in_peace(open_book(make_deployed(), tmp_path / "peace", chapter), chapter)
    assert len(points) >= 4
    for n in points[part::PARTS]:
        story = open_book(make_deployed(), tmp_path / str(n), chapter)

        def die(seen: int, *, n: int = n) -> None:
            if seen == n:
                os.kill(os.getpid(), signal.SIGKILL)

        status = tell_in_a_child(story, chapter, die)
        assert os.WIFSIGNALED(status), f"the chapter ended before exchange {n}"
        story.finish()
        story.check()


# -- kill -9 of PostgreSQL ----------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_server_killed_around_the_commit_leaves_one_message_once_it_is_sent_again(
    deployed: Deployed, postgres: EmbeddedPostgres, when: str
) -> None:
    def send() -> Any:
        return accept(deployed.acceptance(idempotency_key="k"), deployed.keyring)

    accept(deployed.acceptance(idempotency_key="first"), deployed.keyring)
    real = psycopg.Connection.wait

    def wait(connection: Any, exchange: Any, *args: Any, **options: Any) -> Any:
        # Threads that other tests left behind have transactions of their own.
        mine = threading.current_thread() is threading.main_thread()
        commits = mine and exchange.gi_code.co_qualname == "BaseTransaction._exit_gen"
        if commits and when == "before":
            postgres.kill()
        result = real(connection, exchange, *args, **options)
        if commits and when == "after":
            postgres.kill()
            raise psycopg.OperationalError("the reply was lost")
        return result

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(psycopg.Connection, "wait", wait)
            with pytest.raises(Unavailable):
                send()
    finally:
        postgres.start(die_with_parent=True)
    again = send()
    assert again.duplicate is (when == "after")
    assert send().message_id == again.message_id
    [counts] = reconcile.counts(deployed.organization_id)
    assert counts.accepted == 2


async def test_group_commit_loses_nothing_it_acknowledged_when_the_server_is_killed(
    deployed: Deployed, postgres: EmbeddedPostgres
) -> None:
    acknowledged: dict[str, str] = {}
    refused = 0

    async def sender(door: GroupCommit, name: str) -> None:
        nonlocal refused
        for n in range(60):
            key = f"{name}-{n}"
            while key not in acknowledged:
                try:
                    accepted = await door.submit(deployed.acceptance(key.encode(), idempotency_key=key))
                    acknowledged[key] = accepted.message_id
                except Unavailable:
                    refused += 1
                    await asyncio.sleep(0.05)

    async with GroupCommit(deployed.keyring) as door:
        await door.submit(deployed.acceptance(b"warm", idempotency_key="warm"))
        senders = [asyncio.create_task(sender(door, f"s{n}")) for n in range(20)]
        for threshold in (100, 500, 900):
            while len(acknowledged) < threshold:  # noqa: ASYNC110  (any moment will do)
                await asyncio.sleep(random.uniform(0, 0.01))
            postgres.kill()
            await asyncio.sleep(0.2)
            # In this thread, whose end is the server's.
            postgres.start(die_with_parent=True)
        await asyncio.gather(*senders)
    assert refused
    assert len(set(acknowledged.values())) == len(acknowledged) == 1200
    ledger = reconcile.check(deployed.organization_id, acknowledged.values())
    assert (len(ledger.unsettled), ledger.missing) == (1200, [])
    [counts] = reconcile.counts(deployed.organization_id)
    assert counts.accepted == 1201


async def test_a_door_that_stayed_open_takes_the_first_message_after_a_restart(
    deployed: Deployed, postgres: EmbeddedPostgres
) -> None:
    async with GroupCommit(deployed.keyring) as door:
        await door.submit(deployed.acceptance(b"before"))
        postgres.kill()
        postgres.start(die_with_parent=True)
        await door.submit(deployed.acceptance(b"after"))
    [counts] = reconcile.counts(deployed.organization_id)
    assert counts.accepted == 2
