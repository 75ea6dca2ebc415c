"""Database, roles and rights: what stands before the first migration."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from continuitybridge.database import urls
from continuitybridge.database.connections import read_env
from continuitybridge.errors import ConfigurationError, Unavailable

DATABASE = "continuitybridge"
SCHEMA = "bridge"
MINIMUM_VERSION = 15

ROLES = ("bridge_owner", "bridge_app", "bridge_relay", "bridge_platform", "bridge_backup")
AIRFLOW = "airflow"

_OURS = {
    "search_path": "",
    "timezone": "UTC",
    "lock_timeout": "30s",
    # Whatever the server's default: a commit of ours is on disk when it returns.
    "synchronous_commit": "on",
}
_SETTINGS: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(ROLES, _OURS),
    "bridge_app": {**_OURS, "statement_timeout": "60s", "idle_in_transaction_session_timeout": "60s"},
    # A killed scheduler's workers may hold its session and advisory lock open; this frees them.
    AIRFLOW: {"search_path": "public", "timezone": "UTC", "idle_in_transaction_session_timeout": "8s"},
}

_ENV_KEYS = {
    "bridge_app": "BRIDGE_DATABASE_APP_URL",
    "bridge_relay": "BRIDGE_DATABASE_RELAY_URL",
    "bridge_platform": "BRIDGE_DATABASE_PLATFORM_URL",
    "bridge_owner": "BRIDGE_DATABASE_OWNER_URL",
    "bridge_backup": "BRIDGE_DATABASE_BACKUP_URL",
    AIRFLOW: "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
}
_IN_OWNER_ENV = ("bridge_owner", "bridge_backup")
_LOCK = 4_201_917_001


def bootstrap(admin_url: str, state_dir: Path) -> None:
    """Make the database, its roles (none may bypass row-level security) and schema `bridge`, and write their
    connection URLs: `<state_dir>/bridge.env` and, for owner and backup, `<state_dir>/keys/owner.env` (0600).

    Idempotent. `admin_url` names a superuser or a role that may create roles and databases (PostgreSQL 15 or
    later); it is used here only and stored nowhere. Passwords that are on file are kept; a role whose password
    is not on file, or not valid any more, gets a new one: two installations cannot share one server.
    Raises `ConfigurationError` (naming BRIDGE_DATABASE_URL) and `Unavailable`.
    """
    admin = urls.parse(admin_url)
    env_file, owner_file = state_dir / "bridge.env", state_dir / "keys" / "owner.env"
    known = {**read_env(env_file), **read_env(owner_file)}
    try:
        with psycopg.connect(**{"dbname": "postgres", **admin}, autocommit=True) as connection:
            _check_server(connection)
            connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
            _make_database(connection)
            passwords = {role: _make_role(connection, role, admin, known) for role in (*ROLES, AIRFLOW)}
            _grant_database(connection)
        with psycopg.connect(**{**admin, "dbname": DATABASE}, autocommit=True) as connection:
            _grant_public(connection)
        role_urls = {role: _url(admin, role, password) for role, password in passwords.items()}
        with psycopg.connect(role_urls["bridge_owner"], autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(SCHEMA)))
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"the role of BRIDGE_DATABASE_URL may not prepare the database: {error.diag.message_primary}; it "
            "needs CREATEROLE and CREATEDB",
            field="BRIDGE_DATABASE_URL",
        ) from None
    except psycopg.OperationalError as error:
        raise Unavailable(
            f"the database server does not answer: {str(error).strip().splitlines()[0]}",
            field="BRIDGE_DATABASE_URL",
        ) from None
    role_urls[AIRFLOW] = urls.for_sqlalchemy(role_urls[AIRFLOW], "psycopg2")
    write_env(env_file, {_ENV_KEYS[r]: u for r, u in role_urls.items() if r not in _IN_OWNER_ENV})
    write_env(owner_file, {_ENV_KEYS[r]: u for r, u in role_urls.items() if r in _IN_OWNER_ENV})


def write_env(path: Path, values: Mapping[str, str]) -> None:
    """Set these keys in an environment file (0600), atomically, keeping its other lines."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if line.split("=", 1)[0].strip() not in values]
    text = "\n".join([*kept, *(f"{key}={value}" for key, value in values.items())]) + "\n"
    if path.exists() and path.read_text() == text:
        return
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _check_server(connection: psycopg.Connection[Any]) -> None:
    major = connection.info.server_version // 10_000
    if major < MINIMUM_VERSION:
        raise ConfigurationError(
            f"the server of BRIDGE_DATABASE_URL is PostgreSQL {major}; {MINIMUM_VERSION} or later is needed",
            field="BRIDGE_DATABASE_URL",
        )


def _make_database(connection: psycopg.Connection[Any]) -> None:
    # The administrator owns it; our roles get rights on it. So nobody needs to become another role, which a
    # role with CREATEROLE alone may not do from PostgreSQL 16 on.
    row = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone()
    if row is None:
        connection.execute(
            sql.SQL("CREATE DATABASE {} ENCODING 'UTF8' TEMPLATE template0").format(sql.Identifier(DATABASE))
        )


def _make_role(
    connection: psycopg.Connection[Any], role: str, admin: Mapping[str, Any], known: Mapping[str, str]
) -> str:
    """Make or mend one role; returns its password."""
    name = sql.Identifier(role)
    row = connection.execute("SELECT rolsuper, rolbypassrls FROM pg_roles WHERE rolname = %s", (role,)).fetchone()
    password = _known_password(known.get(_ENV_KEYS[role]))
    if row is None:
        password = password or secrets.token_urlsafe(32)
        connection.execute(
            sql.SQL(
                "CREATE ROLE {} LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD {}"
            ).format(name, sql.Literal(password))
        )
    else:
        if any(row):
            raise ConfigurationError(
                f"role {role} exists and is superuser or bypasses row-level security: rename or alter it",
                field="BRIDGE_DATABASE_URL",
            )
        if password is None or not _password_holds(admin, role, password):
            password = password or secrets.token_urlsafe(32)
            connection.execute(sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(name, sql.Literal(password)))
    for setting, value in _SETTINGS[role].items():
        connection.execute(
            sql.SQL("ALTER ROLE {} SET {} = {}").format(name, sql.Identifier(setting), sql.Literal(value))
        )
    return password


def _known_password(url: str | None) -> str | None:
    if url is None:
        return None
    password = urls.parse(url).get("password")
    return str(password) if password else None


def _password_holds(admin: Mapping[str, Any], role: str, password: str) -> bool:
    try:
        with psycopg.connect(_url(admin, role, password), connect_timeout=10):
            return True
    except psycopg.OperationalError:
        return False


def _grant_database(connection: psycopg.Connection[Any]) -> None:
    database = sql.Identifier(DATABASE)
    connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
    roles = sql.SQL(", ").join(map(sql.Identifier, ROLES))
    connection.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, roles))
    connection.execute(
        sql.SQL("GRANT CREATE, TEMPORARY ON DATABASE {} TO {}").format(database, sql.Identifier("bridge_owner"))
    )
    connection.execute(
        sql.SQL("GRANT CONNECT, TEMPORARY ON DATABASE {} TO {}").format(database, sql.Identifier(AIRFLOW))
    )


def _grant_public(connection: psycopg.Connection[Any]) -> None:
    connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    connection.execute(sql.SQL("GRANT ALL ON SCHEMA public TO {}").format(sql.Identifier(AIRFLOW)))


def _url(admin: Mapping[str, Any], role: str, password: str) -> str:
    return urls.build({**admin, "user": role, "password": password, "dbname": DATABASE})
