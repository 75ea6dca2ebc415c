"""Messages are found by the search keys that were read on their way, whatever became of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner
from inbox_world import Deployed, done, failed, handed_over

from continuitybridge.cli import bridge
from continuitybridge.engine.message import Outcome
from continuitybridge.errors import Verdict
from continuitybridge.inbox.claim import Claimed, claim
from continuitybridge.inbox.settle import settle


def found(deployed: Deployed, *keys: str) -> list[str]:
    arguments = [part for key in keys for part in ("--key", key)]
    result = CliRunner().invoke(bridge, ["inbox", "list", "-o", deployed.organization.slug, "--json", *arguments])
    assert result.exit_code == 0, result.output
    return [message["message_id"] for message in json.loads(result.output)["messages"]]


def settle_one(
    deployed: Deployed, outcome: Callable[[Claimed], Outcome], keys: dict[str, Any], **accepted: Any
) -> str:
    batch, [message_id] = deployed.batch(**accepted)
    [unit] = claim(batch, "w", 30, 1, keys=deployed.keyring)
    became = replace(outcome(unit), keys=keys)
    settle(unit, became, keys=deployed.keyring, plan=deployed.plan)
    return message_id


@pytest.mark.parametrize(
    "outcome",
    [
        done,
        failed,
        lambda unit: failed(unit, verdict=Verdict.TRANSIENT),
        lambda unit: failed(unit, known=False),
        lambda unit: handed_over(unit, "deliver"),
    ],
    ids=["done", "dead", "retry", "dead as a whole", "handed over"],
)
def test_a_message_is_found_by_its_keys(deployed: Deployed, outcome: Callable[[Claimed], Outcome]) -> None:
    message_id = settle_one(deployed, outcome, {"po_number": 4711, "buyer": "Z\u00fcrich\x00\ud800"})
    settle_one(deployed, done, {"po_number": 4712})
    assert found(deployed, "po_number=4711") == [message_id]
    assert found(deployed, "po_number=4711", "po_number=4711") == [message_id]
    assert found(deployed, "po_number=4713") == []
    assert found(deployed, "po_number=4711", "other=1") == []


def test_what_a_later_stage_finds_is_added_and_what_was_known_stays(deployed: Deployed) -> None:
    batch, [message_id] = deployed.batch(keys={"given": "at the door"})
    [unit] = claim(batch, "w", 30, 1, keys=deployed.keyring)
    children = [f"{message_id}.1", f"{message_id}.2"]
    first = replace(handed_over(unit, "deliver", children=children), keys={"given": "later", "number": "N-1"})
    settle(unit, first, keys=deployed.keyring, plan=deployed.plan)
    for n, part in enumerate(claim(batch, "w", 30, 2, keys=deployed.keyring)):
        settle(
            part, replace(done(part), keys={"number": "N-2", "sku": n}), keys=deployed.keyring, plan=deployed.plan
        )
    assert found(deployed, "given=at the door", "number=N-1", "sku=0") == [message_id]
    assert found(deployed, "number=N-2") == found(deployed, "sku=1") == []
