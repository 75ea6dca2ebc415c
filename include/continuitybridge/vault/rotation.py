"""Rotating keys while everything runs.

The master key: a new one is put before the old one in the file, every data key is wrapped anew by it, and the old
one leaves the file. Killed at any moment, it goes on where it was when it is called again; until then both keys
are there and everything opens. A process that began with the old key finds the new one in the file then.

A data key: the organization gets a new version. Everybody encrypts under it within `keyring.REFRESH_S`; what was
encrypted before opens under the version that it names.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from uuid import UUID

from continuitybridge import database
from continuitybridge.audit import record
from continuitybridge.errors import BridgeError, ConfigurationError
from continuitybridge.settings import Settings, get_settings
from continuitybridge.vault import master
from continuitybridge.vault.keyring import ROTATION_LOCK, Keyring

CHUNK = 50


@dataclass(frozen=True, slots=True)
class MasterRotated:
    """`former` are the keys that left the file: keep a copy of them as long as backups made under them."""

    key_id: str
    former: tuple[str, ...]
    rewrapped: int


@dataclass(frozen=True, slots=True)
class KeyState:
    """A version of an organization's data key. `problem` says why it does not open; None when it does."""

    organization: str
    version: int
    master_key_id: str
    problem: str | None


def rotate_master_key(settings: Settings | None = None) -> MasterRotated:
    """Make a new master key and wrap every data key by it, or go on with a rotation that was interrupted. When
    this returns, nothing needs the former key any more but backups."""
    settings = settings or get_settings()
    file = settings.master_key_path
    keys = [master.load_or_create(file), *master.load_all(file)[1:]]
    if len(keys) == 1:
        with database.platform() as connection:
            # Who makes a data key at this moment has read the file before, or will read it after.
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (ROTATION_LOCK,))
            keys = [master.MasterKey(secrets.token_bytes(32)), *master.load_all(file)]
            master.store(file, keys)
    current = keys[0]
    keyring = Keyring(current, file)
    rewrapped = 0
    while done := _rewrap_some(keyring, current.key_id):
        rewrapped += done
    with database.platform() as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (ROTATION_LOCK,))
        left = connection.execute(
            "SELECT count(*) FROM bridge.data_keys WHERE master_key_id <> %s", (current.key_id,)
        ).fetchall()
        if left != [(0,)]:
            raise BridgeError("another rotation goes on: call again")
        master.store(file, [current])
    return MasterRotated(current.key_id, tuple(key.key_id for key in keys[1:]), rewrapped)


def rotate_data_key(organization_id: UUID, *, by: str) -> int:
    """Give the organization a new version of its data key; returns it."""
    keyring = Keyring.open()
    with database.platform() as connection:
        version = keyring.create_key(connection, organization_id)
        keys = keyring.read(connection, organization_id)
        details = {"version": version}
        record(connection, organization_id, "data_key.rotated", str(version), details=details, by=by, keys=keys)
    keyring.forget(organization_id)
    return version


def check() -> list[KeyState]:
    """Every data key, and whether it opens under the master key's file."""
    keyring = Keyring.open()
    with database.platform() as connection:
        rows = connection.execute(
            "SELECT o.slug, k.organization_id, k.key_version, k.wrapped_key, k.master_key_id"
            " FROM bridge.data_keys k JOIN bridge.organizations o USING (organization_id)"
            " ORDER BY o.slug, k.key_version"
        ).fetchall()
    states = []
    for slug, organization_id, version, wrapped, key_id in rows:
        problem = None
        try:
            keyring.unwrap(organization_id, version, wrapped, key_id)
        except BridgeError as error:
            problem = error.detail
        states.append(KeyState(slug, version, key_id, problem))
    return states


def require_keys() -> None:
    """Raise `ConfigurationError`, naming the key that is needed, when a data key does not open: nothing should
    start that would take messages under keys that nobody has."""
    broken = [each for each in check() if each.problem is not None]
    if broken:
        first = broken[0]
        raise ConfigurationError(
            f"{len(broken)} data keys do not open, the first is version {first.version} of {first.organization}: "
            f"{first.problem}",
            field="BRIDGE_MASTER_KEY_FILE",
        )


def _rewrap_some(keyring: Keyring, key_id: str) -> int:
    with database.platform() as connection:
        rows = connection.execute(
            "SELECT organization_id, key_version FROM bridge.data_keys WHERE master_key_id <> %s"
            " ORDER BY organization_id, key_version LIMIT %s FOR UPDATE SKIP LOCKED",
            (key_id, CHUNK),
        ).fetchall()
        for organization_id, version in rows:
            keyring.rewrap(connection, organization_id, version)
        for organization_id in dict.fromkeys(row[0] for row in rows):
            keys = keyring.read(connection, organization_id)
            record(connection, organization_id, "master_key.rotated", key_id, keys=keys)
    return len(rows)
