"""Ledgers of a sender and a destination against the store: what is lost, invented or doubled has its name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from click.testing import CliRunner
from inbox_world import Deployed, done, failed

from continuitybridge.cli import bridge
from continuitybridge.inbox import batches, holds, ledgers
from continuitybridge.inbox.claim import claim
from continuitybridge.inbox.replay import replay
from continuitybridge.inbox.settle import settle


def settled(deployed: Deployed, n: int) -> list[str]:
    batch, ids = deployed.batch(n)
    for unit in claim(batch, "w", 30, 100, keys=deployed.keyring):
        settle(unit, done(unit), keys=deployed.keyring)
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
