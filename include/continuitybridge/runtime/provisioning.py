"""The step between an empty database and a platform: roles, migrations, first accounts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import psycopg
from psycopg import sql

from continuitybridge.database import migrate
from continuitybridge.database.connections import owner_url
from continuitybridge.errors import Unavailable
from continuitybridge.runtime import keys
from continuitybridge.runtime.environment import airflow_environment, process_environment
from continuitybridge.runtime.supervisor import Supervisor, tail
from continuitybridge.settings import Settings, project_root


@dataclass(frozen=True, slots=True)
class Account:
    """A user of Airflow's sign-in, to be made when absent. `role` is one of Airflow's roles."""

    username: str
    first_name: str
    last_name: str
    email: str
    role: str
    password: str


def provision(settings: Settings, accounts: Sequence[Account]) -> bool:
    """Migrate Airflow's, FAB's and our tables, make roles and accounts; False when nothing was to do.

    Importing Airflow takes seconds, so what was done is remembered and compared with the revisions in the
    database, which also tells when somebody exchanged it. An account is made once: one that was deleted since
    stays deleted. Raises `Unavailable` with the end of the log.
    """
    memory = settings.state_dir / "run" / "provisioned.json"
    before: dict[str, Any] = {}
    with suppress(FileNotFoundError, ValueError):
        before = json.loads(memory.read_text())
    made = set(before.get("accounts", ())) if before.get("database") == _database(settings) else set()
    missing = [account for account in accounts if account.username not in made]
    if not missing and before.get("revisions") == _revisions(settings):
        return False
    log = Supervisor(settings).log_of("provision")
    with log.open("wb") as stream:
        result = subprocess.run(
            [sys.executable, "-m", "continuitybridge.airflow.provision"],
            input=json.dumps([asdict(account) for account in missing]).encode(),
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=process_environment(settings),
            cwd=project_root(),
            check=False,
        )
    if result.returncode:
        raise Unavailable(f"migrations or first accounts failed; the end of {log}:\n{tail(log, 15)}")
    made |= {account.username for account in missing}
    after = {"database": _database(settings), "revisions": _revisions(settings), "accounts": sorted(made)}
    keys.write_private(memory, json.dumps(after))
    return True


def _database(settings: Settings) -> str:
    """Changes when the database is another one."""
    with psycopg.connect(owner_url(settings)) as connection:
        found = connection.execute(
            "SELECT system_identifier || '/' || oid FROM pg_control_system(), pg_database "
            "WHERE datname = current_database()"
        )
        return str(found.fetchall()[0][0])


def _revisions(settings: Settings) -> dict[str, str | None]:
    """What the version tables say, and what the installed code would bring them to."""
    found: dict[str, str | None] = {
        "apache-airflow": version("apache-airflow"),
        "apache-airflow-providers-fab": version("apache-airflow-providers-fab"),
        "bridge": migrate.current_revision(owner_url(settings)),
        "bridge wanted": migrate.head_revision(),
    }
    airflow = airflow_environment(settings)["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
    with psycopg.connect("postgresql" + airflow[airflow.index("://") :]) as connection:
        for table in ("alembic_version", "alembic_version_fab"):
            if connection.execute("SELECT to_regclass(%s)", (f"public.{table}",)).fetchone() != (None,):
                query = sql.SQL("SELECT max(version_num) FROM {}").format(sql.Identifier("public", table))
                row = connection.execute(query).fetchone()
                found[table] = row[0] if row else None
    return found
