"""Keys of a service that takes its time: who waits for them, and for how many answers."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from uuid import UUID

import pytest
from click.testing import CliRunner
from key_services import TransitService

from continuitybridge import database, deployments
from continuitybridge.cli import bridge
from continuitybridge.errors import Unavailable
from continuitybridge.flows.load import load_flow
from continuitybridge.organizations import Organization
from continuitybridge.settings import Settings
from continuitybridge.vault import Keyring, kms, master, opening
from continuitybridge.vault.cipher import DecryptionFailed
from continuitybridge.vault.kms import transit, turns
from continuitybridge.vault.kms.base import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S
from continuitybridge.webhooks.directory import KEYS_AT_ONCE, Directory


@dataclass
class SlowService:
    """`calls`: organizations whose keys were asked for since `hold`; until then it `answers` at once."""

    calls: list[str] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)
    answers: threading.Event = field(default_factory=threading.Event)

    def hold(self) -> None:
        self.calls.clear()
        self.asked.clear()
        self.answers.clear()

    def wait_for(self, calls: int) -> None:
        until = time.monotonic() + 20
        while len(self.calls) < calls:
            assert time.monotonic() < until
            time.sleep(0.01)


def run(*arguments: str) -> None:
    done = CliRunner().invoke(bridge, ["vault", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def with_endpoint(organization: Organization) -> UUID:
    flow = {
        "flow": "orders",
        "version": "1.0.0",
        "triggers": [
            {"id": "in", "type": "webhook_trigger", "config": {"slug": "orders", "verification": "api_key"}}
        ],
        "steps": [{"id": "note", "type": "logger", "config": {"message": "got it"}}],
    }
    deployments.deploy(organization.organization_id, "dev", load_flow(json.dumps(flow)), "tester")
    return organization.organization_id


@pytest.fixture
def slow(
    transit_service: TransitService,
    environment: Callable[..., None],
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[SlowService]:
    """A service that keeps the master key and answers when it is let."""
    environment(**transit_service.environment)
    run("rotate-master-key", "--to", transit_service.new_key())
    found, real = SlowService(), transit.Transit.unwrap
    found.answers.set()

    def unwrap(self: transit.Transit, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        found.calls.append(context["organization"])
        found.asked.set()
        assert found.answers.wait(20)
        return real(self, wrapped, context)

    monkeypatch.setattr(transit.Transit, "unwrap", unwrap)
    yield found
    found.answers.set()
    monkeypatch.undo()
    environment(**transit_service.environment)
    run("rotate-master-key", "--to", "file")


def test_threads_that_want_one_key_wait_for_one_answer(
    slow: SlowService, organization: Organization, settings: Settings
) -> None:
    keys = Keyring(master.load_all(settings.master_key_path)[0], settings.master_key_path)
    slow.hold()
    o = organization.organization_id
    with ThreadPoolExecutor(40) as pool:
        waiting = [pool.submit(keys.encrypt, o, "place", "1", b"text") for _ in range(40)]
        assert slow.asked.wait(20)
        time.sleep(0.2)
        slow.answers.set()
        assert {keys.decrypt(o, "place", "1", each.result()) for each in waiting} == {b"text"}
    assert slow.calls == [str(o)]


async def test_an_intake_that_begins_asks_for_several_organizations_keys_at_once(
    slow: SlowService, make_organization: Callable[[], Organization], settings: Settings
) -> None:
    owners = {str(with_endpoint(make_organization())) for _ in range(3)}
    slow.hold()
    directory = Directory(Keyring(master.load_all(settings.master_key_path)[0], settings.master_key_path))
    directory.start()
    try:
        await asyncio.to_thread(slow.wait_for, min(turns.AT_ONCE, len(owners)))
        assert not directory.current
        slow.answers.set()
        await directory.wait_loaded(20)
        assert owners <= set(slow.calls)
    finally:
        await directory.stop()


async def test_an_intake_that_begins_leaves_threads_to_who_needs_one_key(
    slow: SlowService, make_organization: Callable[[], Organization], settings: Settings
) -> None:
    owners = [with_endpoint(make_organization()) for _ in range(KEYS_AT_ONCE + 2)]
    slow.hold()
    keys = Keyring(master.load_all(settings.master_key_path)[0], settings.master_key_path)
    directory = Directory(keys)
    directory.start()
    try:
        await asyncio.to_thread(slow.wait_for, 1)
        under_way = sum(opening.is_under_way((keys, owner)) for owner in owners)
        slow.answers.set()
        await directory.wait_loaded(20)
    finally:
        await directory.stop()
    assert under_way <= KEYS_AT_ONCE < opening.THREADS
    assert all(keys.holds(owner) for owner in owners)


def test_what_is_wrong_is_told_to_all_who_wait(
    slow: SlowService, organization: Organization, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keyring(master.load_all(settings.master_key_path)[0], settings.master_key_path)
    with database.platform() as connection:
        connection.execute(
            "UPDATE bridge.data_keys SET wrapped_key = wrapped_key || 'x' WHERE organization_id = %s",
            (organization.organization_id,),
        )
    slow.hold()
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(keys.export, organization.organization_id) for _ in range(8)]
        assert slow.asked.wait(20)
        time.sleep(0.2)
        slow.answers.set()
        assert {type(each.exception()) for each in waiting} == {DecryptionFailed}
    assert len(slow.calls) == 1
    with database.platform() as connection:
        connection.execute(
            "UPDATE bridge.data_keys SET wrapped_key = substring(wrapped_key FOR length(wrapped_key) - 1)"
            " WHERE organization_id = %s",
            (organization.organization_id,),
        )


def test_a_process_that_has_no_answer_yet_waits_for_as_long_as_a_call_may_take() -> None:
    assert turns.FIRST_PATIENCE_S >= CONNECT_TIMEOUT_S + ANSWER_TIMEOUT_S


async def test_while_one_asks_again_whether_it_answers_no_coroutine_waits_for_that(
    slow: SlowService, organization: Organization, settings: Settings
) -> None:
    keys = Keyring(master.load_all(settings.master_key_path)[0], settings.master_key_path)
    o = organization.organization_id
    slow.hold()
    kms._resting[keys.master_key_id] = kms._Rest(time.monotonic(), Unavailable("it does not answer"))
    asking = asyncio.ensure_future(keys.ready(o))
    await asyncio.to_thread(slow.wait_for, 1)
    with pytest.raises(Unavailable, match="it does not answer"):
        await asyncio.wait_for(keys.ready(o), 5)
    slow.answers.set()
    await asking
    # What is known goes on, whatever is known of the service.
    kms._resting[keys.master_key_id] = kms._Rest(time.monotonic() + 60, Unavailable("it does not answer"))
    keys._loaded.clear()
    await asyncio.gather(*(keys.ready(o) for _ in range(5)))
    kms._resting.clear()
    assert slow.calls == [str(o)]


async def test_coroutines_wait_for_keys_without_a_thread_each_and_as_long_as_each_wants_to(
    slow: SlowService, make_organization: Callable[[], Organization], settings: Settings
) -> None:
    keys = Keyring(master.load_all(settings.master_key_path)[0], settings.master_key_path)
    owners = [make_organization().organization_id for _ in range(3)]
    slow.hold()
    waiting = [asyncio.ensure_future(keys.ready(owner)) for owner in owners for _ in range(50)]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await keys.ready(owners[0])
    # What else needs a thread of the loop's gets one.
    assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 5) == "free"
    assert not any(each.done() for each in waiting)
    slow.answers.set()
    await asyncio.gather(*waiting)
    assert sorted(slow.calls) == sorted(map(str, owners))
    assert all(keys.holds(owner) for owner in owners)
