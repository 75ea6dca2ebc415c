"""Which stream workers are there: each holds an advisory lock under its name while its connection stands.

When a worker is killed, its machine's kernel closes the connection and the lock is gone; the others need not wait
for its leases to run out. Where nobody closes it (a machine without power, a network that is cut), the leases do.
"""

from __future__ import annotations

from continuitybridge import database
from continuitybridge.inbox import units
from continuitybridge.inbox.replies import Notices
from continuitybridge.settings import get_settings

PREFIX = "stream/"
"""Begins the name of every stream worker."""

LOCK_CLASS = 4_201_917
ANNOUNCE = f"SELECT pg_advisory_lock_shared({LOCK_CLASS}, hashtext(%b))"
"""Say that the worker of this name is there, until the session ends. Shared: a session of the same worker that
broke off may not have ended yet."""

_HOLDERS = """
SELECT DISTINCT lease_owner FROM (
    SELECT lease_owner FROM bridge.messages WHERE state = 'claimed'
    UNION ALL
    SELECT lease_owner FROM bridge.hand_overs WHERE state = 'claimed') AS leases
WHERE starts_with(lease_owner, %(prefix)s)
"""
_ABSENT = f"""
SELECT lease_owner FROM ({_HOLDERS}) AS holders
WHERE NOT EXISTS (
    SELECT FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.classid = {LOCK_CLASS}
      AND l.objid::int8 = hashtext(lease_owner)::int8 & 4294967295 AND l.objsubid = 2 AND l.granted
      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
"""  # noqa: S608  (constants)


def absent() -> set[str]:
    """Stream workers that hold leases and are not there. One that has just lost its connection, and makes another,
    is among them: believe it when it is said again some seconds later."""
    with database.relay() as connection:
        return {row[0] for row in connection.execute(_ABSENT, {"prefix": PREFIX})}


def take_over(owner: str) -> int:
    """End the leases of a worker that is not there any more; returns how many. The try counts, so that a message
    that kills its worker ends as a dead letter."""
    with database.relay() as connection:
        ended = 0
        for table in ("messages", "hand_overs"):
            ended += connection.execute(
                f"UPDATE bridge.{table} SET lease_until = now() WHERE state = 'claimed' AND lease_owner = %s",  # noqa: S608
                (owner,),
            ).rowcount
    if ended:
        expire()
    return ended


def expire() -> int:
    """Let go of units whose leases have run out, whoever held them; returns how many are available again."""
    notices = Notices()
    with database.relay(after=notices) as connection:
        again, _ = units.expire(connection, max_attempts=get_settings().max_attempts, notices=notices)
    return again
