"""One refresh, however many ask, and what is left of that when processes die."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from tokens_world import age, await_ready, begin, events, row, start_asker

from continuitybridge import tokens
from continuitybridge.errors import ReconnectNeeded, Unavailable
from continuitybridge.organizations import Organization
from continuitybridge.settings import get_settings
from continuitybridge.vault.keyring import Keyring
from token_server import Call, TokenServer


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_TOKEN_LEASE_S", "0.6")
    get_settings.cache_clear()
    yield
    monkeypatch.undo()
    get_settings.cache_clear()


def resolve(organization: Organization, keyring: Keyring, **how: object) -> str:
    found = tokens.resolve(organization.organization_id, "dev", "erp", keyring, **{"wait_s": 20, **how})
    return found.auth["token"]


def test_four_processes_with_a_hundred_threads_each_make_one_call(
    organization: Organization, provider: TokenServer, connect: Callable[..., str], keyring: Keyring
) -> None:
    connect("refresh_token")
    first = resolve(organization, keyring)
    age(organization)
    provider.before = lambda call: time.sleep(0.5)
    askers = [start_asker(organization, 100) for _ in range(4)]
    try:
        for asker in askers:
            await_ready(asker)
        for asker in askers:
            begin(asker)
        got = [token for asker in askers for token in json.loads(asker.communicate(timeout=60)[0])]
    finally:
        for asker in askers:
            asker.kill()
            asker.wait()
    assert len(got) == 400
    assert len(set(got)) == 1
    assert got[0] in provider.valid - {first}
    assert provider.grants() == ["refresh_token"] * 2


def test_a_provider_that_is_slower_than_the_lease_is_called_once(
    short_lease: None,
    organization: Organization,
    provider: TokenServer,
    connect: Callable[..., str],
    keyring: Keyring,
) -> None:
    connect("refresh_token")
    provider.before = lambda call: time.sleep(2.0)
    others = [start_asker(organization, 3) for _ in range(2)]
    try:
        for other in others:
            await_ready(other)
            begin(other)
        with ThreadPoolExecutor(3) as pool:
            got = set(pool.map(lambda _: resolve(organization, keyring), range(3)))
        for other in others:
            got |= set(json.loads(other.communicate(timeout=60)[0]))
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert got == provider.valid
    assert provider.grants() == ["refresh_token"]


@pytest.mark.parametrize("grace", [True, False], ids=["taken again", "refused"])
def test_a_process_killed_between_answer_and_save_is_found_out(
    short_lease: None,
    organization: Organization,
    provider: TokenServer,
    connect: Callable[..., str],
    keyring: Keyring,
    grace: bool,
) -> None:
    connect("refresh_token")
    provider.grace = grace
    asker = start_asker(organization, 1)
    answered = threading.Event()

    def kill(call: Call) -> None:
        # The server has made the new token; the asker dies before it can read it.
        if not answered.is_set():
            os.kill(asker.pid, signal.SIGKILL)
            asker.wait()
            answered.set()

    provider.after = kill
    await_ready(asker)
    begin(asker)
    assert answered.wait(30)
    asker.communicate()
    assert row(organization, "state, attempt, generation") == ("refreshing", 1, 0)
    if grace:
        assert resolve(organization, keyring) in provider.valid
        assert row(organization, "state, attempt, generation") == ("active", 2, 2)
    else:
        for _ in range(3):
            with pytest.raises(ReconnectNeeded, match=r"'erp'.*lost with its process"):
                resolve(organization, keyring)
        assert row(organization, "state") == ("reconnect",)
        assert events(organization, "token.reconnect_needed") == 1
    # Once more with the old token, and no more.
    assert provider.grants() == ["refresh_token"] * 2


def test_a_late_answer_is_kept_unless_a_later_attempt_brought_something(
    organization: Organization, provider: TokenServer, connect: Callable[..., str], keyring: Keyring
) -> None:
    from continuitybridge import connections
    from continuitybridge.tokens import store
    from continuitybridge.tokens.kept import Obtained, Place

    connect("refresh_token")
    place = Place(organization.organization_id, "dev", "erp")
    definition = connections.read(*place, keyring)

    def lapsed(owner: str) -> store.Lease:
        lease = store.begin(place, definition, keyring, owner, refused=None, ahead=True)
        assert isinstance(lease, store.Lease)
        from continuitybridge import database

        with database.tenant(organization.organization_id) as connection:
            connection.execute("UPDATE bridge.tokens SET lease_until = now() - interval '1 s'")
        return lease

    first, second = lapsed("a"), lapsed("b")
    assert (first.abandoned, second.abandoned) == (False, True)
    store.give_up(place, second, "invalid_grant", keyring)
    assert store.save(place, first, definition, Obtained("late", "rt-late", 3600.0), keyring)
    assert resolve(organization, keyring) == "late"
    third, fourth = lapsed("c"), lapsed("d")
    assert third.refresh == "rt-late"
    assert store.save(place, fourth, definition, Obtained("newest", "rt-newest", 3600.0), keyring)
    assert not store.save(place, third, definition, Obtained("older", "rt-older", 3600.0), keyring)
    store.give_up(place, third, "invalid_grant", keyring)
    assert resolve(organization, keyring) == "newest"
    assert row(organization, "state, generation, attempt") == ("active", 4, 4)


def test_a_failure_that_may_pass_is_not_repeated_by_everybody_who_asks(
    organization: Organization, provider: TokenServer, connect: Callable[..., str], keyring: Keyring
) -> None:
    connect()
    provider.before = lambda call: (503, {"headers": [("retry-after", "7")]})

    def ask(_: int) -> float:
        with pytest.raises(Unavailable) as refused:
            resolve(organization, keyring)
        return float(refused.value.facts["retry_after_s"])

    with ThreadPoolExecutor(20) as pool:
        assert all(0 < each <= 7 for each in pool.map(ask, range(20)))
    assert len(provider.grants()) == 1
    assert row(organization, "state, failures") == ("active", 1)
    assert events(organization, "token.refresh_failed") == 1
    # A token that still holds is used meanwhile.
    provider.before = lambda call: None
    connect(scope="orders")
    held = resolve(organization, keyring)
    age(organization, 20)
    provider.before = lambda call: (500, {})
    with pytest.raises(Unavailable):
        resolve(organization, keyring)
    assert resolve(organization, keyring) == held
