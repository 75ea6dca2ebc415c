"""Ledgers of a sender and a destination against the store: what is lost, invented or doubled has its name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from inbox_world import Deployed, done, failed, make_plan
from waits_world import World

from continuitybridge.cli import bridge
from continuitybridge.engine.message import NodeTrace
from continuitybridge.inbox import batches, holds, ledgers
from continuitybridge.inbox.claim import claim
from continuitybridge.inbox.replay import replay
from continuitybridge.inbox.settle import settle
from continuitybridge.organizations import Organization
from continuitybridge.vault.keyring import Keyring


@pytest.fixture
def deployed(organization: Organization, keyring: Keyring) -> Deployed:
    """A flow that delivers."""
    made = Deployed(organization, keyring, "orders")
    plan = make_plan("orders", "1.1.0")
    delivering = changed(plan.nodes["deliver"], type="http_request")
    made.deploy(changed(plan, nodes={**plan.nodes, "deliver": delivering}))
    return made


def settled(deployed: Deployed, n: int) -> list[str]:
    batch, ids = deployed.batch(n)
    for unit in claim(batch, "w", 30, 100, keys=deployed.keyring):
        outcome = done(unit)
        outcome.trace.append(NodeTrace("deliver", 1, 1, 0, 9))
        settle(unit, outcome, keys=deployed.keyring)
    batches.finish(batch)
    return ids


def dead(deployed: Deployed) -> str:
    batch, [message_id] = deployed.batch()
    [unit] = claim(batch, "w", 30, 100, keys=deployed.keyring)
    settle(unit, failed(unit), keys=deployed.keyring, plan=deployed.plan)
    batches.finish(batch)
    return message_id


def key(message_id: str, generation: int = 1, node: str = "deliver") -> str:
    return f"{message_id}:{node}:{generation}"


def test_books_that_agree_say_so_and_name_what_is_in_triage_and_under_way(deployed: Deployed) -> None:
    one, two, unread = settled(deployed, 3)
    triage = dead(deployed)
    [waiting] = deployed.accept()
    sent = [one, two, triage, waiting]
    came = [key(one), key(one), key(f"{two}.1"), key(f"{two}.2"), key(unread), key(triage)]
    books = ledgers.compare(deployed.organization_id, sent, came)
    assert books.agree
    assert (books.accepted, books.deliveries, books.delivered, books.repeated) == (4, 6, 2, 1)
    assert (books.in_triage, books.under_way, books.unanswered) == ([triage], [waiting], [unread])
    holds.cancel(deployed.organization_id, "prod", deployed.flow, by="anna")
    assert ledgers.compare(deployed.organization_id, sent, came).skipped == [waiting]


def test_what_is_lost_invented_or_came_under_another_key_is_named(deployed: Deployed) -> None:
    fine, undelivered, doubled = settled(deployed, 3)
    sent = [fine, undelivered, doubled, "never-stored"]
    came = [key(fine), key(doubled), key(doubled, 2), key("nobody"), "no key at all"]
    books = ledgers.compare(deployed.organization_id, sent, came)
    assert not books.agree
    assert sorted(books.lost) == sorted([undelivered, "never-stored"])
    assert books.invented == ["no key at all", key("nobody")]
    assert books.rekeyed == [f"{doubled}:deliver:1,2"]
    assert ledgers.compare(deployed.organization_id, [fine, undelivered], None).agree


def test_what_ends_while_the_ledgers_are_compared_is_not_lost(deployed: Deployed) -> None:
    batch, [message_id] = deployed.batch()
    [unit] = claim(batch, "w", 30, 100, keys=deployed.keyring)

    def came() -> Iterator[str]:
        """The destination's ledger as it was read, and what was delivered behind its end."""
        settle(unit, done(unit), keys=deployed.keyring)
        yield from ()

    books = ledgers.compare(deployed.organization_id, [message_id], came())
    assert (books.lost, books.under_way) == ([], [message_id])


def test_a_replay_explains_another_key(deployed: Deployed) -> None:
    [message_id] = settled(deployed, 1)
    came = [key(message_id), key(message_id, 2)]
    assert ledgers.compare(deployed.organization_id, [message_id], came).rekeyed
    replay(deployed.organization_id, [message_id], by="anna", body=b"{}", keys=deployed.keyring)
    assert not ledgers.compare(deployed.organization_id, [message_id], came).rekeyed
    assert ledgers.compare(deployed.organization_id, [message_id], [*came, key(message_id, 3)]).rekeyed


