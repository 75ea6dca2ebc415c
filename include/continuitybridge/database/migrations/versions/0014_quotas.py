"""Quotas."""

from __future__ import annotations

from pathlib import Path

from alembic import op

from continuitybridge.database.migrations import script

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_RESOURCES = (
    *("flows", "versions_per_flow", "endpoints", "connections", "members", "environments"),
    *("runs_per_hour", "runs_per_day", "messages_per_hour", "messages_per_day"),
)


def upgrade() -> None:
    script.run(Path(__file__).with_suffix(".sql"))
    # What was allowed to those who are here stays allowed, until somebody says which tier they have.
    for table in ("organizations", "organization_limits"):
        op.execute(f"ALTER TABLE bridge.{table} NO FORCE ROW LEVEL SECURITY")
    op.execute("UPDATE bridge.organizations SET tier = 'enterprise'")
    for resource in _RESOURCES:
        op.execute(
            "INSERT INTO bridge.organization_limits (organization_id, resource, allowed)"  # noqa: S608
            f" SELECT organization_id, '{resource}', NULL FROM bridge.organizations"
        )
    for table in ("organizations", "organization_limits"):
        op.execute(f"ALTER TABLE bridge.{table} FORCE ROW LEVEL SECURITY")


def downgrade() -> None:
    script.run(Path(__file__).with_suffix(".down.sql"))
