"""What the dispatcher takes: messages of mode batch only, by indexes that hold no others."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_COLUMNS = "(organization_id, environment, flow, version, available_at)"


def upgrade() -> None:
    _make_indexes(" AND mode = 'batch'")


def downgrade() -> None:
    _make_indexes("")


def _make_indexes(mode: str) -> None:
    op.execute("DROP INDEX bridge.messages_ready, bridge.hand_overs_ready")
    op.execute(
        f"CREATE INDEX messages_ready ON bridge.messages {_COLUMNS}"
        f" WHERE state = 'accepted' AND batch_id IS NULL AND NOT behind{mode}"
    )
    op.execute(
        f"CREATE INDEX hand_overs_ready ON bridge.hand_overs {_COLUMNS}"
        f" WHERE state = 'available' AND batch_id IS NULL{mode}"
    )
