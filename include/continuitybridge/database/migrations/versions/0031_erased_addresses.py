"""A person's addresses taken out of all invitations to them."""

from pathlib import Path

from continuitybridge.database.migrations import script

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    script.run(Path(__file__).with_suffix(".sql"))


def downgrade() -> None:
    script.run(Path(__file__).with_suffix(".down.sql"))
