"""The foundation: organizations, data keys, flow versions, deployments, endpoints, connections, the inbox."""

from pathlib import Path

from continuitybridge.database.migrations import script

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    script.run(Path(__file__).with_suffix(".sql"))


def downgrade() -> None:
    script.run(Path(__file__).with_suffix(".down.sql"))
