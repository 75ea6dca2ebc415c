"""How many bytes of payloads each organization holds, measured.

What is accepted is counted by `allowance`; what goes, and what is made inside of flows, is seen here. Measured by
the maintenance DAG after retention removed what is over, and by `bridge quota measure` at any time.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from continuitybridge import database

# Measuring begins: room that processes hold from before is neither given back nor used on (`allowance`), as only
# what they filled of it is found. What is taken from now on stays counted: it may be in the sum too, and is found
# out the next time.
_BEGIN = """
INSERT INTO bridge.storage_use AS s (organization_id, bytes, measured_at)
VALUES (%(organization)s, 0, clock_timestamp())
ON CONFLICT (organization_id) DO UPDATE SET measured_at = clock_timestamp()
RETURNING s.bytes, s.measured_at
"""
# Lengths of what lies outside of its row are told without reading it.
_MEASURE = """
SELECT sum(bytes)::bigint FROM (
    SELECT coalesce(sum(octet_length(payload) + coalesce(octet_length(headers), 0)), 0) AS bytes
    FROM bridge.messages WHERE organization_id = %(organization)s
    UNION ALL
    SELECT coalesce(sum(coalesce(octet_length(payload), 0) + coalesce(octet_length(headers), 0)), 0)
    FROM bridge.settled_messages WHERE organization_id = %(organization)s
    UNION ALL
    SELECT coalesce(sum(size_bytes), 0) FROM bridge.payload_objects WHERE organization_id = %(organization)s
) held
"""
# Of two that measure at once the one that began last is right.
_WRITE = """
UPDATE bridge.storage_use SET bytes = greatest(0, %(bytes)s + bytes - %(before)s)
WHERE organization_id = %(organization)s AND measured_at = %(began)s
RETURNING bytes
"""


def measure(organization_id: UUID) -> int:
    """Bytes that the organization holds, which count from now on. As the application role."""
    facts: dict[str, Any] = {"organization": organization_id}
    with database.tenant(organization_id) as connection:
        [(facts["before"], facts["began"])] = connection.execute(_BEGIN, facts).fetchall()
    with database.tenant(organization_id) as connection:
        connection.execute("SET LOCAL statement_timeout = 0")
        [(facts["bytes"],)] = connection.execute(_MEASURE, facts).fetchall()
    with database.tenant(organization_id) as connection:
        counted = connection.execute(_WRITE, facts).fetchone()
    return int(facts["bytes"] if counted is None else counted[0])


def measure_all() -> int:
    """Measure every organization; returns the bytes of all together."""
    with database.relay() as connection:
        found = connection.execute(
            "SELECT organization_id FROM bridge.organization_limits WHERE resource = 'storage_mb'"
        ).fetchall()
    return sum(measure(organization_id) for (organization_id,) in found)
