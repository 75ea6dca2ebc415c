"""Searching an organization's trail."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from continuitybridge import database
from continuitybridge.audit import subjects
from continuitybridge.audit.recording import ABOUT
from continuitybridge.vault.cipher import DecryptionFailed
from continuitybridge.vault.keyring import Cipher

MAX_PAGE = 1_000
ERASED = "(erased)"
"""The target of an event about a person who was erased."""
ALTERED = "(altered)"
"""Whoever an event names that was altered or planted: his name was not sealed for it."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events: all that is given must hold. `action` is a whole one or what it begins with up to the dot
    (`connection`), `actor` a person's name, `since` and `until` bound the time."""

    action: str | None = None
    target: str | None = None
    environment: str | None = None
    actor: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `actor` and `address` are None where the platform acted by itself, and where the person was
    erased (`erased`). `hash` is hexadecimal."""

    seq: int
    event_id: UUID
    at: datetime
    action: str
    target: str
    environment: str | None
    actor_kind: str
    actor: str | None
    address: str | None
    erased: bool
    details: Mapping[str, Any]
    hash: str


_SEARCH = """
SELECT seq, event_id, at, action, target, environment, actor_kind, subject_id, personal, details,
       encode(hash, 'hex')
FROM bridge.audit_events
WHERE organization_id = %(organization)s AND seq < %(before)s
  AND (%(action)s::text IS NULL OR action = %(action)s OR split_part(action, '.', 1) = %(action)s)
  AND (%(target)s::text IS NULL OR target = %(target)s)
  AND (%(environment)s::text IS NULL OR environment = %(environment)s)
  AND (%(subjects)s::uuid[] IS NULL OR subject_id = ANY (%(subjects)s))
  AND (%(since)s::timestamptz IS NULL OR at >= %(since)s)
  AND (%(until)s::timestamptz IS NULL OR at < %(until)s)
ORDER BY seq DESC LIMIT %(limit)s
"""


def search(
    organization_id: UUID, wanted: Filter, *, keys: Cipher, before: int | None = None, limit: int = 100
) -> list[Event]:
    """Events, newest first; `before` (a `seq`) goes on where a page ended."""
    with database.tenant(organization_id) as connection:
        acting = None
        if wanted.actor is not None:
            acting = subjects.ids_of_name(connection, organization_id, wanted.actor, keys)
        rows = connection.execute(
            _SEARCH,
            {
                "organization": organization_id,
                "before": 2**62 if before is None else before,
                "action": wanted.action,
                "target": wanted.target,
                "environment": wanted.environment,
                "subjects": acting,
                "since": wanted.since,
                "until": wanted.until,
                "limit": min(limit, MAX_PAGE),
            },
        ).fetchall()
        named = {row[7] for row in rows if row[7] is not None} | {UUID(row[4]) for row in rows if ABOUT in row[9]}
        people = subjects.known(connection, organization_id, named, keys)
    events = []
    for seq, event_id, at, action, target, environment, kind, subject_id, personal, details, digest in rows:
        if ABOUT in details:
            about = people.get(UUID(target))
            sealed = b64decode(details.pop(ABOUT))
            target = ERASED if about is None else _said(about, event_id, sealed)["name"]
        event = Event(
            seq,
            event_id,
            at,
            action,
            target,
            environment,
            kind,
            None,
            None,
            subject_id is not None,
            details,
            digest,
        )
        person = people.get(subject_id)
        if person is not None:
            said = _said(person, event_id, personal)
            event = replace(event, actor=said["name"], address=said["address"], erased=False)
        events.append(event)
    return events


def _said(person: subjects.Subject, event_id: UUID, sealed: bytes) -> Mapping[str, Any]:
    try:
        return person.open(event_id, sealed)
    except DecryptionFailed:
        return {"name": ALTERED, "address": None}


def every(organization_id: UUID, wanted: Filter, *, keys: Cipher) -> Iterator[Event]:
    """All events that the filter finds, newest first, read page by page."""
    before: int | None = None
    while True:
        page = search(organization_id, wanted, keys=keys, before=before, limit=MAX_PAGE)
        yield from page
        if len(page) < MAX_PAGE:
            return
        before = page[-1].seq
