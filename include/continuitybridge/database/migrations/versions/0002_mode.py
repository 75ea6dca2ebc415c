"""Mode of a flow and of its messages: run by stream workers or in batches."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "ALTER TABLE bridge.flow_versions ADD COLUMN mode text NOT NULL"
        " GENERATED ALWAYS AS (coalesce(plan ->> 'mode', 'batch')) STORED"
    )
    for table in ("messages", "hand_overs"):
        # As its flow's version says when the message is accepted or replayed; a hand-over's is its message's.
        op.execute(
            f"ALTER TABLE bridge.{table} ADD COLUMN mode text NOT NULL DEFAULT 'batch'"
            " CHECK (mode IN ('stream', 'batch'))"
        )


def downgrade() -> None:
    for table in ("hand_overs", "messages", "flow_versions"):
        op.execute(f"ALTER TABLE bridge.{table} DROP COLUMN mode")
