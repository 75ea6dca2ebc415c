"""Pages of messages: whatever is asked for, what comes is what a plain reading of all messages gives."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from inbox_world import Deployed, done, failed

from continuitybridge.inbox import batches, holds, triage
from continuitybridge.inbox.claim import claim
from continuitybridge.inbox.listing import ListedMessage, list_messages
from continuitybridge.inbox.replay import replay
from continuitybridge.inbox.settle import settle


def run(deployed: Deployed, outcome: Callable[..., Any]) -> list[str]:
    batch = deployed.dispatch()
    units = claim(batch, "w", 30, 100, keys=deployed.keyring)
    for unit in units:
        settle(unit, outcome(unit), keys=deployed.keyring, plan=deployed.plan)
    batches.finish(batch)
    return [unit.message_id for unit in units]


def pages(deployed: Deployed, limit: int = 3, **asked: Any) -> list[ListedMessage]:
    """All pages, one after the other."""
    found: list[ListedMessage] = []
    cursor = None
    while True:
        page = list_messages(deployed.organization_id, cursor=cursor, limit=limit, **asked)
        found += page.messages
        cursor = page.cursor
        if cursor is None:
            return found


def test_every_question_finds_what_is_there_once_and_in_order(
    deployed: Deployed, make_deployed: Callable[[], Deployed]
) -> None:
    theirs = make_deployed()
    theirs.accept(2, keys={"po": "A"})
    run(theirs, done)
    settled = deployed.accept(4, keys={"po": "A", "n": 1})
    run(deployed, done)
    replay(deployed.organization_id, settled[:2], by="anna")
    run(deployed, done)
    replay(deployed.organization_id, settled[3:], by="anna")
    moment = datetime.now(UTC)
    named = deployed.accept(1, message_id="run of monday", keys={"po": "4711"})
    run(deployed, lambda unit: done(unit) if unit.message_id in named else failed(unit))
    dead = deployed.accept(2, keys={"po": "A"}, source="api")
    run(deployed, failed)
    discarded = deployed.accept(1, source="api")
    run(deployed, failed)
    triage.discard(deployed.organization_id, discarded, by="anna")
    skipped = deployed.accept(1, keys={"po": 4711})
    holds.cancel(deployed.organization_id, "prod", deployed.flow, by="anna")
    waiting = deployed.accept(2, keys={"po": "A"})

    everything = pages(deployed)
    ids = [each.message_id for each in everything]
    assert ids == sorted({*settled, *named, *dead, *discarded, *skipped, *waiting}, reverse=True)
    states = {each.message_id: each.state for each in everything}
    assert [states[each] for each in (*settled, *named)] == ["done", "done", "done", "dead", "done"]
    assert [states[each] for each in (*dead, *discarded, *skipped, *waiting)] == [
        "dead", "dead", "discarded", "skipped", "accepted", "accepted",
    ]  # fmt: skip

    def expected(test: Callable[[ListedMessage], bool]) -> list[str]:
        return [each.message_id for each in everything if test(each)]

    def asked(**given: Any) -> list[str]:
        return [each.message_id for each in pages(deployed, **given)]

    here = {"flow": deployed.flow}
    day = timedelta(days=1)
    for given, test in (
        ({"environment": "prod"}, lambda m: True),
        ({"environment": "test"}, lambda m: False),
        (here, lambda m: True),
        ({**here, "environment": "prod"}, lambda m: True),
        ({"flow": "another"}, lambda m: False),
        ({"source": "api"}, lambda m: m.source == "api"),
        ({**here, "source": "api", "state": "discarded"}, lambda m: m.state == "discarded"),
        ({"since": moment}, lambda m: m.accepted_at >= moment),
        ({"until": moment}, lambda m: m.accepted_at < moment),
        ({**here, "until": moment}, lambda m: m.accepted_at < moment),
        ({"since": moment, "until": moment + day, **here}, lambda m: m.accepted_at >= moment),
        ({"until": moment - day}, lambda m: False),
        ({"since": moment + day}, lambda m: False),
        ({"keys": {"po": "A"}}, lambda m: m.keys.get("po") == "A"),
        ({"keys": {"po": "A", "n": "1"}}, lambda m: m.keys.get("n") == 1),
        ({"keys": {"po": "4711"}}, lambda m: m.keys.get("po") in ("4711", 4711)),
        ({"keys": {"po": "A"}, "state": "done", **here}, lambda m: m.keys.get("po") == "A" and m.state == "done"),
        ({"keys": {"po": "A"}, "until": moment}, lambda m: m.keys.get("po") == "A" and m.accepted_at < moment),
        *(({"state": state}, lambda m, state=state: m.state == state) for state in {*states.values(), "waiting"}),
    ):
        assert asked(**given) == expected(test), given
