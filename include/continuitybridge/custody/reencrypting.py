"""Bringing everything of an organization to its current data key, while everything runs.

Each row is decrypted, encrypted anew and put in its place unless it changed meanwhile; rows that somebody works on
are left for the next pass, so that nobody waits for this for longer than a row takes. There is no state: killed at
any moment, what was done is done, and the next call goes on with what still names another key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from psycopg import errors

from continuitybridge import database
from continuitybridge.custody import walking
from continuitybridge.custody.registry import COLUMNS
from continuitybridge.errors import BridgeError, Unavailable
from continuitybridge.vault.cipher import version_of
from continuitybridge.vault.columns import EncryptedColumn, Row
from continuitybridge.vault.keyring import Keyring
from continuitybridge.vault.rotation import tell

PASSES = 5
"""So often what was busy is looked for again."""
TOGETHER = 50
"""Rows of a transaction: so many are held at once, for some milliseconds."""


@dataclass(frozen=True, slots=True)
class Reencrypted:
    """`rows` were brought to key `version`. `left` still name another one: they did not open (`bridge vault
    verify` names them), were busy throughout, or were written meanwhile by a process that had not heard of the
    key."""

    version: int
    rows: int
    left: int


def reencrypt(
    organization_id: UUID, *, by: str, told: Callable[[EncryptedColumn, int], None] = lambda *_: None
) -> Reencrypted:
    """Encrypt everything of the organization under its current data key; `told` hears how many rows of a column
    were done. Keyed hashes of messages stay: they end by themselves. Any number may run at once. Raises `NotFound`
    when it has no key, `Unavailable` when the database or the payload store does not answer."""
    keyring = Keyring.open()
    keyring.forget(organization_id)
    version = version_of(keyring.encrypt(organization_id, "version", "", b""))
    done = 0
    columns = [each for each in COLUMNS if isinstance(each, EncryptedColumn) and each.stale() != "false"]
    for _ in range(PASSES):
        now = 0
        for column in columns:
            written = _pass(column, organization_id, keyring, version)
            told(column, written)
            now += written
        done += now
        left = sum(walking.count(each, organization_id, each.stale(), version=_bytes(version)) for each in columns)
        if left == 0 or now == 0:
            break
    details = {"version": version, "rows": done, "left": left}
    with database.platform() as connection:
        tell(connection, organization_id, "data_key.reencrypted", version, details, by, keyring)
    return Reencrypted(version, done, left)


def _pass(column: EncryptedColumn, organization_id: UUID, keyring: Keyring, version: int) -> int:
    written = 0
    for batch in walking.batches(column, organization_id, only=column.stale(), version=_bytes(version)):
        fresh = []
        for row in batch:
            try:
                sealed = column.reseal(keyring, organization_id, row)
            except Unavailable:
                raise
            except BridgeError:
                # One that does not open is counted among those that are left.
                continue
            if sealed is not None:
                fresh.append((row, sealed))
        if fresh:
            written += _write(column, organization_id, fresh)
    return written


def _write(column: EncryptedColumn, organization_id: UUID, fresh: list[tuple[Row, bytes]]) -> int:
    written = 0
    for start in range(0, len(fresh), TOGETHER):
        try:
            with walking.acting_as(column.writer, organization_id) as connection:
                for row, sealed in fresh[start : start + TOGETHER]:
                    written += walking.replace(connection, column, organization_id, row, sealed)
        except errors.UniqueViolation:
            # Somebody met the same person at this moment: the next pass sees it.
            continue
    return written


def _bytes(version: int) -> bytes:
    return version.to_bytes(4, "big")
