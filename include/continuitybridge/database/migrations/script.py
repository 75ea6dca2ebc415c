"""Runs a migration that is written in SQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import op


def run(file: Path) -> None:
    """Run the statements of a file in the migration's transaction."""
    # Past SQLAlchemy: a script has many statements and is not to be searched for parameters.
    connection: Any = op.get_bind().connection.driver_connection
    with connection.cursor() as cursor:
        cursor.execute(file.read_text())
