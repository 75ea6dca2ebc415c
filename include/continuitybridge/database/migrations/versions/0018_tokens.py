"""Tokens of connections, and accounts that are being connected."""

from pathlib import Path

from continuitybridge.database.migrations import script

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    script.run(Path(__file__).with_suffix(".sql"))


def downgrade() -> None:
    script.run(Path(__file__).with_suffix(".down.sql"))
