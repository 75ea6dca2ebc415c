"""Retiring data keys: a version goes when everything was seen to open without it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from continuitybridge import database
from continuitybridge.custody.verifying import Verified, verify
from continuitybridge.errors import Conflict
from continuitybridge.inbox import encrypted as inbox
from continuitybridge.vault.keyring import Keyring
from continuitybridge.vault.rotation import tell

AFTER_S = 3_600
"""A version is kept so long after it was followed: a process that had not heard of the next one may have written
under it. A worker whose api-server does not answer goes on for ten minutes."""


@dataclass(frozen=True, slots=True)
class Retired:
    """The versions that are gone, and those that are kept: why, and the columns that need them."""

    versions: tuple[int, ...]
    kept: dict[int, str]


def retire(organization_id: UUID, *, by: str, after_s: float = AFTER_S) -> Retired:
    """Delete the organization's data keys that nothing needs: all that is encrypted, the objects of the payload
    store too, opens without them, and they were followed `after_s` ago.

    What was given out under them and is not kept here ends: addresses at which the sender of a message looks up
    its state. Backups made before hold the keys they need. Raises `Unavailable` as `verify`.
    """
    keyring = Keyring.open()
    keyring.forget(organization_id)
    gone: list[int] = []
    kept: dict[int, str] = {}
    for version, followed_at, is_old in _followed(organization_id, after_s):
        if not is_old:
            kept[version] = f"followed at {followed_at:%Y-%m-%d %H:%M} UTC, which is less than {after_s:g} s ago"
            continue
        without = keyring.export(organization_id).without(organization_id, version)
        needed = [each for each in verify(organization_id, without, objects="all") if each.broken]
        if not needed:
            # What moves from table to table (a replay) may have passed the look by while it was under the old key.
            again = verify(organization_id, without, objects="all", columns=inbox.COLUMNS)
            needed = [each for each in again if each.broken]
        if needed:
            kept[version] = "; ".join(map(_told, needed))
            continue
        _delete(organization_id, version, keyring, by)
        keyring.forget(organization_id)
        gone.append(version)
    return Retired(tuple(gone), kept)


def _followed(organization_id: UUID, after_s: float) -> list[tuple[int, datetime, bool]]:
    """Versions that are not the current one: when the next was made, and whether that is long enough ago."""
    with database.platform() as connection:
        return connection.execute(
            "SELECT key_version, next, next <= now() - make_interval(secs => %s) FROM ("
            " SELECT key_version, lead(created_at) OVER (ORDER BY key_version) AS next"
            " FROM bridge.data_keys WHERE organization_id = %s) AS found"
            " WHERE next IS NOT NULL ORDER BY key_version",
            (after_s, organization_id),
        ).fetchall()


def _told(each: Verified) -> str:
    assert each.first is not None  # noqa: S101  (something is broken)
    return f"{each.broken} of {each.table}.{each.column}, the first is {each.first.key}: {each.first.problem}"


def _delete(organization_id: UUID, version: int, keyring: Keyring, by: str) -> None:
    with database.platform() as connection:
        deleted = connection.execute(
            "DELETE FROM bridge.data_keys WHERE organization_id = %s AND key_version = %s AND key_version <"
            " (SELECT max(key_version) FROM bridge.data_keys WHERE organization_id = %s)",
            (organization_id, version, organization_id),
        ).rowcount
        if not deleted:
            raise Conflict(f"version {version} is the current one, or gone already")
        tell(connection, organization_id, "data_key.retired", version, {}, by, keyring)
