"""Deleting organizations."""

from pathlib import Path
from typing import Any

from alembic import op

from continuitybridge.database.migrations import script

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    script.run(Path(__file__).with_suffix(".sql"))


def downgrade() -> None:
    script.run(Path(__file__).with_suffix(".down.sql"))
    before = Path(__file__).with_name("0014_quotas.sql").read_text()
    begins = before.index("CREATE FUNCTION bridge.take_allowance")
    function = before[begins : before.index("$$;", begins) + 3]
    connection: Any = op.get_bind().connection.driver_connection
    connection.execute(function.replace("CREATE", "CREATE OR REPLACE", 1))
