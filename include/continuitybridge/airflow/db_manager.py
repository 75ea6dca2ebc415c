"""Our migrations as part of `airflow db migrate`. They run under the owner's role and URL, not Airflow's, and keep
their version in `bridge.alembic_version`.

`airflow db reset` leaves our tables alone unless BRIDGE_RESET_TABLES=yes: they hold messages that others believe
delivered. `airflow db-manager downgrade continuitybridge.airflow.db_manager.BridgeDBManager` works as usual.
"""

from __future__ import annotations

import os
from typing import Any

from airflow.utils.db_manager import BaseDBManager

from continuitybridge.database import migrate
from continuitybridge.database.connections import owner_url

RESET_VARIABLE = "BRIDGE_RESET_TABLES"


class BridgeDBManager(BaseDBManager):
    """See the module. Named in `[database] external_db_managers`."""

    metadata = migrate.metadata
    migration_dir = str(migrate.MIGRATIONS_DIR)
    alembic_file = ""
    version_table_name = f"{migrate.SCHEMA}.{migrate.VERSION_TABLE}"
    revision_heads_map: dict[str, str] = {}  # noqa: RUF012  (as the base class declares it)

    @property
    def supports_table_dropping(self) -> bool:  # type: ignore[override]
        return os.environ.get(RESET_VARIABLE) == "yes"

    def get_alembic_config(self) -> Any:
        return migrate.config(owner_url())

    def get_current_revision(self) -> str | None:
        return migrate.current_revision(owner_url())

    def check_migration(self) -> bool:
        return migrate.is_current(owner_url())

    def create_db_from_orm(self) -> None:
        # The base class makes tables from the metadata and says that they are migrated: ours are declared in SQL.
        migrate.upgrade(owner_url())

    def initdb(self, use_migration_files: bool = False) -> None:
        self.upgradedb()

    def upgradedb(
        self,
        to_revision: str | None = None,
        from_revision: str | None = None,
        show_sql_only: bool = False,
        use_migration_files: bool = False,
    ) -> None:
        """Bring schema `bridge` to `to_revision` (default: the newest)."""
        self._refuse_sql(show_sql_only)
        migrate.upgrade(owner_url(), to_revision or "heads")
        self.log.info("Schema bridge is at revision %s", self.get_current_revision())

    def downgrade(self, to_revision: str, from_revision: str | None = None, show_sql_only: bool = False) -> None:
        """Take schema `bridge` back to `to_revision`; `base` drops every table of ours with its data."""
        self._refuse_sql(show_sql_only)
        migrate.downgrade(owner_url(), to_revision)
        self.log.info("Schema bridge is at revision %s", self.get_current_revision())

    def drop_tables(self, connection: Any) -> None:
        """What `airflow db reset` calls."""
        if not self.supports_table_dropping:
            self.log.warning(
                "The tables of schema bridge were left as they are: they hold messages. %s=yes drops them.",
                RESET_VARIABLE,
            )
            return
        migrate.downgrade(owner_url(), "base")

    @staticmethod
    def _refuse_sql(show_sql_only: bool) -> None:
        if show_sql_only:
            raise SystemExit("the migrations of schema bridge are SQL files: read them in database/migrations")
