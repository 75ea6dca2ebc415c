"""Accounts: organizations of one customer or consultancy together, how many they may be, and how many ecosystems
and systems all of them together may have. The platform's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from uuid import UUID

import psycopg
from psycopg.rows import class_row

from continuitybridge import database
from continuitybridge.audit import record, tolerating
from continuitybridge.errors import ConfigurationError, Conflict, NotFound
from continuitybridge.organizations.limits import MOST_THINGS, check_limit

_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")


@dataclass(frozen=True, slots=True)
class Account:
    """A limit of None: unlimited. `organizations` are the slugs of those that belong to it."""

    account: str
    name: str
    max_organizations: int | None
    max_ecosystems: int | None
    max_systems: int | None
    organizations: list[str]


def put(
    account: str,
    name: str,
    *,
    max_organizations: int | None,
    max_ecosystems: int | None = None,
    max_systems: int | None = None,
) -> Account:
    """Make an account, or change one; what is beyond a lower limit stays. Its organizations are told, except those
    that are being deleted. Raises `ConfigurationError`."""
    if not _NAME.fullmatch(account):
        raise ConfigurationError(
            f"account {account!r} is not valid: lower-case letters, digits and hyphens, beginning with a letter",
            field="account",
            value=account,
        )
    if not name.strip():
        raise ConfigurationError("name must not be empty", field="name", value=name)
    limits = {
        "max_organizations": max_organizations,
        "max_ecosystems": max_ecosystems,
        "max_systems": max_systems,
    }
    for field, limit in limits.items():
        check_limit(field, limit, MOST_THINGS)
    with database.platform() as connection:
        connection.execute(
            "INSERT INTO bridge.accounts (account, name, max_organizations, max_ecosystems, max_systems)"
            " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (account) DO UPDATE SET name = excluded.name,"
            " max_organizations = excluded.max_organizations, max_ecosystems = excluded.max_ecosystems,"
            " max_systems = excluded.max_systems",
            (account, name.strip(), *limits.values()),
        )
        belonging = connection.execute(
            "SELECT organization_id FROM bridge.organizations WHERE account = %s AND status <> 'deleting'"
            " ORDER BY organization_id",
            (account,),
        ).fetchall()
        for (organization_id,) in belonging:
            # One trail that was tampered with must not keep the others' limits from being set.
            with tolerating(connection, organization_id, "organization.account_limited"):
                record(connection, organization_id, "organization.account_limited", account, details=limits)
    return by_name(account)


def accounts() -> list[Account]:
    """Every account, by name."""
    with database.platform() as connection, connection.cursor(row_factory=class_row(Account)) as cursor:
        cursor.execute(
            "SELECT a.account, a.name, a.max_organizations, a.max_ecosystems, a.max_systems,"
            " array(SELECT o.slug FROM bridge.organizations o"
            " WHERE o.account = a.account ORDER BY o.slug) AS organizations"
            " FROM bridge.accounts a ORDER BY a.account"
        )
        return cursor.fetchall()


def by_name(account: str) -> Account:
    """Raises `NotFound`."""
    for each in accounts():
        if each.account == account:
            return each
    raise NotFound(f"no account {account!r}", field="account", value=account)


def assign(organization_id: UUID, account: str | None) -> None:
    """Have the organization belong to an account; None: to none. The same again changes nothing, whatever the
    account's limit is by now. Raises `NotFound`, `QuotaExceeded` (`organizations`)."""
    try:
        with database.platform() as connection:
            changed = connection.execute(
                "UPDATE bridge.organizations SET account = %s"
                " WHERE organization_id = %s AND account IS DISTINCT FROM %s",
                (account, organization_id, account),
            ).rowcount
            if changed:
                record(connection, organization_id, "organization.account_changed", account or "")
    except psycopg.errors.ForeignKeyViolation:
        raise NotFound(f"no account {account!r}", field="account", value=account) from None


def remove(account: str) -> None:
    """Raises `NotFound`; `Conflict` while organizations belong to it."""
    try:
        with database.platform() as connection:
            removed = connection.execute("DELETE FROM bridge.accounts WHERE account = %s", (account,)).rowcount
    except psycopg.errors.ForeignKeyViolation:
        raise Conflict(
            f"organizations belong to the account {account!r}", field="account", value=account
        ) from None
    if not removed:
        raise NotFound(f"no account {account!r}", field="account", value=account)
