"""Synchronous connections: one pool per role and process, one transaction per use."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol
from uuid import UUID

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout
from pydantic import SecretStr

from continuitybridge.database import refusals
from continuitybridge.errors import ConfigurationError, Unavailable
from continuitybridge.settings import Settings, get_settings

Role = Literal["app", "relay", "platform"]
Connection = psycopg.Connection[tuple[Any, ...]]

CONNECT_TIMEOUT_S = 10.0
"""How long a caller waits for a free connection before `Unavailable`."""

KEY_CONNECTIONS = 2
"""Connections of a process that nothing but data keys are read by."""

RECONNECT_EVERY_S = 0.5
"""How long between two attempts to connect while somebody waits for a connection."""

_KEEPALIVE: dict[str, Any] = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "connect_timeout": 10,
}
_SET_TENANT = "SELECT set_config('bridge.organization_id', %s, true), set_config('bridge.user_name', %s, true)"

_lock = threading.Lock()
_pools: dict[tuple[str, str], ConnectionPool[Connection]] = {}
_left_behind: list[object] = []


def _after_fork_in_child() -> None:
    # The parent's sockets must not be used here, nor closed in an orderly way (that would end the parent's
    # sessions). Keeping a reference prevents finalizers from trying.
    global _lock
    _lock = threading.Lock()
    _left_behind.append(dict(_pools))
    _pools.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def role_url(role: Role, settings: Settings | None = None) -> str:
    """The connection URL of a role; raises `ConfigurationError` naming the setting that is missing."""
    settings = settings or get_settings()
    configured: dict[Role, SecretStr | None] = {
        "app": settings.database_app_url,
        "relay": settings.database_relay_url,
        "platform": settings.database_platform_url,
    }
    url = configured[role]
    if url is None:
        name = f"BRIDGE_DATABASE_{role.upper()}_URL"
        raise ConfigurationError(
            f"{name} is not set; `make run` writes it to {settings.state_dir / 'bridge.env'}", field=name
        )
    return url.get_secret_value()


def owner_url(settings: Settings | None = None) -> str:
    """The connection URL of the tables' owner, for migrations: from the environment, else from
    `<state_dir>/keys/owner.env`. Raises `ConfigurationError`."""
    settings = settings or get_settings()
    if settings.database_owner_url is not None:
        return settings.database_owner_url.get_secret_value()
    path = settings.keys_dir / "owner.env"
    url = read_env(path).get("BRIDGE_DATABASE_OWNER_URL")
    if url is None:
        raise ConfigurationError(
            f"BRIDGE_DATABASE_OWNER_URL is set neither in the environment nor in {path}",
            field="BRIDGE_DATABASE_OWNER_URL",
        )
    return url


def read_env(path: Path) -> dict[str, str]:
    """The `KEY=value` lines of a file; an absent file has none."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {key.strip(): value.strip().strip("'\"") for key, value in pairs}


def _pool(role: Role, use: str | None = None) -> ConnectionPool[Connection]:
    settings = get_settings()
    key = (use or role, role_url(role))
    size = settings.database_pool_size if use is None else min(KEY_CONNECTIONS, settings.database_pool_size)
    with _lock:
        pool = _pools.get(key)
        if pool is None:
            pool = _pools[key] = _make_pool(key[0], key[1], size)
    return pool


