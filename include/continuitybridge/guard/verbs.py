"""Blocks and policies of the guard: listing, setting, lifting. Every change is audited; one that holds for the
whole platform stands in the trail of every organization."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import class_row

from continuitybridge import database
from continuitybridge.audit import TrailDamaged, record
from continuitybridge.errors import ConfigurationError, NotFound
from continuitybridge.guard import limiter, network
from continuitybridge.guard.known import EVERYWHERE, Mode
from continuitybridge.vault.keyring import Keyring

log = logging.getLogger(__name__)

MAX_ALLOWED = 200
MAX_BLOCK_DAYS = 3_650


@dataclass(frozen=True, slots=True)
class Block:
    """An address that is refused, until a time or until it is lifted (None). `times` counts blocks that came one
    after the other. A block that is over is remembered for a week."""

    address: str
    reason: str
    times: int
    blocked_at: datetime
    until: datetime | None
    blocked_by: str


@dataclass(frozen=True, slots=True)
class Policy:
    """An organization's settings of the guard; None: as the platform's settings say. `allowed` are addresses and
    networks that may always send to its webhooks."""

    mode: Mode | None = None
    block_bots: bool | None = None
    allowed: Sequence[str] = ()
    webhooks_limit: str | None = None
    api_limit: str | None = None


def list_blocks(organization_id: UUID | None) -> list[Block]:
    """Blocks at an organization's webhooks, or everywhere (None): newest first, those that are over too."""
    with _of(organization_id) as connection, connection.cursor(row_factory=class_row(Block)) as cursor:
        cursor.execute(
            "SELECT address, reason, times, blocked_at, until, blocked_by FROM bridge.guard_blocks"
            " WHERE organization_id = %s ORDER BY blocked_at DESC, address LIMIT 1000",
            (organization_id or EVERYWHERE,),
        )
        return cursor.fetchall()


def block(
    organization_id: UUID | None, address: str, *, reason: str = "", for_: timedelta | None = None, by: str
) -> Block:
    """Refuse an address at an organization's webhooks, or everywhere (None); `for_` None: until it is lifted. Of
    IPv6 it is the network of 64 bits. Raises `ConfigurationError`."""
    account = _account(address)
    if for_ is not None and not timedelta(0) < for_ <= timedelta(days=MAX_BLOCK_DAYS):
        raise ConfigurationError(f"a block lasts up to {MAX_BLOCK_DAYS} days", field="for", value=str(for_))
    with _of(organization_id) as connection:
        connection.execute(
            "INSERT INTO bridge.guard_blocks (organization_id, address, reason, until, blocked_by)"
            " VALUES (%s, %s, %s, now() + %s, %s) ON CONFLICT (organization_id, address) DO UPDATE"
            " SET reason = excluded.reason, blocked_at = now(), until = excluded.until,"
            " blocked_by = excluded.blocked_by",
            (organization_id or EVERYWHERE, account, reason, for_, by),
        )
        _record(connection, organization_id, "guard_block.added", account, {"reason": reason}, by)
    return next(each for each in list_blocks(organization_id) if each.address == account)


def lift(organization_id: UUID | None, address: str, *, by: str) -> None:
    """Take a block away, and that it ever was: every process lets the address in within a second or two, and the
    next block is a first one. Raises `NotFound`."""
    account = _account(address)
    with _of(organization_id) as connection:
        gone = connection.execute(
            "DELETE FROM bridge.guard_blocks WHERE organization_id = %s AND address = %s",
            (organization_id or EVERYWHERE, account),
        ).rowcount
        if not gone:
            raise NotFound(f"{account} is not blocked", field="address", value=address)
        _record(connection, organization_id, "guard_block.lifted", account, {}, by)


def policy(organization_id: UUID) -> Policy:
    """An organization's settings."""
    with (
        database.tenant(organization_id) as connection,
        connection.cursor(row_factory=class_row(Policy)) as cursor,
    ):
        cursor.execute(
            "SELECT mode, block_bots, allowed, webhooks_limit, api_limit FROM bridge.guard_policies"
            " WHERE organization_id = %s",
            (organization_id,),
        )
        return cursor.fetchone() or Policy()


