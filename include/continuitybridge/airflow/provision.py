"""What has to be done to an empty (or older) database with Airflow's own code: migrations, roles, accounts. Run by
`bridge up` as `python -m continuitybridge.airflow.provision`, accounts as JSON on standard input.

One process for all of it: each of Airflow's commands takes seconds to import before it does anything.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
from airflow.utils import db
from airflow.utils.providers_configuration_loader import providers_configuration_loaded

from continuitybridge.airflow.roles import ensure_roles


@providers_configuration_loaded
def main() -> None:
    """Migrate Airflow's, FAB's and our tables, make the roles, make the accounts that do not exist."""
    accounts: list[dict[str, Any]] = json.load(sys.stdin)
    db.initdb()
    with get_application_builder() as builder:
        ensure_roles(builder.sm)
        ensure_roles(builder.sm)
        for account in accounts:
            add_account(builder.sm, account)


def add_account(security: Any, account: dict[str, Any]) -> None:
    """Make an account (keys: username, first_name, last_name, email, role, password) unless it exists."""
    if security.find_user(account["username"]):
        print(f"account {account['username']} exists")
        return
    role = security.find_role(account["role"])
    if role is None:
        names = sorted(role.name for role in security.get_all_roles())
        raise SystemExit(f"role {account['role']!r} does not exist; valid: {', '.join(names)}")
    user = security.add_user(
        account["username"],
        account["first_name"],
        account["last_name"],
        account["email"],
        role,
        account["password"],
    )
    if not user:
        raise SystemExit(f"account {account['username']} could not be made")
    print(f"account {account['username']} made with role {account['role']}")


if __name__ == "__main__":
    main()
    # Before it ended, Python would take all of Airflow's modules apart.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
