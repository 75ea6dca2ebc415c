"""Emptying the tables of an organization that is being deleted, in transactions of bounded size."""

from __future__ import annotations

from collections.abc import Callable
from graphlib import TopologicalSorter
from uuid import UUID

from continuitybridge import database
from continuitybridge.inbox.objects import open_store

ROWS = 1_000
"""Rows (of partitioned tables: messages) in one transaction."""
OBJECTS = 100
KEPT = ("organizations", "deletions")

_TABLES = """
SELECT c.relname FROM pg_catalog.pg_class c
WHERE c.relnamespace = 'bridge'::pg_catalog.regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND EXISTS (SELECT FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = c.oid AND a.attname = 'organization_id')
"""
_REFERENCES = """
SELECT f.relname, t.relname FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_class f ON f.oid = k.conrelid JOIN pg_catalog.pg_class t ON t.oid = k.confrelid
WHERE k.contype = 'f' AND k.connamespace = 'bridge'::pg_catalog.regnamespace AND f.oid <> t.oid
"""


def tables() -> list[str]:
    """Every table with rows of organizations, by the database's own catalogue: those that refer first."""
    with database.platform() as connection:
        names = {row[0] for row in connection.execute(_TABLES)} - set(KEPT)
        references = connection.execute(_REFERENCES).fetchall()
    order = TopologicalSorter({name: set[str]() for name in names})
    for referring, referred in references:
        if referring in names and referred in names:
            order.add(referred, referring)
    return list(order.static_order())


def remove_objects(organization_id: UUID, step: Callable[[str, int], None]) -> None:
    """Remove what the organization has in the payload store: each object before its row, so that none is left that
    nobody knows. Raises `Unavailable`."""
    while True:
        with database.relay() as connection:
            rows = connection.execute(
                "SELECT object_id, key FROM bridge.payload_objects WHERE organization_id = %s LIMIT %s FOR UPDATE",
                (organization_id, OBJECTS),
            ).fetchall()
            open_store().delete([row[1] for row in rows])
            connection.execute(
                "DELETE FROM bridge.payload_objects WHERE organization_id = %s AND object_id = ANY(%s)",
                (organization_id, [row[0] for row in rows]),
            )
        if not rows:
            return
        step("payload_objects", len(rows))


def remove_rows(organization_id: UUID, step: Callable[[str, int], None]) -> None:
    """Empty every table for an organization that is being deleted; `step` hears of each transaction (table, rows)
    after its commit. Goes over the tables until there was nothing in any: what was under way may still write."""
    found = True
    while found:
        found = False
        for table in tables():
            while removed := _remove(organization_id, table):
                found = True
                step(table, removed)


def _remove(organization_id: UUID, table: str) -> int:
    with database.platform() as connection:
        [(removed,)] = connection.execute(
            "SELECT bridge.remove_rows(%s, %s, %s)", (organization_id, table, ROWS)
        ).fetchall()
    return int(removed)
