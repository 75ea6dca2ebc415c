"""A drained flow, or destination, refuses what would come to it by calls too."""

from pathlib import Path

from continuitybridge.database.migrations import script

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None


def upgrade() -> None:
    script.run(Path(__file__).with_suffix(".sql"))


def downgrade() -> None:
    script.run(Path(__file__).with_suffix(".down.sql"))
