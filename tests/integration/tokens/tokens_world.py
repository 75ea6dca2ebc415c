"""How tests look at tokens, and processes of their own that ask for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from continuitybridge import database
from continuitybridge.organizations import Organization

ASKER = Path(__file__).with_name("token_asker.py")


def age(organization: Organization, seconds: float = 0.0) -> None:
    """The organization's tokens are as if they ended in so many seconds, having been obtained long before."""
    with database.tenant(organization.organization_id) as connection:
        connection.execute(
            "UPDATE bridge.tokens SET obtained_at = now() - interval '1 day', refused_at = NULL,"
            " expires_at = now() + make_interval(secs => %s)",
            (seconds,),
        )


def row(organization: Organization, columns: str) -> tuple[Any, ...]:
    with database.tenant(organization.organization_id) as connection:
        [found] = connection.execute(f"SELECT {columns} FROM bridge.tokens").fetchall()
    return tuple(found)


def events(organization: Organization, action: str) -> int:
    """How many events of that action stand in the trail."""
    with database.tenant(organization.organization_id) as connection:
        [(count,)] = connection.execute("SELECT count(*) FROM bridge.audit_events WHERE action = %s", (action,))
    return int(count)


def start_asker(organization: Organization, threads: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ASKER), str(organization.organization_id), "erp", str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def begin(process: subprocess.Popen[str]) -> None:
    """Let it ask, once it is ready."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def await_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
