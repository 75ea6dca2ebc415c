"""The embedded server, the bootstrap on it and on servers of a user's own, and migrations up and down."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import secrets
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psycopg
import pytest

from continuitybridge.database import migrate, urls
from continuitybridge.database.bootstrap import ROLES, bootstrap
from continuitybridge.database.connections import read_env
from continuitybridge.database.embedded import EmbeddedPostgres
from continuitybridge.errors import ConfigurationError, Unavailable


def free_port() -> int:
    """A port nobody listens on, below those that outgoing connections take by themselves."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server of this module's own, in a directory that only its owner may enter."""
    parent = tmp_path_factory.mktemp("server") / "state"
    parent.mkdir(mode=0o700)
    embedded = EmbeddedPostgres(parent / "postgres", free_port())
    embedded.initialise()
    embedded.start(die_with_parent=True)
    yield embedded
    embedded.stop()


def bootstrapped_urls(state_dir: Path) -> dict[str, str]:
    return {**read_env(state_dir / "bridge.env"), **read_env(state_dir / "keys" / "owner.env")}


# -- the server ---------------------------------------------------------------------------------------------


def test_nobody_but_the_servers_user_may_read_its_data(server: EmbeddedPostgres) -> None:
    assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.password_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.data_dir.parent.stat().st_mode) & 0o066 == 0
    if os.geteuid() == 0:
        assert server.user is not None
        assert server.data_dir.stat().st_uid != 0
    else:
        assert server.user is None


def test_the_server_lets_nobody_in_without_the_password(server: EmbeddedPostgres) -> None:
    parts = {**urls.parse(server.admin_url), "password": "wrong"}
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(**parts)


def test_initialising_again_changes_nothing_and_a_new_port_is_taken_at_the_next_start(
    tmp_path: Path,
) -> None:
    first = EmbeddedPostgres(tmp_path / "pg", free_port())
    first.initialise()
    password = first.password_file.read_text()
    second = EmbeddedPostgres(tmp_path / "pg", free_port())
    second.initialise()
    assert second.password_file.read_text() == password
    second.start(die_with_parent=True)
    try:
        with psycopg.connect(second.admin_url) as connection:
            assert connection.execute("SHOW port").fetchone() == (str(second.port),)
            settings = ("fsync", "synchronous_commit", "full_page_writes", "data_checksums")
            for setting in settings:
                assert connection.execute("SELECT current_setting(%s)", (setting,)).fetchone() == ("on",)
    finally:
        second.stop()


def test_an_interrupted_initialisation_is_done_again(tmp_path: Path) -> None:
    left = tmp_path / "pg.new"
    left.mkdir()
    (left / "PG_VERSION").write_text("18")
    EmbeddedPostgres(tmp_path / "pg", 1).initialise()
    assert (tmp_path / "pg" / "global").is_dir()
    assert not left.exists()


def test_data_of_another_major_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pg").mkdir()
    (tmp_path / "pg" / "PG_VERSION").write_text("15\n")
    with pytest.raises(ConfigurationError, match="PostgreSQL 15"):
        EmbeddedPostgres(tmp_path / "pg", 1).initialise()


def test_a_busy_port_is_told_with_the_servers_own_words(server: EmbeddedPostgres, tmp_path: Path) -> None:
    other = EmbeddedPostgres(tmp_path / "pg", server.port)
    other.initialise()
    with pytest.raises(Unavailable, match=r"could not bind|Address already in use"):
        other.start(timeout_s=20)


