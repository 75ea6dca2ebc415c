"""`bridge inbox` as an operator uses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from inbox_world import Deployed, failed

from continuitybridge.audit.reading import Filter, search
from continuitybridge.cli import bridge
from continuitybridge.inbox import batches, triage
from continuitybridge.inbox.claim import claim
from continuitybridge.inbox.settle import settle


def call(deployed: Deployed, *arguments: str) -> Result:
    return CliRunner().invoke(bridge, ["inbox", *arguments, "-o", deployed.organization.slug])


@pytest.fixture
def dead_letter(deployed: Deployed) -> str:
    """A message that failed for good."""
    batch, [message_id] = deployed.batch()
    [unit] = claim(batch, "w", 30, 10, keys=deployed.keyring)
    settle(unit, failed(unit), keys=deployed.keyring, plan=deployed.plan)
    batches.finish(batch)
    return message_id


def test_a_dead_letter_is_listed_explained_and_replayed(deployed: Deployed, dead_letter: str) -> None:
    [found] = json.loads(call(deployed, "dead", "--json").output)
    assert (found["message_id"], found["node_id"]) == (dead_letter, "deliver")
    assert dead_letter in call(deployed, "dead").output
    explained = json.loads(call(deployed, "explain", found["failure_id"]).output)
    assert json.loads(explained["input"]["text"]) == {"order": 7, "password": "[scrubbed]"}
    done = call(deployed, "replay", dead_letter)
    assert (done.exit_code, done.output) == (0, f"{dead_letter} runs again on 1.0.0, generation 1\n")
    assert json.loads(call(deployed, "status", dead_letter, "--json").output)["state"] == "accepted"
    again = call(deployed, "replay", dead_letter)
    assert again.exit_code == 1
    assert "is under way" in again.output


def test_a_status_shows_the_nodes_and_the_failures(deployed: Deployed, dead_letter: str) -> None:
    shown = call(deployed, "status", dead_letter)
    assert shown.exit_code == 0
    assert "FAILED AT" in shown.output
    assert dead_letter in shown.output


def test_messages_are_listed_page_by_page(deployed: Deployed) -> None:
    ids = deployed.accept(3)
    first = json.loads(call(deployed, "list", "--limit", "2", "--json").output)
    second = json.loads(call(deployed, "list", "--cursor", first["cursor"], "--json").output)
    assert [m["message_id"] for m in first["messages"] + second["messages"]] == sorted(ids, reverse=True)
    assert second["cursor"] is None
    assert json.loads(call(deployed, "list", "--state", "dead", "--json").output)["messages"] == []


def test_who_reads_what_was_captured_of_a_failure_stands_in_the_trail(
    deployed: Deployed, dead_letter: str
) -> None:
    [letter] = triage.list_dead(deployed.organization_id)
    shown = call(deployed, "explain", str(letter.failure_id))
    assert shown.exit_code == 0
    assert "input" in json.loads(shown.output)
    [told] = search(deployed.organization_id, Filter(action="failure.read"), keys=deployed.keyring)
    assert (told.target, told.environment) == (str(letter.failure_id), letter.environment)
    assert told.details == {"message_id": dead_letter}
    assert told.actor_kind == "command"


def test_a_discarded_dead_letter_is_settled_and_another_message_is_not(
    deployed: Deployed, dead_letter: str
) -> None:
    [under_way] = deployed.accept()
    done = call(deployed, "discard", dead_letter, under_way)
    assert done.exit_code == 1
    assert f"{dead_letter} discarded" in done.output
    assert f"{under_way} is not a dead letter" in done.output


def test_reconciling_names_an_id_that_the_store_does_not_know(
    deployed: Deployed, dead_letter: str, tmp_path: Path
) -> None:
    ledger = tmp_path / "ids.txt"
    ledger.write_text(f"{dead_letter}\n")
    assert call(deployed, "reconcile", "--ids", str(ledger)).exit_code == 0
    ledger.write_text(f"{dead_letter}\nnever-accepted\n")
    done = call(deployed, "reconcile", "--ids", str(ledger))
    assert done.exit_code == 1
    assert "never-accepted: lost" in done.output


def test_another_organizations_message_is_unknown(dead_letter: str, make_deployed: Callable[[], Deployed]) -> None:
    other = make_deployed()
    done = call(other, "status", dead_letter)
    assert done.exit_code == 2
    assert "no message" in done.output
    assert call(other, "replay", dead_letter).exit_code == 1


def test_a_sweep_says_what_it_found() -> None:
    done = CliRunner().invoke(bridge, ["inbox", "sweep", "--json"])
    assert done.exit_code == 0
    assert set(json.loads(done.output)) >= {"leases_expired", "orphans_released"}
