"""Pages of settled messages whose cost does not grow with their number."""

from pathlib import Path

from continuitybridge.database.migrations import script

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    script.run(Path(__file__).with_suffix(".sql"))


def downgrade() -> None:
    script.run(Path(__file__).with_suffix(".down.sql"))