def set_policy(
    organization_id: UUID, *, mode: Mode | None, block_bots: bool | None, allowed: Sequence[str], by: str
) -> Policy:
    """Say how the guard stands before an organization's webhooks. Raises `ConfigurationError`."""
    if mode not in (None, "enforce", "detect", "off"):
        raise ConfigurationError("mode is enforce, detect or off", field="mode", value=mode)
    if len(allowed) > MAX_ALLOWED:
        raise ConfigurationError(f"at most {MAX_ALLOWED} networks are allowed", field="allowed")
    try:
        found = [str(each) for each in network.networks(tuple(allowed))]
    except ValueError as error:
        raise ConfigurationError(str(error), field="allowed", value=list(allowed)) from None
    with database.tenant(organization_id) as connection:
        connection.execute(
            "INSERT INTO bridge.guard_policies (organization_id, mode, block_bots, allowed)"
            " VALUES (%s, %s, %s, %s) ON CONFLICT (organization_id) DO UPDATE"
            " SET mode = excluded.mode, block_bots = excluded.block_bots,"
            " allowed = excluded.allowed",
            (organization_id, mode, block_bots, found),
        )
        details = {"mode": mode, "block_bots": block_bots, "allowed": found}
        record(connection, organization_id, "guard_policy.changed", "webhooks", details=details, by=by)
    return policy(organization_id)


def set_limits(organization_id: UUID, *, webhooks: str | None, api: str | None, by: str) -> Policy:
    """Give an organization limits of its own, as the settings write them; None: those of the settings. The
    platform's to do. Raises `ConfigurationError`."""
    for name, text in (("webhooks_limit", webhooks), ("api_limit", api)):
        try:
            limiter.parsed(text)
        except ValueError as error:
            raise ConfigurationError(f"{error}: write it as 200/minute", field=name, value=text) from None
    with database.platform() as connection:
        connection.execute(
            "INSERT INTO bridge.guard_policies (organization_id, webhooks_limit, api_limit) VALUES (%s, %s, %s)"
            " ON CONFLICT (organization_id) DO UPDATE SET webhooks_limit = excluded.webhooks_limit,"
            " api_limit = excluded.api_limit",
            (organization_id, webhooks, api),
        )
        details = {"webhooks": webhooks, "api": api}
        record(connection, organization_id, "guard_policy.changed", "limits", details=details, by=by)
    return policy(organization_id)


def _account(address: str) -> str:
    found = network.read(address.strip().removesuffix("/64"))
    if found is None:
        raise ConfigurationError("an address is an IPv4 or IPv6 address", field="address", value=address)
    return network.account(found)


@contextmanager
def _of(organization_id: UUID | None) -> Iterator[psycopg.Connection[Any]]:
    if organization_id is None:
        with database.platform() as connection:
            yield connection
    else:
        with database.tenant(organization_id) as connection:
            yield connection


def _record(
    connection: Any, organization_id: UUID | None, action: str, target: str, details: dict[str, Any], by: str
) -> None:
    if organization_id is not None:
        record(connection, organization_id, action, target, details=details, by=by)
        return
    keys = Keyring.open()
    # In one order, as each waits for the end of its trail. Keys of one that is being deleted may be gone.
    rows = connection.execute(
        "SELECT organization_id FROM bridge.organizations WHERE status <> 'deleting' ORDER BY organization_id"
    ).fetchall()
    for (each,) in rows:
        try:
            with connection.transaction():
                record(connection, each, action, target, details={**details, "everywhere": True}, by=by, keys=keys)
        except TrailDamaged as error:
            # One trail that was tampered with must not keep the platform from being guarded.
            log.error("organization %s is not told of %s %s: %s", each, action, target, error.detail)
