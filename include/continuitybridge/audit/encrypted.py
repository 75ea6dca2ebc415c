"""The audit trail's encrypted columns: each person's key is under the organization's data key, and what names him
under his own."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import dataclass
from uuid import UUID

from continuitybridge import database
from continuitybridge.audit import subjects
from continuitybridge.audit.recording import ABOUT
from continuitybridge.vault.columns import EncryptedColumn, Row, Skipped
from continuitybridge.vault.keyring import Cipher


@dataclass(frozen=True, slots=True)
class NameColumn(EncryptedColumn):
    """The fingerprint by which a person is found by his name."""

    def open(self, keys: Cipher, organization_id: UUID, row: Row, *, objects: bool) -> bool:
        """It does not open; the key that it was made with has to be there."""
        keys.matches(organization_id, b"", row[self.column][: subjects.FINGERPRINT_BYTES])
        return False

    def reseal(self, keys: Cipher, organization_id: UUID, row: Row) -> bytes | None:
        """Made anew from his name, which stands in any event of his. He may have acted under the current key
        already, as another subject: then this one's is marked by its id, so that both are found."""
        subject_id = row["subject_id"]
        with database.tenant(organization_id) as connection:
            name = subjects.name_of(connection, organization_id, subject_id, keys)
            if name is None:
                return None
            fresh = keys.fingerprint(organization_id, name.encode())
            taken = connection.execute(
                "SELECT FROM bridge.audit_subjects"
                " WHERE organization_id = %s AND fingerprint = %s AND subject_id <> %s",
                (organization_id, fresh, subject_id),
            ).fetchone()
        return fresh if taken is None else fresh + subject_id.bytes

    def stale(self) -> str:
        return "substring({c} FROM 1 FOR 4) <> %(version)s"


@dataclass(frozen=True, slots=True)
class _OfAPerson(EncryptedColumn):
    """What is under the key of a person. It stays as it is when the organization's key changes."""

    def reseal(self, keys: Cipher, organization_id: UUID, row: Row) -> bytes | None:
        return None

    def stale(self) -> str:
        return "false"


class PersonalColumn(_OfAPerson):
    """Who acted."""

    __slots__ = ()

    def open(self, keys: Cipher, organization_id: UUID, row: Row, *, objects: bool) -> bool:
        if row["sealed_key"] is None:
            raise Skipped
        person = subjects.opened(organization_id, row["subject_id"], row["sealed_key"], keys)
        person.open(row["event_id"], row[self.column])
        return False


class AboutColumn(_OfAPerson):
    """Whom an event is about, within its details."""

    __slots__ = ()

    def open(self, keys: Cipher, organization_id: UUID, row: Row, *, objects: bool) -> bool:
        if row["sealed_key"] is None or not isinstance(row[self.column].get(ABOUT), str):
            raise Skipped
        person = subjects.opened(organization_id, UUID(row["target"]), row["sealed_key"], keys)
        person.open(row["event_id"], b64decode(row[self.column][ABOUT]))
        return False


_KEY_OF = (
    "(SELECT s.sealed_key FROM bridge.audit_subjects s WHERE s.organization_id = t.organization_id"
    " AND s.subject_id{}) AS sealed_key"
)

COLUMNS = (
    EncryptedColumn(
        "audit_subjects",
        "sealed_key",
        ("subject_id",),
        subjects.KEY_PURPOSE,
        lambda row: str(row["subject_id"]),
        writer="platform",
    ),
    NameColumn(
        "audit_subjects", "fingerprint", ("subject_id",), "", lambda row: str(row["subject_id"]), writer="platform"
    ),
    PersonalColumn(
        "audit_events",
        "personal",
        ("seq",),
        subjects.PERSONAL_PURPOSE,
        lambda row: str(row["event_id"]),
        more=("event_id", "subject_id", _KEY_OF.format(" = t.subject_id")),
    ),
    AboutColumn(
        "audit_events",
        "details",
        ("seq",),
        subjects.PERSONAL_PURPOSE,
        lambda row: str(row["event_id"]),
        more=("event_id", "target", _KEY_OF.format("::text = t.target AND t.details ->> 'about' IS NOT NULL")),
    ),
)
