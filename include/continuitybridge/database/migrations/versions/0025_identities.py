"""Whom people are to identity providers."""

from pathlib import Path

from continuitybridge.database.migrations import script

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    script.run(Path(__file__).with_suffix(".sql"))


def downgrade() -> None:
    script.run(Path(__file__).with_suffix(".down.sql"))
