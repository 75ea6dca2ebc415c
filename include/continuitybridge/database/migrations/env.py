"""How Alembic runs our migrations: one transaction, one process at a time, on a connection of the owner."""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from continuitybridge.database import migrate

_LOCK = 4_201_917_002


def run() -> None:
    engine = create_engine(context.config.attributes["url"], poolclass=NullPool)
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            context.configure(
                connection=connection,
                target_metadata=migrate.metadata,
                version_table=migrate.VERSION_TABLE,
                version_table_schema=migrate.SCHEMA,
                include_schemas=True,
            )
            context.run_migrations()
            if connection.scalar(text("SELECT to_regproc('bridge.allow_removal') IS NOT NULL")):
                # Tables that were added get what lets an organization be deleted from them.
                connection.execute(text("SELECT bridge.allow_removal()"))
    finally:
        engine.dispose()


run()
