"""Migrations of schema `bridge` (Alembic). They run as the tables' owner, beside Airflow's own.

The revision stands in `bridge.alembic_version`. `airflow db migrate` calls the same functions.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, create_engine
from sqlalchemy.pool import NullPool

from continuitybridge.database import urls

MIGRATIONS_DIR = Path(__file__).with_name("migrations")
SCHEMA = "bridge"
VERSION_TABLE = "alembic_version"

metadata = MetaData(schema=SCHEMA)
"""Empty on purpose: the tables are declared in SQL, in the migrations, and nowhere else."""


def config(url: str) -> Config:
    """Alembic's configuration for a database."""
    configuration = Config()
    configuration.set_main_option("script_location", str(MIGRATIONS_DIR).replace("%", "%%"))
    configuration.attributes["url"] = urls.for_sqlalchemy(url, "psycopg")
    return configuration


def upgrade(owner_url: str, revision: str = "heads") -> None:
    """Bring the schema to a revision. One transaction, one process at a time; running it again does nothing."""
    command.upgrade(config(owner_url), revision)


def downgrade(owner_url: str, revision: str) -> None:
    """Take the schema back to a revision; `base` drops every table of ours with its data."""
    command.downgrade(config(owner_url), revision)


def current_revision(owner_url: str) -> str | None:
    """The revision the schema is at; None when nothing was migrated."""
    engine = create_engine(urls.for_sqlalchemy(owner_url, "psycopg"), poolclass=NullPool)
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(
                connection, opts={"version_table": VERSION_TABLE, "version_table_schema": SCHEMA}
            )
            return context.get_current_revision()
    finally:
        engine.dispose()


def head_revision() -> str:
    """The newest revision that this version of the code knows."""
    return ScriptDirectory(str(MIGRATIONS_DIR)).get_heads()[0]


def is_current(owner_url: str) -> bool:
    """Whether the schema is at the newest revision."""
    return current_revision(owner_url) == head_revision()
