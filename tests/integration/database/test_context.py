"""Where an organization is set for a transaction: that it is, for whom, and that nothing of it stays on a
connection that is used again; and what is answered when there is no connection."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pydantic import SecretStr

from continuitybridge import database
from continuitybridge.database import aio, connections
from continuitybridge.errors import ConfigurationError, QuotaExceeded, Unavailable
from continuitybridge.organizations import Organization
from continuitybridge.settings import Settings

BEARS = "SELECT bridge.current_organization(), bridge.current_user_name(), pg_backend_pid()"
OVER_LIMIT = """
DO $$ BEGIN RAISE EXCEPTION 'no more' USING ERRCODE = 'BQ001',
DETAIL = '{"resource": "flows", "used": 5, "allowed": 5}'; END $$
"""
OVER_LIMIT_WITHOUT_FACTS = "DO $$ BEGIN RAISE EXCEPTION 'no more' USING ERRCODE = 'BQ001'; END $$"
END_MYSELF = "SELECT pg_terminate_backend(pg_backend_pid())"


def test_a_connection_bears_its_tenant_for_one_transaction(
    organization: Organization, one_connection: None
) -> None:
    with database.tenant(organization.organization_id, "anna") as connection:
        [(whose, who, first)] = connection.execute(BEARS)
        assert connection.execute("SELECT count(*) FROM bridge.environments").fetchone() == (4,)
    assert (whose, who) == (organization.organization_id, "anna")
    # The same connection, as whoever forgets to say for whom would find it.
    with connections._transaction("app") as connection:
        assert connection.execute(BEARS).fetchall() == [(None, None, first)]
        assert connection.execute("SELECT count(*) FROM bridge.environments").fetchone() == (0,)
    with database.tenant(organization.organization_id) as connection:
        assert connection.execute(BEARS).fetchall() == [(organization.organization_id, None, first)]
    with database.tenant(None, "bert") as connection:
        assert connection.execute(BEARS).fetchall() == [(None, "bert", first)]


async def test_a_coroutines_connection_bears_its_tenant_for_one_transaction(
    organization: Organization, one_connection: None
) -> None:
    async def bears(connection: aio.AsyncConnection) -> list[tuple[UUID | None, str | None, int]]:
        return await (await connection.execute(BEARS)).fetchall()  # type: ignore[return-value]

    async with aio.tenant(organization.organization_id, "anna") as connection:
        [(whose, who, first)] = await bears(connection)
        found = await (await connection.execute("SELECT count(*) FROM bridge.environments")).fetchone()
    assert (whose, who, found) == (organization.organization_id, "anna", (4,))
    async with aio._transaction("app") as connection:
        assert await bears(connection) == [(None, None, first)]
    async with aio.tenant(organization.organization_id) as connection:
        assert await bears(connection) == [(organization.organization_id, None, first)]
    async with aio.tenant(None, "bert") as connection:
        assert await bears(connection) == [(None, "bert", first)]


async def test_each_door_has_its_role_and_says_who_it_is() -> None:
    who = "SELECT current_user::text, current_setting('application_name')"
    doors = {"app": database.tenant(None), "relay": database.relay(), "platform": database.platform()}
    for role, door in doors.items():
        with door as connection:
            assert connection.execute(who).fetchone() == (f"bridge_{role}", f"bridge-{role}")
    doors_of_coroutines = {"app": aio.tenant(None), "relay": aio.relay(), "platform": aio.platform()}
    for role, opened in doors_of_coroutines.items():
        async with opened as of_coroutine:
            found = await (await of_coroutine.execute(who)).fetchone()
            assert found == (f"bridge_{role}", f"bridge-{role}")
    await aio.close_pools()
    alone = await aio.connect("relay", options="-c work_mem=5MB")
    assert alone.autocommit
    assert await (await alone.execute(who)).fetchone() == ("bridge_relay", "bridge-relay")
    assert await (await alone.execute("SHOW work_mem")).fetchone() == ("5MB",)
    await alone.close()
    named = await aio.connect("platform", application_name="trial")
    assert await (await named.execute(who)).fetchone() == ("bridge_platform", "trial")
    await named.close()


async def test_who_gets_no_connection_is_told_to_come_again(one_connection: None) -> None:
    began = time.monotonic()
    with database.tenant(None), pytest.raises(Unavailable, match=r"within 0\.3 s"), database.tenant(None):
        pass
    async with aio.tenant(None):
        with pytest.raises(Unavailable, match=r"within 0\.3 s"):
            async with aio.tenant(None):
                pass
    assert time.monotonic() - began < 5


async def test_what_breaks_off_is_told_with_its_state_and_other_errors_as_they_are(fresh: None) -> None:
    with pytest.raises(Unavailable) as broken, database.relay() as connection:
        connection.execute(END_MYSELF)
    assert broken.value.facts["sqlstate"] == "57P01"
    with pytest.raises(psycopg.errors.UndefinedTable), database.relay() as connection:
        connection.execute("SELECT * FROM bridge.nothing")
    with pytest.raises(Unavailable) as broken:
        async with aio.relay() as of_coroutine:
            await of_coroutine.execute(END_MYSELF)
    assert broken.value.facts["sqlstate"] == "57P01"
    with pytest.raises(psycopg.errors.UndefinedTable):
        async with aio.relay() as of_coroutine:
            await of_coroutine.execute("SELECT * FROM bridge.nothing")


async def test_the_databases_own_limits_are_typed_refusals(organization: Organization, fresh: None) -> None:
    used_up = pytest.raises(QuotaExceeded, match="quota of flows is used up: 5 of 5")
    with used_up as refused, database.tenant(organization.organization_id) as connection:
        connection.execute(OVER_LIMIT)
    assert refused.value.facts == {"field": "flows", "resource": "flows", "used": 5, "allowed": 5}
    with pytest.raises(QuotaExceeded):
        async with aio.tenant(organization.organization_id) as of_coroutine:
            await of_coroutine.execute(OVER_LIMIT)
    with pytest.raises(psycopg.DatabaseError, match="no more"), database.tenant(None) as connection:
        connection.execute(OVER_LIMIT_WITHOUT_FACTS)


class Telling:
    """Something to say after a commit."""

    def __init__(self, *said: str) -> None:
        self.said = said
        self.sent: list[bool] = []

    def __bool__(self) -> bool:
        return bool(self.said)

    def send(self, connection: psycopg.Connection[Any]) -> None:
        self.sent.append(connection.autocommit)
        connection.execute("SELECT 1")
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_what_is_to_be_said_is_said_after_the_commit_and_not_without_one(one_connection: None) -> None:
    for door in (lambda after: database.tenant(None, after=after), lambda after: database.relay(after=after)):
        telling, nothing = Telling("x"), Telling()
        with door(telling) as connection:
            assert not connection.autocommit
        assert telling.sent == [True]
        with pytest.raises(ZeroDivisionError), door(telling):
            raise ZeroDivisionError
        assert telling.sent == [True]
        with door(nothing) as connection:
            assert not connection.autocommit
        assert nothing.sent == []


async def test_who_listens_hears_what_is_said_on_his_channels() -> None:
    heard: list[tuple[str, str]] = []

    async def listen() -> None:
        async for notify in aio.listen(["trial_one", "trial_two"]):
            heard.append((notify.channel, notify.payload))

    def listeners() -> int:
        with database.relay() as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'bridge-listen'"
            ).fetchone()
        return int(row[0]) if row else 0

    async def until(what: Any) -> None:
        deadline = time.monotonic() + 10
        while not what():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)

    before = listeners()
    listening = asyncio.create_task(listen())
    await until(lambda: listeners() > before)

    def say() -> bool:
        with database.relay() as connection:
            for channel in ("trial_one", "trial_three", "trial_two"):
                connection.execute("SELECT pg_notify(%s, 'x')", (channel,))
        return len(heard) >= 2

    await until(say)
    assert set(heard) == {("trial_one", "x"), ("trial_two", "x")}
    listening.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await listening
    await until(lambda: listeners() == before)


def test_who_listens_for_a_time_hears_nothing_and_goes_on() -> None:
    began = time.monotonic()
    assert list(connections.listen(["trial_four"], timeout_s=0.2)) == []
    assert 0.1 < time.monotonic() - began < 5
    listening = connections.listen(["trial_five"], timeout_s=0.2)
    with psycopg.connect(connections.role_url("platform"), autocommit=True) as other:
        # Begins to listen at the first question; until then nothing is heard.
        assert list(listening) == []
        again = connections.listen(["trial_five"], timeout_s=5)
        threading.Timer(0.3, lambda: other.execute("NOTIFY trial_five, 'y'")).start()
        heard = next(again)
        again.close()  # type: ignore[attr-defined]
    assert (heard.channel, heard.payload) == ("trial_five", "y")


def test_who_listens_for_a_time_listens_so_long_after_each_that_he_heard() -> None:
    heard: list[str] = []
    with psycopg.connect(connections.role_url("relay"), autocommit=True) as other:

        def say(payload: str, after_s: float) -> threading.Timer:
            saying = threading.Timer(after_s, lambda: other.execute(f"NOTIFY trial_six, '{payload}'"))
            saying.start()
            return saying

        last = say("first", 0.3)
        for notify in connections.listen(["trial_six"], timeout_s=0.5):
            heard.append(notify.payload)
            last = say("second", 0.1) if len(heard) == 1 else say("late", 0.65)
        last.join()
    assert heard == ["first", "second"]


def test_who_listens_for_a_time_is_gone_so_long_after_what_he_heard_last() -> None:
    heard: list[str] = []
    with psycopg.connect(connections.role_url("relay"), autocommit=True) as other:
        saying = [
            threading.Timer(after_s, lambda said=payload: other.execute(f"NOTIFY trial_seven, '{said}'"))  # type: ignore[misc]
            for payload, after_s in (("first", 0.2), ("late", 1.6))
        ]
        for each in saying:
            each.start()
        for notify in connections.listen(["trial_seven"], timeout_s=1.0):
            heard.append(notify.payload)
        for each in saying:
            each.join()
    assert heard == ["first"]


def test_a_connection_that_the_server_ended_is_told_from_one_that_waits() -> None:
    with psycopg.connect(connections.role_url("platform"), autocommit=True) as connection:
        assert not connections.hung_up(connection)
        with psycopg.connect(connections.role_url("platform"), autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
        deadline = time.monotonic() + 5
        while not connections.hung_up(connection):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        connection.close()
        assert connections.hung_up(connection)


@pytest.mark.parametrize("role", ["app", "relay", "platform"])
def test_a_role_without_an_address_is_refused_by_its_settings_name(settings: Settings, role: Any) -> None:
    name = f"database_{role}_url"
    with pytest.raises(ConfigurationError, match=f"BRIDGE_{name.upper()} is not set.*/bridge\\.env$") as refused:
        connections.role_url(role, settings.model_copy(update={name: None}))
    assert refused.value.facts["field"] == f"BRIDGE_{name.upper()}"
    assert connections.role_url(role, settings.model_copy(update={name: SecretStr("x://y")})) == "x://y"


def test_the_owners_address_comes_from_the_settings_or_the_keys_directory(
    settings: Settings, tmp_path: Path
) -> None:
    own = settings.model_copy(update={"state_dir": tmp_path, "database_owner_url": None})
    with pytest.raises(ConfigurationError, match=r"BRIDGE_DATABASE_OWNER_URL .*owner\.env"):
        connections.owner_url(own)
    own.keys_dir.mkdir(parents=True)
    (own.keys_dir / "owner.env").write_text("BRIDGE_DATABASE_OWNER_URL='postgresql://u:p=q@h/d'\n")
    assert connections.owner_url(own) == "postgresql://u:p=q@h/d"
    given = own.model_copy(update={"database_owner_url": SecretStr("postgresql://other")})
    assert connections.owner_url(given) == "postgresql://other"


def test_a_file_of_settings_is_read_as_a_shell_would(tmp_path: Path) -> None:
    file = tmp_path / "some.env"
    assert connections.read_env(file) == {}
    file.write_text("# A=no\n  # B=no\nC = 'X'\nD=\"e=f=g\"\nno line of ours\n\nE=Xx\n")
    assert connections.read_env(file) == {"C": "X", "D": "e=f=g", "E": "Xx"}
