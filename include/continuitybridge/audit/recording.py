"""Writing an event."""

from __future__ import annotations

import logging
import secrets
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import orjson
import psycopg
from uuid6 import uuid7

from continuitybridge import database
from continuitybridge.actor import Actor, current_actor
from continuitybridge.audit import subjects
from continuitybridge.errors import BridgeError
from continuitybridge.vault.cipher import DecryptionFailed
from continuitybridge.vault.keyring import Cipher, Keyring

log = logging.getLogger(__name__)


class TrailDamaged(BridgeError):
    """Nothing that is audited can be done until the trail is put right: it would not be told of."""

    code = "audit-trail-damaged"
    title = "The audit trail was tampered with"


ABOUT = "about"
"""In `details`: the name of the person that an event is about, whose id is its target, sealed by that person."""

_INSERT = """
INSERT INTO bridge.audit_events (organization_id, event_id, action, target, environment, actor_kind, subject_id,
                                 personal, details)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
"""


def record(
    connection: psycopg.Connection[Any],
    organization_id: UUID,
    action: str,
    target: str,
    *,
    environment: str | None = None,
    details: Mapping[str, Any] | None = None,
    about: str | None = None,
    by: str | None = None,
    keys: Cipher | None = None,
) -> UUID:
    """Append an event to the organization's trail, in the caller's transaction (application or platform role): it
    is there exactly when what it tells of is. Gives its id.

    `action` is `<noun>.<verb in the past>` (`connection.changed`), `target` names what it was done to. `details`
    are JSON data that name no person and hold no secret; where it was done to a person, that is `about`, and the
    `target` is of no account. `by` names who acts where the verb was told; else that is
    `actor.current_actor`. `keys` encrypts the name, where the process has no master key.

    Events of one organization wait for each other until the transaction ends, so call it last. Raises
    `TrailDamaged` when something stands already where the event belongs, or a person's key does not open.
    """
    actor = _actor(by)
    event_id = uuid7()
    said = dict(details or {})
    if about is not None:
        person = _person(connection, organization_id, about, keys)
        target = str(person.subject_id)
        said[ABOUT] = b64encode(person.seal(event_id, {"name": about})).decode()
    subject_id: UUID | None = None
    personal: bytes | None = None
    if actor.name is not None:
        subject = _person(connection, organization_id, actor.name, keys)
        subject_id = subject.subject_id
        personal = subject.seal(event_id, {"name": actor.name, "address": actor.address})
    said_json = orjson.dumps(said, default=str).decode()
    event = (event_id, action, target, environment, actor.kind, subject_id, personal, said_json)
    try:
        connection.execute(_INSERT, (organization_id, *event))
    except psycopg.errors.UniqueViolation as error:
        raise TrailDamaged(
            "the organization's audit trail was tampered with: an event stands where the next one belongs; "
            "`bridge audit verify` names it",
            organization_id=str(organization_id),
        ) from error
    return event_id


@contextmanager
def tolerating(
    connection: psycopg.Connection[Any],
    organization_id: UUID,
    action: str,
    what: type[BridgeError] = TrailDamaged,
) -> Iterator[None]:
    """Around a `record` that what it tells of must not hang on: in a savepoint of the caller's transaction. The
    log says that the trail does not tell, and why; any other error than `what` is raised."""
    try:
        with connection.transaction():
            yield
    except what as error:
        log.error("the trail of organization %s does not tell of %s: %s", organization_id, action, error.detail)


def _person(
    connection: psycopg.Connection[Any], organization_id: UUID, name: str, keys: Cipher | None
) -> subjects.Subject:
    try:
        return subjects.of_name(connection, organization_id, name, keys or Keyring.open())
    except DecryptionFailed as error:
        raise TrailDamaged(
            "the organization's audit trail was tampered with: the key of a person in it does not open; "
            "`bridge vault verify` names it",
            organization_id=str(organization_id),
        ) from error


def erase_person(organization_id: UUID, name: str, keys: Cipher) -> int:
    """Make unreadable what the trail says of a person, for ever, and tell of it in the same transaction; the chain
    goes on holding. In traces of messages "erased" stands for his name then, and beside what he made, changed or
    ended `erased-…`, the same for all of it and nobody else's. Addresses are his by which he accepted invitations.
    A membership, an API key that opens and an open invitation keep his name as long as he has them. Returns in how
    many places he stood; acting again, he is somebody new."""
    with database.tenant(organization_id) as connection:
        # Who was invited stands in the trail by his address, unless somebody else goes by it.
        addresses = connection.execute(
            "SELECT DISTINCT email FROM bridge.invitations i WHERE organization_id = %s AND accepted_by = %s"
            " AND NOT EXISTS (SELECT FROM bridge.memberships m"
            " WHERE m.organization_id = i.organization_id AND lower(m.user_name) = i.email)"
            " AND NOT EXISTS (SELECT FROM bridge.invitations o"
            " WHERE o.organization_id = i.organization_id AND lower(o.accepted_by) = i.email)",
            (organization_id, name),
        ).fetchall()
        ids = {
            each
            for known_as in {name, *(row[0] for row in addresses)}
            for each in subjects.ids_of_name(connection, organization_id, known_as, keys)
        }
    with database.platform() as connection:
        connection.execute("SET LOCAL statement_timeout = 0")
        [(messages,)] = connection.execute(
            "SELECT bridge.erase_from_traces(%s, %s)", (organization_id, name)
        ).fetchall()
        pseudonym = f"erased-{secrets.token_hex(6)}"
        [(rows,)] = connection.execute(
            "SELECT bridge.erase_from_rows(%s, %s, %s)", (organization_id, name, pseudonym)
        ).fetchall()
        erased = subjects.erase(connection, organization_id, sorted(ids))
        told = {"subjects": erased, "messages": messages, "rows": rows}
        record(connection, organization_id, "audit.person_erased", "", details=told, keys=keys)
    return int(erased + messages + rows)


def _actor(by: str | None) -> Actor:
    actor = current_actor()
    if by is None or by == actor.name:
        return actor
    if by.startswith("cli"):
        return Actor("command", by)
    # The platform passes on who it was told of (Airflow's page of required actions, say).
    return replace(actor, kind="user", name=by)
