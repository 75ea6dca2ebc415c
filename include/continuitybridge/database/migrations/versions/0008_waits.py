"""Waiting: what a hand-over in state `waiting` waits for, groups of messages, and their parts."""

from pathlib import Path
from typing import Any

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    _execute(
        "DROP TRIGGER message_died ON bridge.messages; DROP TRIGGER message_gone ON bridge.messages;"
        " DROP FUNCTION bridge.message_left; DROP TABLE bridge.wait_parts, bridge.wait_groups, bridge.waits;"
        " ALTER TABLE bridge.messages DROP COLUMN gathers; ALTER TABLE bridge.hand_overs DROP COLUMN resume"
    )


def _execute(script: str) -> None:
    # Past SQLAlchemy: the script has many statements and is not to be searched for parameters.
    connection: Any = op.get_bind().connection.driver_connection
    with connection.cursor() as cursor:
        cursor.execute(script)
