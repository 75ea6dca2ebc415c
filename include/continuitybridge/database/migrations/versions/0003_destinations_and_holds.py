"""Destinations that can be paused and have a circuit; flows that can be held; what a message waits for."""

from pathlib import Path

from continuitybridge.database.migrations import script

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    script.run(Path(__file__).with_suffix(".sql"))


def downgrade() -> None:
    script.run(Path(__file__).with_suffix(".down.sql"))
