"""How many bytes an organization may hold: refused before a message is accepted, freed by retention."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from continuitybridge import database, organizations
from continuitybridge.errors import AllowanceExhausted, Unavailable
from continuitybridge.inbox import allowance, storage
from continuitybridge.inbox.accept import Acceptance, accept
from continuitybridge.inbox.accept.aio import GroupCommit
from continuitybridge.organizations import Organization, quotas
from continuitybridge.organizations.tiers import Resource
from continuitybridge.vault.keyring import Keyring

MB = 1_000_000


@pytest.fixture
def small(settings: object) -> Organization:
    """An organization that may hold 1 MB."""
    slug = f"org-{uuid4().hex[:12]}"
    made = organizations.create(slug, slug)
    quotas.agree(made.organization_id, "storage_mb", 1)
    return made


def acceptance(organization: Organization, size: int, key: str | None = None) -> Acceptance:
    body = os.urandom(size)
    return Acceptance(organization.organization_id, "dev", "orders", "1.0.0", "api", body, idempotency_key=key)


def counted(organization: Organization) -> int:
    with database.tenant(organization.organization_id) as connection:
        row = connection.execute("SELECT coalesce(max(bytes), 0)::bigint FROM bridge.storage_use").fetchone()
    assert row is not None
    return int(row[0])


def used_mb(organization: Organization) -> int:
    return {each.resource: each.used for each in quotas.quotas(organization.organization_id)}[Resource.STORAGE_MB]


def test_a_message_without_room_is_refused_with_the_limit_and_the_use(
    small: Organization, keyring: Keyring
) -> None:
    accept(acceptance(small, 600_000), keyring)
    with pytest.raises(AllowanceExhausted) as refused:
        accept(acceptance(small, 500_000), keyring)
    assert refused.value.facts["resource"] == "storage_mb"
    assert (refused.value.facts["allowed"], refused.value.facts["used"]) == (1, 1)
    assert refused.value.facts["retry_after_s"] > 0
    # Nothing of the refused one is counted: what fits is accepted.
    accept(acceptance(small, 400_000), keyring)
    assert counted(small) == MB
    with database.tenant(small.organization_id) as connection:
        assert connection.execute("SELECT count(*) FROM bridge.messages").fetchone() == (2,)
    quotas.agree(small.organization_id, "storage_mb", 2)
    accept(acceptance(small, 500_000), keyring)


def test_what_comes_by_http_never_goes_beyond_and_what_was_not_needed_is_given_back(
    small: Organization, keyring: Keyring
) -> None:
    async def run() -> list[int]:
        async with GroupCommit(keyring) as first, GroupCommit(keyring) as second:

            async def send(commits: GroupCommit) -> int:
                try:
                    await commits.submit(acceptance(small, 40_000))
                except AllowanceExhausted as error:
                    return 0 if error.facts["resource"] == "storage_mb" else 1_000
                return 1

            one = await asyncio.gather(*(send(first) for _ in range(20)))
            two = await asyncio.gather(*(send(second) for _ in range(20)))
            return [sum(one), sum(two)]

    taken = asyncio.run(run())
    assert counted(small) == sum(taken) * 40_000
    # The last but few: up to an eighth of what was left may have been the other's.
    assert 20 < sum(taken) <= 25


def test_a_repetition_and_a_small_message_take_no_room_of_others(small: Organization, keyring: Keyring) -> None:
    given = acceptance(small, 1_000, key="a")

    async def run() -> None:
        async with GroupCommit(keyring) as commits:
            await commits.submit(given)
            assert (await commits.submit(given)).duplicate
            assert counted(small) > 1_000

    asyncio.run(run())
    assert counted(small) == 1_000


def test_measuring_finds_what_is_held_in_both_stores_and_frees_what_is_gone(
    small: Organization, keyring: Keyring
) -> None:
    quotas.agree(small.organization_id, "storage_mb", 10)
    accept(acceptance(small, 300_000), keyring)
    large = accept(acceptance(small, 3 * MB), keyring)
    with database.relay() as connection:
        row = connection.execute(
            "SELECT sum(size_bytes) FROM bridge.payload_objects WHERE organization_id = %s",
            (small.organization_id,),
        ).fetchone()
    assert row is not None
    assert row[0] >= 3 * MB
    held = storage.measure(small.organization_id)
    assert 3_300_000 <= held <= 3_305_000
    assert used_mb(small) == 4
    with database.relay() as connection:
        connection.execute(
            "DELETE FROM bridge.payload_objects WHERE organization_id = %s", (small.organization_id,)
        )
        connection.execute(
            "DELETE FROM bridge.messages WHERE organization_id = %s AND message_id = %s",
            (small.organization_id, large.message_id),
        )
    storage.measure_all()
    assert 300_000 <= counted(small) <= 302_000
    accept(acceptance(small, 9 * MB), keyring)


def test_who_finds_no_room_is_refused_at_once_and_the_next_ones_by_what_is_remembered(
    small: Organization, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(acceptance(small, 950_000), keyring)

    async def run() -> None:
        async with GroupCommit(keyring) as commits:

            async def refused() -> None:
                with pytest.raises(AllowanceExhausted, match="no room for 100000 bytes"):
                    await asyncio.wait_for(commits.submit(acceptance(small, 100_000)), 2)

            with database.relay() as connection:
                # Whoever would write has to wait for this.
                connection.execute(
                    "SELECT FROM bridge.storage_use WHERE organization_id = %s FOR UPDATE",
                    (small.organization_id,),
                )
                await refused()
            monkeypatch.setattr(allowance, "REFUSED_S", 60.0)
            quotas.agree(small.organization_id, "storage_mb", 2)
            await refused()
            # What is smaller than the refused may fit.
            await commits.submit(acceptance(small, 40_000))
            monkeypatch.setattr(allowance, "REFUSED_S", 0.0)
            await commits.submit(acceptance(small, 100_000))

    asyncio.run(run())
    assert counted(small) == 1_090_000


def test_who_waits_for_room_too_long_is_told_to_come_again_and_so_is_everybody_behind_him(
    small: Organization, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(acceptance(small, 1_000), keyring)
    monkeypatch.setattr(allowance, "TAKE_TIMEOUT_S", 0.2)

    async def run() -> list[BaseException | None]:
        async with GroupCommit(keyring) as commits:
            with database.relay() as connection:
                connection.execute(
                    "SELECT FROM bridge.storage_use WHERE organization_id = %s FOR UPDATE",
                    (small.organization_id,),
                )
                sent = [commits.submit(acceptance(small, 1_000)) for _ in range(20)]
                found = await asyncio.wait_for(asyncio.gather(*sent, return_exceptions=True), 2)
        return [each if isinstance(each, BaseException) else None for each in found]

    assert {type(each) for each in asyncio.run(run())} == {Unavailable}


def test_room_that_was_held_while_it_was_measured_is_not_given_back_a_second_time(
    small: Organization, keyring: Keyring
) -> None:
    async def run() -> int:
        async with GroupCommit(keyring) as commits:
            await commits.submit(acceptance(small, 50_000))
            assert counted(small) > 100_000
            return await asyncio.to_thread(storage.measure, small.organization_id)

    held = asyncio.run(run())
    assert 50_000 <= held <= 52_000
    assert counted(small) == held


def test_room_from_before_it_was_measured_is_used_no_more(
    small: Organization, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowance, "IDLE_S", 0.2)

    async def run() -> None:
        async with GroupCommit(keyring) as commits:
            await commits.submit(acceptance(small, 100))
            held = await asyncio.to_thread(storage.measure, small.organization_id)
            # Never idle.
            for _ in range(40):
                await asyncio.sleep(0.05)
                await commits.submit(acceptance(small, 100))
                if counted(small) > held + 50_000:
                    return
            pytest.fail("what came after is counted nowhere")

    asyncio.run(run())


def test_room_without_messages_to_fill_it_is_given_back(
    small: Organization, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowance, "IDLE_S", 0.1)
    quotas.agree(small.organization_id, "messages_per_hour", 1)

    async def run() -> None:
        async with GroupCommit(keyring) as commits:
            await commits.submit(acceptance(small, 1_000))
            with pytest.raises(AllowanceExhausted, match="messages per hour"):
                await commits.submit(acceptance(small, 1_000))
            for _ in range(40):
                if counted(small) == 1_000:
                    return
                await asyncio.sleep(0.05)
            pytest.fail("the room is still held")

    asyncio.run(run())


def test_of_two_that_measure_at_once_neither_counts_twice(small: Organization, keyring: Keyring) -> None:
    accept(acceptance(small, 50_000), keyring)
    with database.relay() as connection:
        connection.execute(
            "UPDATE bridge.storage_use SET bytes = 0 WHERE organization_id = %s", (small.organization_id,)
        )
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(storage.measure, [small.organization_id] * 8))
    assert 50_000 <= counted(small) <= 52_000