def hung_up(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Whether the server has ended a connection that waits for nothing: then there is something to read. Asks
    nobody, so that it costs microseconds; a peer that vanished without a word is for TCP to notice."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _make_pool(name: str, url: str, size: int) -> ConnectionPool[Connection]:
    """A pool that serves at once when the server is back. Left to itself the library tries again after ever longer
    pauses, and finds out about one dead connection a pause: a process that had five of them when the server was
    restarted would refuse its callers for longer than they wait."""

    def check(connection: Connection) -> None:
        if hung_up(connection):
            connection.close()
            pool.check()
            raise psycopg.OperationalError("the server has ended the connection")

    def keep_trying(pool: ConnectionPool[Connection]) -> None:
        if pool.get_stats()["requests_waiting"]:
            pool.check()

    pool = ConnectionPool(
        url,
        min_size=0,
        max_size=size,
        timeout=CONNECT_TIMEOUT_S,
        max_idle=120.0,
        check=check,
        reconnect_timeout=RECONNECT_EVERY_S,
        reconnect_failed=keep_trying,
        kwargs={"application_name": f"bridge-{name}", **_KEEPALIVE},
        name=f"bridge-{name}",
        open=True,
    )
    return pool


def close_pools() -> None:
    """Close every pool of this process (at exit, and between tests that change servers)."""
    with _lock:
        pools = list(_pools.values())
        _pools.clear()
    for pool in pools:
        pool.close(timeout=2.0)


class After(Protocol):
    """Something to say once a transaction is committed: `send` gets its connection, in autocommit mode, if there
    is anything (truth value). It must not raise."""

    def __bool__(self) -> bool: ...

    def send(self, connection: psycopg.Connection[Any]) -> None: ...


@contextmanager
def _transaction(role: Role, after: After | None = None, use: str | None = None) -> Iterator[Connection]:
    try:
        with _pool(role, use).connection() as connection:
            with connection.transaction():
                yield connection
            if after:
                connection.autocommit = True
                after.send(connection)
                connection.autocommit = False
    except PoolTimeout as error:
        raise Unavailable(f"no database connection within {CONNECT_TIMEOUT_S:g} s") from error
    except psycopg.OperationalError as error:
        # Lost connections, shutdowns, deadlocks: nothing was committed unless the loss fell on the commit
        # itself, which nobody can tell apart. Doing it again is right for callers with an idempotent verb.
        raise Unavailable("the database did not finish the transaction", sqlstate=error.sqlstate) from error
    except psycopg.DatabaseError as error:
        refusals.reraise(error)


@contextmanager
def tenant(
    organization_id: UUID | None, user_name: str | None = None, *, after: After | None = None
) -> Iterator[Connection]:
    """One transaction as the application role, confined to one organization by row-level security, and what is to
    be said `after` its commit.

    The organization and the user are set for this transaction only, so that the pooled connection bears no
    tenant afterwards, whatever happened. Without an organization no rows are visible, except the memberships
    of `user_name` and the organizations they name. Raises `Unavailable` (transient) when the database does
    not answer; nothing is committed then, unless the connection broke during the commit.
    """
    with _transaction("app", after) as connection:
        connection.execute(_SET_TENANT, ("" if organization_id is None else str(organization_id), user_name or ""))
        yield connection


@contextmanager
def relay(*, after: After | None = None) -> Iterator[Connection]:
    """One transaction as the role that moves messages across organizations, and what is to be said `after` its
    commit. Nothing that serves a person's request may use it. Errors as `tenant`."""
    with _transaction("relay", after) as connection:
        yield connection


@contextmanager
def platform() -> Iterator[Connection]:
    """One transaction as the role that manages organizations, memberships and data keys; it sees no message,
    flow or connection. Errors as `tenant`."""
    with _transaction("platform") as connection:
        yield connection


@contextmanager
def keys() -> Iterator[Connection]:
    """As `platform`, for data keys, on connections that nothing else uses: they are read in the middle of other
    transactions, and whoever has one of these waits for no other. Errors as `tenant`."""
    with _transaction("platform", use="keys") as connection:
        yield connection


def listen(channels: Sequence[str], *, timeout_s: float | None = None) -> Iterator[psycopg.Notify]:
    """Notifications of these channels, on a connection of its own, as they come; ends after `timeout_s`
    without one.

    At most once: what was sent while nobody listened, or while the connection was down, is not seen. A
    listener therefore looks at the tables once after it began and every now and then. Raises `Unavailable`.
    """
    try:
        with psycopg.connect(
            role_url("relay"), autocommit=True, **{"application_name": "bridge-listen", **_KEEPALIVE}
        ) as connection:
            for channel in channels:
                connection.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel)))
            while True:
                seen = False
                for notify in connection.notifies(timeout=timeout_s, stop_after=1):
                    seen = True
                    yield notify
                if not seen:
                    return
    except psycopg.OperationalError as error:
        raise Unavailable("the database does not answer", sqlstate=error.sqlstate) from error
