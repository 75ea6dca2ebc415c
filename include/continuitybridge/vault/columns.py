"""Which columns of the database hold what is encrypted, and how each opens.

Every capability declares those of its tables; `custody.registry` collects them, and a test compares them with the
database, so that none is forgotten when everything is proved to open, or brought to another key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from continuitybridge.vault.keyring import Cipher

Row = Mapping[str, Any]
Role = Literal["app", "relay", "platform"]


class Skipped(Exception):
    """There is nothing in this row to open: whoever it names was erased, say."""


@dataclass(frozen=True, slots=True)
class EncryptedColumn:
    """Ciphertext of the vault. `key` names a row within its organization, and is the order in which rows are
    walked; `purpose` and `place(row)` are what the ciphertext is bound to, `place` may need `more` (select-list
    items). `reader` and `writer` are the roles that may."""

    table: str
    column: str
    key: tuple[str, ...]
    purpose: str
    place: Callable[[Row], str]
    more: tuple[str, ...] = ()
    reader: Role = "app"
    writer: Role = "app"

    def open(self, keys: Cipher, organization_id: UUID, row: Row, *, objects: bool) -> bool:
        """Open it; returns whether an object of the payload store was opened for it, which is left alone without
        `objects`. Raises whatever is wrong, and `Skipped`."""
        keys.decrypt(organization_id, self.purpose, self.place(row), row[self.column])
        return False

    def reseal(self, keys: Cipher, organization_id: UUID, row: Row) -> bytes | None:
        """What to keep in its place under the current key; None where the row cannot be brought to it. Raises as
        `open`."""
        place = self.place(row)
        plaintext = keys.decrypt(organization_id, self.purpose, place, row[self.column])
        return keys.encrypt(organization_id, self.purpose, place, plaintext)

    def stale(self) -> str:
        """SQL: whether the column `c` names another key version than `%(version)s` (four bytes)."""
        return "substring({c} FROM 2 FOR 4) <> %(version)s"


@dataclass(frozen=True, slots=True)
class FingerprintColumn:
    """A keyed hash (`Cipher.fingerprint`). It does not open; the key that it was made with has to be there. It
    ends by itself, and is never brought to another key. `keyed`: SQL condition of the rows whose hash is one."""

    table: str
    column: str
    key: tuple[str, ...]
    keyed: str = "true"
    more: tuple[str, ...] = ()
    reader: Role = "app"

    def open(self, keys: Cipher, organization_id: UUID, row: Row, *, objects: bool) -> bool:
        """Raises `NotFound` when the key is not held."""
        keys.matches(organization_id, b"", row[self.column])
        return False