def test_after_kill_9_the_server_starts_again_with_what_was_committed(tmp_path: Path) -> None:
    embedded = EmbeddedPostgres(tmp_path / "pg", free_port())
    embedded.initialise()
    embedded.start(die_with_parent=True)
    try:
        with psycopg.connect(embedded.admin_url, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS x")
            embedded.kill()
        embedded.start(die_with_parent=True)
        with psycopg.connect(embedded.admin_url) as connection:
            assert connection.execute("SELECT x FROM kept").fetchone() == (1,)
    finally:
        embedded.stop()


# -- bootstrap ----------------------------------------------------------------------------------------------


def test_bootstrapping_again_keeps_passwords_and_other_lines(server: EmbeddedPostgres, tmp_path: Path) -> None:
    (tmp_path / "bridge.env").write_text("BRIDGE_HTTP_PORT=8081\n# a comment\n")
    bootstrap(server.admin_url, tmp_path)
    first = bootstrapped_urls(tmp_path)
    assert {name for name in first if name.startswith("BRIDGE_DATABASE")} == {
        f"BRIDGE_DATABASE_{role.removeprefix('bridge_').upper()}_URL" for role in ROLES
    }
    assert first["BRIDGE_HTTP_PORT"] == "8081"
    assert first["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].startswith("postgresql+psycopg2://airflow:")
    bootstrap(server.admin_url, tmp_path)
    assert bootstrapped_urls(tmp_path) == first
    assert "# a comment" in (tmp_path / "bridge.env").read_text()
    for path in (tmp_path / "bridge.env", tmp_path / "keys" / "owner.env"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "OWNER" not in (tmp_path / "bridge.env").read_text()
    for name, url in first.items():
        if "://" in url:
            with psycopg.connect(url.replace("+psycopg2", "")) as connection:
                assert connection.info.dbname == "continuitybridge", name


def test_lost_files_are_made_again_with_new_passwords(server: EmbeddedPostgres, tmp_path: Path) -> None:
    bootstrap(server.admin_url, tmp_path / "lost")
    bootstrap(server.admin_url, tmp_path / "new")
    old, new = bootstrapped_urls(tmp_path / "lost"), bootstrapped_urls(tmp_path / "new")
    assert old["BRIDGE_DATABASE_APP_URL"] != new["BRIDGE_DATABASE_APP_URL"]
    psycopg.connect(new["BRIDGE_DATABASE_APP_URL"]).close()


def test_a_role_of_ours_that_bypasses_row_level_security_is_refused(
    server: EmbeddedPostgres, tmp_path: Path
) -> None:
    bootstrap(server.admin_url, tmp_path)
    with psycopg.connect(server.admin_url, autocommit=True) as connection:
        connection.execute("ALTER ROLE bridge_app BYPASSRLS")
        try:
            with pytest.raises(ConfigurationError, match="bridge_app"):
                bootstrap(server.admin_url, tmp_path)
        finally:
            connection.execute("ALTER ROLE bridge_app NOBYPASSRLS")


@pytest.mark.parametrize("url", ["nonsense", "postgresql://u:very-secret@[::1", "postgresql://u:p@h/db?wrong=1"])
def test_an_address_that_is_none_is_refused_without_showing_it(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="BRIDGE_DATABASE_URL") as refused:
        bootstrap(url, tmp_path)
    assert "very-secret" not in str(refused.value)


def test_a_server_that_does_not_answer_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        bootstrap(f"postgresql://u:p@127.0.0.1:{free_port()}/postgres", tmp_path)


def test_a_role_that_may_make_roles_and_databases_suffices(tmp_path: Path) -> None:
    embedded = EmbeddedPostgres(tmp_path / "pg", free_port())
    embedded.initialise()
    embedded.start(die_with_parent=True)
    try:
        password = secrets.token_hex(8)
        with psycopg.connect(embedded.admin_url, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE dba LOGIN CREATEROLE CREATEDB PASSWORD '{password}'")
            connection.execute(f"CREATE ROLE poor LOGIN PASSWORD '{password}'")
        admin = urls.build({**urls.parse(embedded.admin_url), "user": "poor", "password": password})
        with pytest.raises(ConfigurationError, match="CREATEROLE"):
            bootstrap(admin, tmp_path / "state")
        admin = urls.build({**urls.parse(embedded.admin_url), "user": "dba", "password": password})
        for _ in range(2):
            bootstrap(admin, tmp_path / "state")
        found = bootstrapped_urls(tmp_path / "state")
        migrate.upgrade(found["BRIDGE_DATABASE_OWNER_URL"])
        with psycopg.connect(found["BRIDGE_DATABASE_PLATFORM_URL"]) as connection:
            assert connection.execute("SELECT count(*) FROM bridge.organizations").fetchone() == (0,)
        with psycopg.connect(found["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("+psycopg2", "")) as connection:
            connection.execute("CREATE TABLE of_airflow (x int)")
        with psycopg.connect(admin) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SET ROLE bridge_owner")
    finally:
        embedded.stop()


# -- migrations ---------------------------------------------------------------------------------------------


@pytest.fixture
def owner(server: EmbeddedPostgres, tmp_path: Path) -> Iterator[str]:
    bootstrap(server.admin_url, tmp_path)
    url = bootstrapped_urls(tmp_path)["BRIDGE_DATABASE_OWNER_URL"]
    yield url
    migrate.downgrade(url, "base")


def objects(owner: str) -> list[tuple[str, str]]:
    with psycopg.connect(owner) as connection:
        return connection.execute(
            "SELECT relkind::text, relname FROM pg_class WHERE relnamespace = 'bridge'::regnamespace"
            " UNION ALL SELECT 'f', proname FROM pg_proc WHERE pronamespace = 'bridge'::regnamespace"
            " ORDER BY 1, 2"
        ).fetchall()


def test_migrating_up_down_and_up_again(owner: str) -> None:
    assert migrate.current_revision(owner) is None
    assert not migrate.is_current(owner)
    migrate.upgrade(owner)
    assert migrate.current_revision(owner) == migrate.head_revision()
    assert migrate.is_current(owner)
    made = objects(owner)
    migrate.upgrade(owner)
    assert objects(owner) == made
    migrate.downgrade(owner, "base")
    assert migrate.current_revision(owner) is None
    assert {name for _, name in objects(owner)} == {"alembic_version", "alembic_version_pkc"}
    migrate.upgrade(owner)
    assert objects(owner) == made


def test_processes_that_migrate_at_once_do_it_once(owner: str) -> None:
    # Spawned, because Alembic keeps its context in module globals and a fork would share pools.
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(migrate.upgrade, [owner] * 3))
    assert migrate.is_current(owner)


def test_a_migration_that_fails_leaves_nothing(owner: str) -> None:
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute("CREATE TABLE bridge.refusals ()")
        with pytest.raises(Exception, match="refusals"):
            migrate.upgrade(owner)
        assert connection.execute("SELECT to_regclass('bridge.organizations')").fetchone() == (None,)
        connection.execute("DROP TABLE bridge.refusals")
    migrate.upgrade(owner)
    assert migrate.is_current(owner)
