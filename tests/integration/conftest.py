"""A real PostgreSQL of the test session's own: embedded, on a free port, bootstrapped and migrated, with its
state in a directory of its own. Every test makes its own organization, so that none shares state."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from continuitybridge import organizations
from continuitybridge.database import connections, migrate
from continuitybridge.database.bootstrap import bootstrap
from continuitybridge.database.embedded import EmbeddedPostgres
from continuitybridge.organizations import Organization
from continuitybridge.runtime.environment import process_environment
from continuitybridge.settings import Settings, get_settings
from continuitybridge.vault.keyring import Keyring


def free_port() -> int:
    """A port nobody listens on, below those that outgoing connections take by themselves."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@pytest.fixture(scope="session")
def state_dir() -> Iterator[Path]:
    """The session's `BRIDGE_STATE_DIR`."""
    directory = Path(tempfile.mkdtemp(prefix="bridge-test-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(state_dir: Path) -> Iterator[EmbeddedPostgres]:
    """The running server."""
    server = EmbeddedPostgres(state_dir / "postgres", free_port())
    server.initialise()
    # What tests kill are processes, never the machine: the operating system keeps what it was given.
    (server.data_dir / "postgresql.auto.conf").write_text("fsync = off\nfull_page_writes = off\n")
    server.start(die_with_parent=True)
    yield server
    connections.close_pools()
    server.stop()


@pytest.fixture(scope="session", autouse=True)
def settings(state_dir: Path, postgres: EmbeddedPostgres) -> Iterator[Settings]:
    """The settings of this process and its children, naming the session's server: bootstrapped and migrated."""
    before = {key: value for key, value in os.environ.items() if key.startswith("BRIDGE_")}
    for key in before.keys() - {"BRIDGE_EGRESS_ALLOW"}:
        del os.environ[key]
    os.environ["BRIDGE_STATE_DIR"] = str(state_dir)
    os.environ["BRIDGE_DATABASE_PORT"] = str(postgres.port)
    get_settings.cache_clear()
    bootstrap(postgres.admin_url, state_dir)
    migrate.upgrade(connections.owner_url())
    yield get_settings()
    for key in ("BRIDGE_STATE_DIR", "BRIDGE_DATABASE_PORT"):
        del os.environ[key]
    os.environ.update(before)
    get_settings.cache_clear()


@pytest.fixture(scope="session")
def airflow_user(settings: Settings) -> Callable[..., str]:
    """Makes an Airflow user of this name, with this address if there is one; gives the name."""
    engine = create_engine(
        process_environment(settings)["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"], poolclass=NullPool
    )
    from airflow.providers.fab.auth_manager.models import User

    User.metadata.create_all(engine)

    def make(name: str, email: str = "") -> str:
        with Session(engine) as session:
            session.add(User(username=name, email=email or f"{name}@users.example", first_name="A", last_name="B"))
            session.commit()
        return name

    return make


@pytest.fixture
def keyring(settings: Settings) -> Keyring:
    """The keyring of the session's master key."""
    return Keyring.open(settings)


@pytest.fixture
def make_organization(settings: Settings) -> Callable[[], Organization]:
    """Makes an organization of its own at each call, with all four environments."""

    def make() -> Organization:
        slug = f"org-{uuid4().hex[:12]}"
        return organizations.create(slug, f"Organization {slug}")

    return make


@pytest.fixture
def organization(make_organization: Callable[[], Organization]) -> Organization:
    """An organization for this test."""
    return make_organization()