def test_ledgers_are_read_line_by_line_in_several_notations() -> None:
    lines = ["a\n", "\n", '["b", 1.5, 2.5]\n', '{"id": "c"}\n', '{"key": "d:n:1"}\n', '["cut of']
    assert list(ledgers.read(lines)) == ["a", "b", "c", "d:n:1"]


def test_an_operator_reconciles_files(deployed: Deployed, tmp_path: Path) -> None:
    one, two = settled(deployed, 2)
    ids, came = tmp_path / "ids", tmp_path / "came"

    def call(*arguments: str) -> tuple[int, str]:
        where = ["--ids", str(ids), "--deliveries", str(came), "-o", deployed.organization.slug]
        result = CliRunner().invoke(bridge, ["inbox", "reconcile", *where, *arguments])
        return result.exit_code, result.output

    ids.write_text("".join(json.dumps([message_id, 1.0, 2.0]) + "\n" for message_id in (one, two)))
    came.write_text(f"{key(one)}\n{key(two)}\n")
    status, output = call()
    assert status == 0
    assert "of 2 messages of the sender: 2 delivered" in output
    came.write_text(f"{key(one)}\n{key('nobody')}\n")
    status, output = call()
    assert status == 1
    assert f"{two}: lost" in output
    assert f"{key('nobody')}: invented" in output
    assert json.loads(call("--json")[1])["ledger"]["lost"] == [two]


JOIN = "{id: pair, type: join, config: {streams: [a, b], key: .k, stream: .s}}"


def compared(world: World, sent: list[str], *came: str) -> Any:
    return ledgers.compare(world.organization_id, sent, [key(each) for each in came])


def test_what_is_gathered_into_another_message_is_where_that_one_is(
    organization: Organization, keyring: Keyring
) -> None:
    world = World(organization, keyring)
    world.deploy("pairs", JOIN, "{id: deliver, type: jq, config: {program: 'if .bad then error(\"no\") end'}}")
    first, second = (world.accept("pairs", {"k": 1, "s": each}) for each in "ab")
    world.accept("pairs", {"k": 2, "s": "a"}, "bad-a")
    world.accept("pairs", {"k": 2, "s": "b", "bad": True}, "bad-b")
    world.work()
    books = compared(world, [first, second], first)
    assert (books.agree, books.delivered, books.lost, books.undelivered) == (True, 2, [], [])
    # The carrier stands in triage, and with it what it carries.
    books = compared(world, ["bad-b", "bad-a"])
    assert sorted(books.in_triage) == ["bad-a", "bad-b"]
    # What the other one was gathered into is not in this sender's ledger.
    assert compared(world, [second], first).delivered == 1
    assert compared(world, ["bad-b"]).in_triage == ["bad-b"]


def test_a_delivery_of_a_called_flow_is_one_of_its_caller(organization: Organization, keyring: Keyring) -> None:
    world = World(organization, keyring)
    world.deploy("last", "{id: deliver, type: jq, config: {program: .}}")
    world.deploy("check", "{id: further, type: subflow, config: {flow: last}}")
    world.deploy("orders", "{id: each, type: split}", "{id: call, type: subflow, config: {flow: check}}")
    sent = world.accept("orders", [1, 2])
    world.work()
    came = [f"{sent}.{n}.call.further" for n in (1, 2)]
    assert all(world.states(each) == ["done"] for each in came)
    books = compared(world, [sent], *came)
    assert (books.agree, books.delivered, books.unanswered, books.invented) == (True, 1, [], [])
    assert compared(world, [], *came).unanswered == [sent]


def test_what_a_filter_drops_is_named_and_not_lost(organization: Organization, keyring: Keyring) -> None:
    world = World(organization, keyring)
    world.deploy("orders", "{id: some, type: filter, config: {where: .wanted}}")
    dropped = world.accept("orders", {"wanted": False})
    world.work()
    books = compared(world, [dropped])
    assert (books.agree, books.undelivered, books.lost) == (True, [dropped], [])
