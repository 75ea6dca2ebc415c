"""A trail that was tampered with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import LiteralString

import psycopg

from continuitybridge import database
from continuitybridge.organizations import Organization


@contextmanager
def planted_event(organization: Organization) -> Iterator[None]:
    """One stands where the next of its trail belongs: until it is taken away again, the trail takes none."""
    _as_owner(
        "INSERT INTO bridge.audit_events"
        " SELECT organization_id, seq + 1, gen_random_uuid(), at, action, 'planted', environment, actor_kind,"
        " subject_id, personal, details, hash, sha256('planted')"
        " FROM bridge.audit_events WHERE organization_id = %s ORDER BY seq DESC LIMIT 1",
        organization,
    )
    try:
        yield
    finally:
        _as_owner(
            "DELETE FROM bridge.audit_events WHERE organization_id = %s AND target = 'planted'", organization
        )


def _as_owner(statement: LiteralString, organization: Organization) -> None:
    with psycopg.connect(database.owner_url()) as connection:
        connection.execute("ALTER TABLE bridge.audit_events NO FORCE ROW LEVEL SECURITY, DISABLE TRIGGER USER")
        changed = connection.execute(statement, (organization.organization_id,)).rowcount
        connection.execute("ALTER TABLE bridge.audit_events ENABLE TRIGGER USER, FORCE ROW LEVEL SECURITY")
    assert changed == 1
