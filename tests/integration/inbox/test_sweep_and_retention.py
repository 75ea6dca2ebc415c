"""The sweep takes up what processes left lying; retention keeps what must be kept and drops the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from inbox_world import Deployed, done, failed, handed_over

from continuitybridge import database
from continuitybridge.errors import Verdict
from continuitybridge.inbox import batches, reconcile, retention, triage
from continuitybridge.inbox.claim import claim
from continuitybridge.inbox.retry import RetryPolicy
from continuitybridge.inbox.settle import settle, skip
from continuitybridge.inbox.status import status
from continuitybridge.inbox.sweep import sweep
from continuitybridge.organizations import Organization, quotas
from continuitybridge.settings import get_settings
from continuitybridge.vault.keyring import Keyring


@pytest.fixture(autouse=True)
def the_store_agrees_with_itself(deployed: Deployed) -> Iterator[None]:
    yield
    assert reconcile.violations(deployed.organization_id) == []


def as_owner(statement: str, *parameters: Any) -> list[Any]:
    """What no role of the product may do: looking at, and ageing, rows of settled messages and answers."""
    import psycopg

    with psycopg.connect(database.owner_url()) as connection:
        for table in ("settled_messages", "replies"):
            connection.execute(f"ALTER TABLE bridge.{table} NO FORCE ROW LEVEL SECURITY")
        cursor = connection.execute(statement, parameters)
        rows = cursor.fetchall() if cursor.description else []
        for table in ("settled_messages", "replies"):
            connection.execute(f"ALTER TABLE bridge.{table} FORCE ROW LEVEL SECURITY")
    return rows


def age(batch: batches.Batch, seconds: float) -> None:
    with database.relay() as connection:
        connection.execute(
            "UPDATE bridge.batches SET active_at = active_at - make_interval(secs => %s) WHERE batch_id = %s",
            (seconds, batch.batch_id),
        )


def test_a_lease_that_ran_out_makes_the_unit_available_again(deployed: Deployed) -> None:
    batch, _ = deployed.batch(2)
    claim(batch, "w", 0, 1, "parse", keys=deployed.keyring)
    assert sweep().leases_expired >= 1
    assert [unit.attempts for unit in claim(batch, "w", 30, 10, keys=deployed.keyring)] == [1, 2]


def test_a_hand_over_whose_lease_ran_out_is_available_again(deployed: Deployed) -> None:
    batch, _ = deployed.batch()
    [unit] = claim(batch, "w", 30, 10, "parse", keys=deployed.keyring)
    settle(unit, handed_over(unit, "deliver"), keys=deployed.keyring)
    claim(batch, "w", 0, 10, "deliver", keys=deployed.keyring)
    sweep()
    [again] = claim(batch, "w", 30, 10, "deliver", keys=deployed.keyring)
    assert (again.attempts, again.epoch) == (2, 2)


@pytest.mark.parametrize("stage", ["parse", "deliver"])
def test_a_unit_that_kills_its_worker_every_time_ends_as_a_dead_letter(deployed: Deployed, stage: str) -> None:
    batch, [message_id] = deployed.batch()
    if stage == "deliver":
        [unit] = claim(batch, "w", 30, 10, "parse", keys=deployed.keyring)
        settle(unit, handed_over(unit, "deliver"), keys=deployed.keyring)
    for _ in range(get_settings().max_attempts):
        assert len(claim(batch, "w", 0, 10, stage, keys=deployed.keyring)) == 1
        sweep()
    found = status(deployed.organization_id, message_id)
    assert found.state == "dead"
    assert [each.final for each in found.failures] == [*[False] * (get_settings().max_attempts - 1), True]
    [letter] = triage.list_dead(deployed.organization_id)
    assert letter.code == "lease-expired"
    assert letter.failure_id is not None
    assert triage.context(deployed.organization_id, letter.failure_id, deployed.keyring) is None


def test_a_batch_nobody_works_on_is_given_up_and_dispatched_anew(deployed: Deployed) -> None:
    batch, ids = deployed.batch(2)
    age(batch, 800)
    sweep()
    assert batches.find(batch.dag_id, batch.run_id).status == "created"
    age(batch, 200)
    sweep(running=[(batch.dag_id, batch.run_id)])
    assert batches.find(batch.dag_id, batch.run_id).status == "created"
    swept = sweep()
    assert swept.batches_abandoned >= 1
    assert batches.find(batch.dag_id, batch.run_id).status == "abandoned"
    following = deployed.dispatch()
    assert sorted(unit.message_id for unit in claim(following, "w", 30, 10, keys=deployed.keyring)) == sorted(ids)


def test_a_batch_with_a_live_lease_is_not_given_up(deployed: Deployed) -> None:
    batch, _ = deployed.batch()
    claim(batch, "w", 300, 10, keys=deployed.keyring)
    age(batch, 10_000)
    sweep()
    assert batches.find(batch.dag_id, batch.run_id).status == "started"


def test_a_batch_with_nothing_left_is_settled(deployed: Deployed) -> None:
    batch, _ = deployed.batch()
    [unit] = claim(batch, "w", 30, 10, keys=deployed.keyring)
    settle(unit, done(unit), keys=deployed.keyring)
    age(batch, 60)
    sweep()
    assert batches.find(batch.dag_id, batch.run_id).status == "settled"


def test_what_a_late_worker_leaves_in_a_batch_already_given_up_is_found(deployed: Deployed) -> None:
    batch, [message_id] = deployed.batch()
    [unit] = claim(batch, "w", 30, 10, keys=deployed.keyring)
    batches.release(batch)
    settle(unit, handed_over(unit, "deliver"), keys=deployed.keyring)
    assert sweep().orphans_released >= 1
    following = deployed.dispatch()
    [part] = claim(following, "w", 30, 10, "deliver", keys=deployed.keyring)
    assert part.message_id == message_id


def test_idempotency_keys_are_forgotten_after_their_window(deployed: Deployed) -> None:
    deployed.accept(1, idempotency_key="old")
    deployed.accept(1, idempotency_key="young")
    with database.relay() as connection:
        connection.execute(
            "UPDATE bridge.idempotency_keys SET expires_at = now() WHERE organization_id = %s AND message_id ="
            " (SELECT min(message_id) FROM bridge.messages WHERE organization_id = %s)",
            (deployed.organization_id, deployed.organization_id),
        )
    assert sweep().keys_forgotten >= 1
    with database.tenant(deployed.organization_id) as connection:
        assert connection.execute("SELECT count(*) FROM bridge.idempotency_keys").fetchone() == (1,)


def test_many_keys_that_expired_at_once_are_forgotten_over_several_sweeps(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    from continuitybridge.inbox import sweep as module

    monkeypatch.setattr(module, "_CHUNK", 10)
    monkeypatch.setattr(module, "_KEY_CHUNKS", 2)
    while module._keys():
        pass
    deployed.accept(3, idempotency_window_days=30)
    with database.tenant(deployed.organization_id) as connection:
        connection.execute(
            "INSERT INTO bridge.idempotency_keys"
            " SELECT %s, 'prod', 'orders', sha256(n::text::bytea), ''::bytea, 'm' || n, now()"
            " FROM generate_series(1, 35) AS n",
            (deployed.organization_id,),
        )
    assert [sweep().keys_forgotten for _ in range(3)] == [20, 15, 0]


def test_failures_and_batches_of_long_ago_are_removed_unless_still_needed(deployed: Deployed) -> None:
    batch, _ = deployed.batch(2)
    kept, gone = claim(batch, "w", 30, 10, keys=deployed.keyring)
    for unit in (kept, gone):
        settle(unit, failed(unit), keys=deployed.keyring, plan=deployed.plan)
    triage.discard(deployed.organization_id, [gone.message_id], by="anna")
    batches.finish(batch)
    with database.relay() as connection:
        connection.execute("UPDATE bridge.failures SET at = at - interval '91 days'")
        connection.execute("UPDATE bridge.batches SET settled_at = settled_at - interval '31 days'")
    assert sweep().records_removed >= 1
    assert status(deployed.organization_id, gone.message_id).failures == []
    assert len(status(deployed.organization_id, kept.message_id).failures) == 1
    assert batches.find(batch.dag_id, batch.run_id)


# -- retention ----------------------------------------------------------------------------------------------


def partitions(retention_class: str) -> list[str]:
    rows = as_owner(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = %s::regclass ORDER BY c.relname",
        f"bridge.settled_messages_{retention_class}",
    )
    return [row[0] for row in rows]


def settle_one(deployed: Deployed) -> str:
    batch, [message_id] = deployed.batch()
    [unit] = claim(batch, "w", 30, 10, keys=deployed.keyring)
    settle(unit, done(unit), keys=deployed.keyring)
    batches.finish(batch)
    return message_id


def test_partitions_are_made_ahead_and_only_once() -> None:
    future = datetime.now(UTC).date() + timedelta(days=4000)
    assert retention.ensure_partitions(ahead=2, today=future) == 12
    assert retention.ensure_partitions(ahead=2, today=future) == 0


def test_settled_messages_stand_in_their_weeks_partition(deployed: Deployed) -> None:
    settle_one(deployed)
    rows = as_owner(
        "SELECT tableoid::regclass::text FROM bridge.settled_messages WHERE organization_id = %s",
        deployed.organization_id,
    )
    assert rows[0][0].startswith("bridge.settled_messages_standard_20")


def test_expired_partitions_are_dropped_and_what_is_held_outlives_them(deployed: Deployed) -> None:
    old = datetime.now(UTC) - timedelta(days=200)
    held, gone, recent = (settle_one(deployed) for _ in range(3))
    retention.ensure_partitions(ahead=0, today=old.date())
    as_owner(
        "UPDATE bridge.settled_messages SET settled_at = %s WHERE organization_id = %s AND message_id = ANY(%s)",
        old,
        deployed.organization_id,
        [held, gone],
    )
    assert retention.hold(deployed.organization_id, [held]) == 1
    assert retention.hold(deployed.organization_id, [held]) == 0
    dropped = retention.drop_expired()
    assert any(name.startswith("settled_messages_standard_20") for name in dropped)
    ledger = reconcile.check(deployed.organization_id, [held, gone, recent])
    assert (sorted(ledger.done), ledger.missing) == (sorted([held, recent]), [gone])
    assert retention.release_hold(deployed.organization_id, [held]) == 1
    retention.drop_expired()
    assert reconcile.check(deployed.organization_id, [held]).missing == [held]


def test_an_organizations_tier_ends_what_its_retention_class_would_keep(
    deployed: Deployed, make_organization: Callable[[], Organization], keyring: Keyring
) -> None:
    other = Deployed(make_organization(), keyring, deployed.flow)
    held, gone, recent = (settle_one(deployed) for _ in range(3))
    theirs = settle_one(other)
    for each, messages in ((deployed, [held, gone]), (other, [theirs])):
        as_owner(
            "UPDATE bridge.settled_messages SET settled_at = %s"
            " WHERE organization_id = %s AND message_id = ANY(%s)",
            datetime.now(UTC) - timedelta(days=10),
            each.organization_id,
            messages,
        )
    retention.hold(deployed.organization_id, [held])
    retention.expire_by_tier()
    assert reconcile.check(deployed.organization_id, [held, gone, recent]).missing == []
    quotas.set_tier(deployed.organization_id, "free")
    assert retention.expire_by_tier() == 1
    ledger = reconcile.check(deployed.organization_id, [held, gone, recent])
    assert (sorted(ledger.done), ledger.missing) == (sorted([held, recent]), [gone])
    assert reconcile.check(other.organization_id, [theirs]).done == [theirs]


def test_answers_are_kept_for_their_hours_and_dropped_by_the_day(deployed: Deployed) -> None:
    old = datetime.now(UTC) - timedelta(days=40)
    [kept, gone] = deployed.accept(2, reply_until=datetime.now(UTC))
    skip(deployed.dispatch())
    as_owner("UPDATE bridge.replies SET written_at = %s WHERE message_id = %s", old, gone)
    where = "SELECT tableoid::regclass::text FROM bridge.replies WHERE message_id = %s"
    assert as_owner(where, gone) == [("bridge.replies_default",)]
    retention.ensure_partitions(ahead=0, today=old.date())
    assert as_owner(where, gone) == [(f"bridge.replies_{old:%Y%m%d}",)]
    assert f"replies_{old:%Y%m%d}" in retention.drop_expired()
    assert as_owner(where, gone) == []
    assert as_owner(where, kept) == [(f"bridge.replies_{datetime.now(UTC):%Y%m%d}",)]


def test_a_held_message_is_settled_into_the_held_partition(deployed: Deployed) -> None:
    [message_id] = deployed.accept()
    retention.hold(deployed.organization_id, [message_id])
    batch = deployed.dispatch()
    [unit] = claim(batch, "w", 30, 10, keys=deployed.keyring)
    settle(unit, done(unit), keys=deployed.keyring)
    rows = as_owner(
        "SELECT tableoid::regclass::text FROM bridge.settled_messages WHERE message_id = %s", message_id
    )
    assert rows == [("bridge.settled_messages_held",)]


def test_rows_without_a_partition_move_into_it_when_it_is_made(deployed: Deployed) -> None:
    message_id = settle_one(deployed)
    far = datetime.now(UTC) + timedelta(days=6000)
    as_owner("UPDATE bridge.settled_messages SET settled_at = %s WHERE message_id = %s", far, message_id)
    where = "SELECT tableoid::regclass::text FROM bridge.settled_messages WHERE message_id = %s"
    assert as_owner(where, message_id) == [("bridge.settled_messages_standard_default",)]
    retention.ensure_partitions(ahead=0, today=far.date())
    assert as_owner(where, message_id)[0][0].startswith("bridge.settled_messages_standard_2")
    assert status(deployed.organization_id, message_id).state == "done"


def test_reconcile_counts_every_message_once(deployed: Deployed) -> None:
    batch, ids = deployed.batch(4)
    first, second, third, fourth = claim(batch, "w", 30, 10, keys=deployed.keyring)
    settle(first, done(first), keys=deployed.keyring)
    for unit in (second, third):
        settle(unit, failed(unit), keys=deployed.keyring, plan=deployed.plan)
    triage.discard(deployed.organization_id, [third.message_id], by="anna")
    policy = RetryPolicy(5, 0, 0)
    settle(
        fourth,
        failed(fourth, verdict=Verdict.TRANSIENT),
        keys=deployed.keyring,
        plan=deployed.plan,
        policy=policy,
    )
    [counts] = reconcile.counts(deployed.organization_id)
    assert (counts.accepted, counts.done, counts.dead, counts.discarded, counts.unsettled, counts.skipped) == (
        4, 1, 1, 1, 1, 0,
    )  # fmt: skip
    ledger = reconcile.check(deployed.organization_id, [*ids, "invented"])
    assert (ledger.given, ledger.missing, ledger.unsettled) == (5, ["invented"], [fourth.message_id])
