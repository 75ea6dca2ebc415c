"""Large payloads stand in the payload store: encrypted, bound to their place, gone with their message."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from inbox_world import Deployed, done, handed_over
from waits_world import World

from continuitybridge import database
from continuitybridge.engine.message import Message, Outcome, Output
from continuitybridge.errors import ConfigurationError, Unavailable
from continuitybridge.inbox import batches, objects, offload, reconcile, retention, triage
from continuitybridge.inbox.accept import accept
from continuitybridge.inbox.accept.aio import GroupCommit
from continuitybridge.inbox.claim import Claimed, claim
from continuitybridge.inbox.replay import replay
from continuitybridge.inbox.settle import settle, settle_many
from continuitybridge.inbox.status import status
from continuitybridge.settings import get_settings

LARGE = b'{"secret": "' + b"x" * 5_000 + b'"}'


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deployed: Deployed) -> Iterator[Path]:
    """The payload store of this test; what is above 1,000 bytes goes there."""
    monkeypatch.setenv("BRIDGE_PAYLOAD_OFFLOAD_BYTES", "1000")
    monkeypatch.setenv("BRIDGE_PAYLOAD_STORE_URL", f"file://{tmp_path / 'store'}")
    get_settings.cache_clear()
    yield tmp_path / "store"
    monkeypatch.undo()
    get_settings.cache_clear()
    assert reconcile.violations(deployed.organization_id) == []


def stored(store: Path, deployed: Deployed) -> list[Path]:
    return sorted(path for path in (store / str(deployed.organization_id)).rglob("*") if path.is_file())


def accepted(deployed: Deployed, body: bytes = LARGE) -> str:
    return accept(deployed.acceptance(body), deployed.keyring).message_id


def claimed(deployed: Deployed) -> list[Claimed]:
    return claim(deployed.dispatch(), "w", 30, 10, keys=deployed.keyring)


def pass_time(seconds: float) -> None:
    with psycopg.connect(database.owner_url()) as connection:
        connection.execute("ALTER TABLE bridge.payload_objects NO FORCE ROW LEVEL SECURITY")
        connection.execute(
            "UPDATE bridge.payload_objects SET created_at = created_at - make_interval(secs => %s),"
            " due_at = due_at - make_interval(secs => %s)",
            (seconds, seconds),
        )
        connection.execute("ALTER TABLE bridge.payload_objects FORCE ROW LEVEL SECURITY")


def test_a_large_body_is_stored_encrypted_under_its_organization_and_a_small_one_is_not(
    store: Path, deployed: Deployed
) -> None:
    accepted(deployed, b'{"n": 1}')
    assert stored(store, deployed) == []
    message_id = accepted(deployed)
    [path] = stored(store, deployed)
    assert b"xxxxxxxx" not in path.read_bytes()
    assert path.stat().st_mode & 0o077 == 0
    with database.tenant(deployed.organization_id) as connection:
        [(size,)] = connection.execute(
            "SELECT length(payload) FROM bridge.messages WHERE message_id = %s", (message_id,)
        )
    assert size < 400
    bodies = {unit.message_id: unit.message.body for unit in claimed(deployed)}
    assert bodies[message_id] == LARGE
    assert status(deployed.organization_id, message_id).size_bytes == len(LARGE)


async def test_group_commit_stores_large_bodies_too(store: Path, deployed: Deployed) -> None:
    async with GroupCommit(deployed.keyring) as commits:
        await commits.submit(deployed.acceptance(LARGE))
    assert len(stored(store, deployed)) == 1


def test_what_a_stage_hands_over_is_stored_too_and_goes_when_the_message_is_settled(
    store: Path, deployed: Deployed
) -> None:
    accepted(deployed, b"{}")
    [unit] = claimed(deployed)
    big = Output(Message(unit.message.id, {"rows": "y" * 4_000}), "deliver", "deliver")
    settle(unit, Outcome(unit.message.id, "handed_over", [big]), keys=deployed.keyring)
    assert len(stored(store, deployed)) == 1
    batch = batches.find(*_run_of(unit))
    [part] = claim(batch, "w", 30, 10, "deliver", keys=deployed.keyring)
    assert part.message.body == {"rows": "y" * 4_000}
    pass_time(offload.GRACE_S + 1)
    offload.collect()
    assert len(stored(store, deployed)) == 1
    settle(part, done(part), keys=deployed.keyring)
    offload.collect(everything=True)
    assert stored(store, deployed) == []


def _run_of(unit: Claimed) -> tuple[str, str]:
    with database.relay() as connection:
        [row] = connection.execute(
            "SELECT dag_id, run_id FROM bridge.batches WHERE batch_id = %s", (unit.batch_id,)
        )
    return row[0], row[1]


def test_a_settled_message_keeps_its_payload_and_is_replayed_with_it(store: Path, deployed: Deployed) -> None:
    message_id = accepted(deployed)
    [unit] = claimed(deployed)
    settle(unit, done(unit), keys=deployed.keyring)
    pass_time(2 * offload.MESSAGE_CHECK_S)
    offload.collect(everything=True)
    assert len(stored(store, deployed)) == 1
    batches.finish(batches.find(*_run_of(unit)))
    replay(deployed.organization_id, [message_id], by="anna")
    [again] = claimed(deployed)
    assert again.message.body == LARGE


def test_payloads_go_when_retention_drops_their_messages_unless_they_are_held(
    store: Path, deployed: Deployed
) -> None:
    old = datetime.now(UTC) - timedelta(days=300)
    ids = [accepted(deployed) for _ in range(3)]
    for unit in claimed(deployed):
        settle(unit, done(unit), keys=deployed.keyring)
    retention.ensure_partitions(ahead=0, today=old.date())
    with psycopg.connect(database.owner_url()) as connection:
        connection.execute("ALTER TABLE bridge.settled_messages NO FORCE ROW LEVEL SECURITY")
        connection.execute(
            "UPDATE bridge.settled_messages SET settled_at = %s WHERE message_id = ANY(%s)", (old, ids[:2])
        )
        connection.execute("ALTER TABLE bridge.settled_messages FORCE ROW LEVEL SECURITY")
    retention.hold(deployed.organization_id, ids[:1])
    retention.drop_expired()
    offload.collect(everything=True)
    assert len(stored(store, deployed)) == 3, "younger than an hour: whoever wrote it may not have committed yet"
    pass_time(offload.GRACE_S + 1)
    assert offload.collect(everything=True).removed >= 1
    assert len(stored(store, deployed)) == 2
    assert reconcile.check(deployed.organization_id, ids).missing == [ids[1]]


def test_what_was_stored_for_a_message_that_was_never_accepted_is_removed(
    store: Path, deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(deployed.acceptance(LARGE, idempotency_key="k"), deployed.keyring)
    assert accept(deployed.acceptance(LARGE, idempotency_key="k"), deployed.keyring).duplicate

    def dies(self: object, key: str, data: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(objects._Directory, "put", dies)
    with pytest.raises(KeyboardInterrupt):
        accepted(deployed)
    assert len(stored(store, deployed)) == 2
    pass_time(offload.GRACE_S + 1)
    assert offload.collect().removed >= 2
    assert len(stored(store, deployed)) == 1


@pytest.mark.parametrize("harm", ["missing", "altered", "another's"])
def test_a_payload_that_is_lost_makes_a_dead_letter_and_holds_up_nobody(
    store: Path, deployed: Deployed, make_deployed: Callable[[], Deployed], harm: str
) -> None:
    lost, sound = accepted(deployed), accepted(deployed)
    path = stored(store, deployed)[0]
    if harm == "missing":
        path.unlink()
    elif harm == "altered":
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)
    else:
        other = make_deployed()
        accepted(other)
        [theirs] = stored(store, other)
        path.write_bytes(theirs.read_bytes())
    assert [unit.message_id for unit in claimed(deployed)] == [sound]
    [letter] = triage.list_dead(deployed.organization_id)
    assert (letter.message_id, letter.code) == (lost, "payload-lost")


def test_a_reference_opens_in_its_own_place_only(
    deployed: Deployed, make_deployed: Callable[[], Deployed]
) -> None:
    first, second = accepted(deployed), accepted(deployed)
    with database.relay() as connection:
        connection.execute(
            "UPDATE bridge.messages SET payload = (SELECT payload FROM bridge.messages WHERE message_id = %s)"
            " WHERE message_id = %s",
            (first, second),
        )
    assert [unit.message_id for unit in claimed(deployed)] == [first]
    [letter] = triage.list_dead(deployed.organization_id)
    assert (letter.message_id, letter.code) == (second, "decryption-failed")


def test_while_the_store_does_not_answer_messages_are_neither_accepted_nor_lost(
    store: Path, deployed: Deployed
) -> None:
    message_id = accepted(deployed)
    aside = store.with_name("aside")
    store.rename(aside)
    store.write_text("in the way")
    with pytest.raises(Unavailable):
        accepted(deployed)
    assert claimed(deployed) == []
    found = status(deployed.organization_id, message_id)
    assert (found.state, found.attempts, found.batch_id) == ("accepted", 0, None)
    store.unlink()
    shutil.move(aside, store)
    with database.relay() as connection:
        connection.execute("UPDATE bridge.messages SET available_at = now() WHERE message_id = %s", (message_id,))
        connection.execute("UPDATE bridge.batches SET status = 'settled' WHERE flow = %s", (deployed.flow,))
    assert [unit.message.body for unit in claimed(deployed)] == [LARGE]


def test_any_file_system_of_fsspec_will_do_and_one_that_is_none_is_named(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDGE_PAYLOAD_STORE_URL", "memory://payloads/here")
    get_settings.cache_clear()
    message_id = accepted(deployed)
    [unit] = claimed(deployed)
    assert unit.message.body == LARGE
    settle(unit, handed_over(unit, "deliver"), keys=deployed.keyring)
    with database.relay() as connection:
        connection.execute("DELETE FROM bridge.messages WHERE message_id = %s", (message_id,))
    pass_time(offload.GRACE_S + 1)
    assert offload.collect(everything=True).removed >= 1
    for url, options in (("nothing://x", None), ("file:///tmp/x", "[1]")):
        monkeypatch.setenv("BRIDGE_PAYLOAD_STORE_URL", url)
        if options:
            monkeypatch.setenv("BRIDGE_PAYLOAD_STORE_OPTIONS", options)
        get_settings.cache_clear()
        with pytest.raises(ConfigurationError, match="BRIDGE_PAYLOAD_STORE"):
            accepted(deployed)


def test_what_cannot_be_handed_over_now_is_tried_again_and_holds_up_no_other_settlement(
    store: Path, deployed: Deployed
) -> None:
    ids = [accepted(deployed, b"{}") for _ in range(2)]
    units = {unit.message_id: unit for unit in claimed(deployed)}
    store.parent.mkdir(exist_ok=True)
    store.write_text("in the way")
    big = Output(Message(ids[0], {"rows": "y" * 4_000}), "deliver", "deliver")
    became = settle_many(
        [
            (units[ids[0]], Outcome(ids[0], "handed_over", [big])),
            (units[ids[1]], done(units[ids[1]])),
        ],
        keys=deployed.keyring,
        plan=deployed.plan,
    )
    assert became == ["retry", "done"]


def test_a_large_part_that_another_message_carries_on_is_kept_until_that_one_is_settled(
    store: Path, deployed: Deployed
) -> None:
    world = World(deployed.organization, deployed.keyring)
    world.deploy("pair", "{id: pair, type: join, config: {key: .k, stream: .s, streams: [a, b], join: array}}")
    parts = [{"k": 1, "s": name, "text": name * 5_000} for name in ("a", "b")]
    ids = [world.accept("pair", part) for part in parts]
    world.settle(world.claim())
    assert world.states(*ids) == ["handed_over", "done"]
    pass_time(7_200)
    offload.collect(everything=True)
    world.work()
    assert world.bodies() == [parts]
    assert world.states(*ids) == ["done", "done"]
    pass_time(7_200)
    offload.collect(everything=True)
    # The messages' own payloads are kept with them.
    assert len(stored(store, deployed)) == 2
