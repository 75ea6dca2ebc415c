"""What the database refuses by the platform's own rules, as typed errors."""

from __future__ import annotations

from typing import NoReturn

import orjson
import psycopg

from continuitybridge.errors import QuotaExceeded

QUOTA_STATE = "BQ001"
"""SQLSTATE of `bridge.refuse_over_limit`."""


def reraise(error: psycopg.DatabaseError) -> NoReturn:
    """Raise the typed error that it stands for, or itself."""
    if error.sqlstate == QUOTA_STATE and error.diag.message_detail is not None:
        facts = orjson.loads(error.diag.message_detail)
        raise QuotaExceeded(
            f"the organization's quota of {facts['resource']} is used up: {facts['used']} of {facts['allowed']}",
            field=facts["resource"],
            **facts,
        ) from error
    raise error
