"""How much an organization holds, and limits of accounts and consultants."""

from pathlib import Path

from continuitybridge.database.migrations import script

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    script.run(Path(__file__).with_suffix(".sql"))


def downgrade() -> None:
    script.run(Path(__file__).with_suffix(".down.sql"))
