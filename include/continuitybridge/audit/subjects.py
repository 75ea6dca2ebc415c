"""The people in an organization's trail. What names a person is encrypted under a key of that person's, which
stands here under the organization's data key until the person is erased."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable
from typing import Any
from uuid import UUID

import orjson
import psycopg
from uuid6 import uuid7

from continuitybridge.errors import NotFound
from continuitybridge.vault.cipher import DataKey, DecryptionFailed, associated_data
from continuitybridge.vault.keyring import Cipher

Connection = psycopg.Connection[Any]

KEY_PURPOSE = "audit-subject"
PERSONAL_PURPOSE = "audit-personal"

FINGERPRINT_BYTES = 36
"""Of a stored fingerprint, so many count. What follows tells apart those of a person who met two data keys."""


class Subject:
    """A person who is not erased."""

    def __init__(self, organization_id: UUID, subject_id: UUID, key: bytes) -> None:
        self.organization_id = organization_id
        self.subject_id = subject_id
        self._key = DataKey(1, key)

    def seal(self, event_id: UUID, personal: dict[str, Any]) -> bytes:
        """Encrypt what an event says of the person; it opens in that event only."""
        return self._key.encrypt(orjson.dumps(personal), self._bound(event_id))

    def open(self, event_id: UUID, sealed: bytes) -> dict[str, Any]:
        """What `seal` encrypted; raises `DecryptionFailed`."""
        found: dict[str, Any] = orjson.loads(self._key.decrypt(sealed, self._bound(event_id)))
        return found

    def _bound(self, event_id: UUID) -> bytes:
        return associated_data(self.organization_id, PERSONAL_PURPOSE, str(event_id))


def of_name(connection: Connection, organization_id: UUID, name: str, keys: Cipher) -> Subject:
    """The person of that name, in the caller's transaction; made when first met."""
    fingerprint = keys.fingerprint(organization_id, name.encode())
    found = _by_fingerprint(connection, organization_id, fingerprint, keys)
    if found is None:
        subject_id, key = uuid7(), secrets.token_bytes(32)
        connection.execute(
            "INSERT INTO bridge.audit_subjects (organization_id, subject_id, fingerprint, sealed_key)"
            " VALUES (%s, %s, %s, %s) ON CONFLICT (organization_id, fingerprint) DO NOTHING",
            (
                organization_id,
                subject_id,
                fingerprint,
                keys.encrypt(organization_id, KEY_PURPOSE, str(subject_id), key),
            ),
        )
        # Another transaction may have met him at the same moment; its commit was waited for.
        found = _by_fingerprint(connection, organization_id, fingerprint, keys)
    assert found is not None  # noqa: S101  (inserted above)
    return found


def known(
    connection: Connection, organization_id: UUID, subject_ids: Iterable[UUID], keys: Cipher
) -> dict[UUID, Subject]:
    """Those of these people who are not erased, by id. Of one whose key was altered nothing opens."""
    rows = connection.execute(
        "SELECT subject_id, sealed_key FROM bridge.audit_subjects"
        " WHERE organization_id = %s AND subject_id = ANY (%s) AND sealed_key IS NOT NULL",
        (organization_id, list(subject_ids)),
    ).fetchall()
    return {row[0]: _opened_or_mute(organization_id, row[0], row[1], keys) for row in rows}


def _opened_or_mute(organization_id: UUID, subject_id: UUID, sealed_key: bytes, keys: Cipher) -> Subject:
    try:
        return opened(organization_id, subject_id, sealed_key, keys)
    except (DecryptionFailed, NotFound):
        # What stands of him is lost; the others, and the events, are not.
        return Subject(organization_id, subject_id, secrets.token_bytes(32))


def ids_of_name(connection: Connection, organization_id: UUID, name: str, keys: Cipher) -> list[UUID]:
    """The ids under which a person stands in the trail: one for each version of the data key that was current
    when he acted first under it."""
    rows = connection.execute(
        "SELECT subject_id, fingerprint FROM bridge.audit_subjects"
        " WHERE organization_id = %s AND fingerprint IS NOT NULL",
        (organization_id,),
    ).fetchall()
    data = name.encode()
    return [row[0] for row in rows if keys.matches(organization_id, data, row[1][:FINGERPRINT_BYTES])]


def name_of(connection: Connection, organization_id: UUID, subject_id: UUID, keys: Cipher) -> str | None:
    """A person's name, as any event of his says it; None for one who is erased or in none."""
    person = known(connection, organization_id, [subject_id], keys).get(subject_id)
    if person is None:
        return None
    row = connection.execute(
        "SELECT event_id, personal FROM bridge.audit_events WHERE organization_id = %s AND subject_id = %s"
        " LIMIT 1",
        (organization_id, subject_id),
    ).fetchone()
    if row is None:
        row = connection.execute(
            "SELECT event_id, decode(details ->> 'about', 'base64') FROM bridge.audit_events"
            " WHERE organization_id = %s AND target = %s AND details ->> 'about' IS NOT NULL LIMIT 1",
            (organization_id, str(subject_id)),
        ).fetchone()
    return None if row is None else str(person.open(*row)["name"])


def erase(connection: Connection, organization_id: UUID, subject_ids: Collection[UUID]) -> int:
    """Make unreadable, for ever, what the trail says of these people, in the caller's transaction (platform role);
    how many."""
    return connection.execute(
        "UPDATE bridge.audit_subjects SET sealed_key = NULL, fingerprint = NULL, erased_at = now()"
        " WHERE organization_id = %s AND subject_id = ANY (%s) AND erased_at IS NULL",
        (organization_id, list(subject_ids)),
    ).rowcount


def _by_fingerprint(
    connection: Connection, organization_id: UUID, fingerprint: bytes, keys: Cipher
) -> Subject | None:
    row = connection.execute(
        "SELECT subject_id, sealed_key FROM bridge.audit_subjects WHERE organization_id = %s AND fingerprint = %s",
        (organization_id, fingerprint),
    ).fetchone()
    return None if row is None else opened(organization_id, row[0], row[1], keys)


def opened(organization_id: UUID, subject_id: UUID, sealed_key: bytes, keys: Cipher) -> Subject:
    """A person by his row; raises `DecryptionFailed`."""
    return Subject(
        organization_id, subject_id, keys.decrypt(organization_id, KEY_PURPOSE, str(subject_id), sealed_key)
    )
