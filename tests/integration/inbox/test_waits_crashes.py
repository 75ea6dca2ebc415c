"""kill -9 between every few steps of what completes waits: each goes on once, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from test_crashes import Exchanges, tell_in_a_child
from waits_world import World

from continuitybridge import database
from continuitybridge.inbox import reconcile, waits
from continuitybridge.inbox.claim import Claimed
from continuitybridge.inbox.sweep import sweep
from continuitybridge.organizations import Organization
from continuitybridge.vault.keyring import Keyring

EVERY = 12
"""Steps between two deaths."""


@dataclass
class Story:
    """A join that lacks one, siblings of which one is missing, a call under way, a time that is over, a person who
    decides: everything that may complete at once."""

    world: World
    messages: list[str] = field(default_factory=list)
    units: list[Claimed] = field(default_factory=list)

    def prepare(self) -> None:
        world = self.world
        world.deploy("pair", "{id: pair, type: join, config: {key: .k, stream: .s, streams: [a, b], join: array}}")
        world.deploy("answer", "{id: say, type: jq, config: {program: .n}}")
        world.deploy("call", "{id: ask, type: subflow, config: {flow: answer}}")
        world.deploy("soon", "{id: bulk, type: aggregate, config: {key: .k, timeout_s: 0.01}}")
        world.deploy("ask", "{id: ask, type: approval, next: {approved: end, rejected: end}}")
        apart = "{id: apart, type: jq, config: {program: .}, isolate: true}"
        world.deploy("orders", "{id: each, type: split}", apart, "{id: all, type: aggregate}")
        self.messages = [
            world.accept("pair", {"k": 1, "s": "a"}),
            world.accept("call", {"n": 1}),
            world.accept("soon", {"k": 1}),
            world.accept("ask", {}),
            world.accept("orders", [1, 2]),
        ]
        world.settle(world.claim())
        world.settle([unit for unit in world.claim() if unit.message.id.endswith(".1")])
        self.messages.append(world.accept("pair", {"k": 1, "s": "b"}))
        make_leases_run_out(world)
        self.units = world.claim()
        time.sleep(0.02)

    def complete(self) -> None:
        """The chapter."""
        world = self.world
        assert world.settle(self.units)
        [approval] = waits.list_approvals(world.organization_id, keys=world.keyring)
        waits.decide(world.organization_id, approval.approval_id, "approved", by="ann")
        waits.release_due()
        world.settle(world.claim())

    def finish(self) -> None:
        world = self.world
        deadline = time.monotonic() + 60
        while True:
            make_leases_run_out(world)
            # The server needs a moment to notice that the child is gone and to let go of its rows.
            sweep(created_idle_s=0, started_idle_s=0)
            world.batches = []
            for approval in waits.list_approvals(world.organization_id, keys=world.keyring):
                waits.decide(world.organization_id, approval.approval_id, "approved", by="bob")
            world.work()
            [counts] = reconcile.counts(world.organization_id)
            if counts.done == counts.accepted:
                return
            assert time.monotonic() < deadline, counts

    def check(self) -> None:
        world = self.world
        [counts] = reconcile.counts(world.organization_id)
        assert (counts.accepted, counts.done) == (7, 7)  # with the message that was called
        assert reconcile.violations(world.organization_id) == []
        gathered = [
            entry for each in self.messages for entry in world.status(each).trace if "gathered_at" in entry
        ]
        assert sorted(entry["gathered_at"] for entry in gathered) == ["all", "bulk", "pair", "pair"]
        assert [world.count(table) for table in ("waits", "wait_parts", "hand_overs", "messages")] == [0, 0, 0, 0]


def make_leases_run_out(world: World) -> None:
    with database.relay() as connection:
        for table in ("messages", "hand_overs"):
            connection.execute(
                f"UPDATE bridge.{table} SET lease_until = now() WHERE organization_id = %s AND state = 'claimed'",
                (world.organization_id,),
            )


def test_a_process_killed_while_waits_complete_leaves_them_to_complete_once(
    make_organization: Callable[[], Organization], keyring: Keyring
) -> None:
    def begun() -> Story:
        story = Story(World(make_organization(), keyring))
        story.prepare()
        return story

    exchanges = Exchanges(lambda n: None)
    story = begun()
    with pytest.MonkeyPatch.context() as patch:
        exchanges.install(patch)
        story.complete()
    story.finish()
    story.check()
    assert exchanges.count > 30
    for n in range(1, exchanges.count, EVERY):
        story = begun()

        def die(seen: int, *, n: int = n) -> None:
            if seen == n:
                os.kill(os.getpid(), signal.SIGKILL)

        assert os.WIFSIGNALED(tell_in_a_child(story, "complete", die)), f"the chapter ended before exchange {n}"  # type: ignore[arg-type]
        story.finish()
        story.check()
