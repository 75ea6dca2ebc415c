"""The foundation: organizations, data keys, flow versions, deployments, endpoints, connections, the inbox."""

from pathlib import Path
from typing import Any

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    _execute(Path(__file__).with_suffix(".down.sql").read_text())


def _execute(script: str) -> None:
    # Past SQLAlchemy: the script has many statements and is not to be searched for parameters.
    connection: Any = op.get_bind().connection.driver_connection
    with connection.cursor() as cursor:
        cursor.execute(script)
