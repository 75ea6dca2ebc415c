"""Our migrations behind Airflow's commands, on a database of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from continuitybridge.database import connections, migrate
from continuitybridge.database.bootstrap import bootstrap
from continuitybridge.database.embedded import EmbeddedPostgres
from continuitybridge.runtime.ports import free_port


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The owner's URL of a fresh, bootstrapped server without our tables."""
    with tempfile.TemporaryDirectory(prefix="bridge-migrate-") as name:
        postgres = EmbeddedPostgres(Path(name) / "postgres", free_port())
        postgres.initialise()
        postgres.start(die_with_parent=True)
        try:
            bootstrap(postgres.admin_url, Path(name))
            url = connections.read_env(Path(name) / "keys" / "owner.env")["BRIDGE_DATABASE_OWNER_URL"]
            yield url
        finally:
            postgres.stop()


@pytest.fixture
def manager(server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What Airflow makes of `[database] external_db_managers`."""
    from continuitybridge.airflow import db_manager

    monkeypatch.setattr(db_manager, "owner_url", lambda: server)
    return db_manager.BridgeDBManager(session=None)


def tables(server: str) -> set[str]:
    with psycopg.connect(server) as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'bridge'")
        return {name for (name,) in rows}


def test_airflows_migration_brings_ours_along_and_a_second_one_does_nothing(manager: Any, server: str) -> None:
    assert not manager.check_migration()
    manager.initdb()
    assert manager.check_migration()
    assert {"messages", "batches", "alembic_version"} <= tables(server)
    manager.upgradedb()
    assert manager.get_current_revision() == migrate.head_revision()


def test_a_reset_of_airflow_leaves_our_tables_unless_told(
    manager: Any, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.initdb()
    manager.drop_tables(None)
    assert "messages" in tables(server)
    monkeypatch.setenv("BRIDGE_RESET_TABLES", "yes")
    manager.drop_tables(None)
    assert "messages" not in tables(server)


def test_a_downgrade_goes_back_and_an_upgrade_comes_again(manager: Any, server: str) -> None:
    manager.initdb()
    manager.downgrade("base")
    assert manager.get_current_revision() is None
    assert "messages" not in tables(server)
    manager.initdb()
    assert "messages" in tables(server)


def test_airflow_accepts_the_manager(manager: Any) -> None:
    from airflow.utils.db_manager import RunDBManager

    RunDBManager._validate(type(manager))
