"""How many bytes of payloads each organization holds, measured.

What is accepted is counted by `allowance`; what goes, and what is made inside of flows, is seen here. Measured by
the maintenance DAG after retention removed what is over, and by `bridge quota measure` at any time.
"""

from __future__ import annotations

from uuid import UUID

from continuitybridge import database

# Lengths of what lies outside of its row are told without reading it. What was counted since the beginning stays
# counted: it may be in the sum too, and is found out the next time.
_MEASURE = """
WITH before AS (SELECT bytes FROM bridge.storage_use WHERE organization_id = %(organization)s),
held AS (
    SELECT coalesce(sum(octet_length(payload) + coalesce(octet_length(headers), 0)), 0) AS bytes
    FROM bridge.messages WHERE organization_id = %(organization)s
    UNION ALL
    SELECT coalesce(sum(coalesce(octet_length(payload), 0) + coalesce(octet_length(headers), 0)), 0)
    FROM bridge.settled_messages WHERE organization_id = %(organization)s
    UNION ALL
    SELECT coalesce(sum(size_bytes), 0) FROM bridge.payload_objects WHERE organization_id = %(organization)s
)
SELECT (SELECT sum(bytes) FROM held)::bigint, coalesce((SELECT bytes FROM before), 0)
"""
_WRITE = """
INSERT INTO bridge.storage_use AS s (organization_id, bytes, measured_at)
VALUES (%(organization)s, %(bytes)s, now())
ON CONFLICT (organization_id) DO UPDATE
SET bytes = greatest(0, %(bytes)s + s.bytes - %(before)s), measured_at = now()
RETURNING s.bytes
"""


def measure(organization_id: UUID) -> int:
    """Bytes that the organization holds, which count from now on. As the application role."""
    with database.tenant(organization_id) as connection:
        connection.execute("SET LOCAL statement_timeout = 0")
        [(held, before)] = connection.execute(_MEASURE, {"organization": organization_id}).fetchall()
    with database.tenant(organization_id) as connection:
        [(counted,)] = connection.execute(
            _WRITE, {"organization": organization_id, "bytes": held, "before": before}
        ).fetchall()
    return int(counted)


def measure_all() -> int:
    """Measure every organization; returns the bytes of all together."""
    with database.relay() as connection:
        found = connection.execute(
            "SELECT organization_id FROM bridge.organization_limits WHERE resource = 'storage_mb'"
        ).fetchall()
    return sum(measure(organization_id) for (organization_id,) in found)
