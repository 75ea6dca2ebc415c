"""Limits of accounts and consultants, names taken out of traces, the last sweep after a deletion."""

from pathlib import Path

from continuitybridge.database.migrations import script

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    script.run(Path(__file__).with_suffix(".sql"))


def downgrade() -> None:
    script.run(Path(__file__).with_suffix(".down.sql"))
