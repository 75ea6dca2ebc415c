"""Room for bytes is read before it is written; what an account has may be changed when less was agreed upon."""

from pathlib import Path

from continuitybridge.database.migrations import script

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    script.run(Path(__file__).with_suffix(".sql"))


def downgrade() -> None:
    script.run(Path(__file__).with_suffix(".down.sql"))
