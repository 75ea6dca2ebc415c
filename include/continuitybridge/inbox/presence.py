"""Which stream workers there are, and ending the leases of those that are no more.

A worker's connections for listening and claiming bear its owner's name as `application_name`: they are there while
its process lives, on whatever machine, and gone as soon as it is killed. So nothing is written for it, and what a
killed worker held need not wait for its lease to run out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime

from continuitybridge import database
from continuitybridge.inbox import units
from continuitybridge.inbox.replies import Notices
from continuitybridge.settings import get_settings

PREFIX = "stream/"
"""How the owner of a stream worker's leases begins. Up to 63 characters in all."""

BESIDE = f"{PREFIX}intake/"
"""How it begins for one that runs what its own intake accepts, and claims nothing."""

ABSENT_S = 3.0
"""A worker that was not there for so long is believed dead. One that only lost its connection is back before."""

_PRESENT = (
    "SELECT application_name, min(backend_start) FROM pg_stat_activity"
    " WHERE usename = current_user AND starts_with(application_name, %s)"
    " GROUP BY application_name ORDER BY min(backend_start)"
)
_HOLDERS = " UNION ".join(
    f"SELECT lease_owner FROM bridge.{table}"  # noqa: S608  (our own names)
    " WHERE state = 'claimed' AND starts_with(lease_owner, %(prefix)s) AND lease_until > now()"
    for table in ("messages", "hand_overs")
)
_END = (
    "UPDATE bridge.{table} SET lease_until = now() WHERE state = 'claimed' AND lease_owner = ANY (%s)"
    " AND lease_until > now()"
)


@dataclass(frozen=True, slots=True)
class Present:
    """A stream worker that listens: `owner` is the name in its leases."""

    owner: str
    since: datetime


def present() -> list[Present]:
    """The stream workers that listen for messages now, oldest first. Raises `Unavailable`."""
    with database.relay() as connection:
        found = [Present(*row) for row in connection.execute(_PRESENT, (PREFIX,))]
    return [each for each in found if not each.owner.startswith(BESIDE)]


class LostLeases:
    """Ends leases of workers that are gone; call `end` about every second.

    Does nothing while no worker that claims is to be seen: then nobody could take up what they held, or names do
    not reach the server (a connection pooler may keep them back), and leases run out by themselves.
    """

    def __init__(self) -> None:
        self._absent: dict[str, float] = {}

    def end(self) -> int:
        """End what is lost; returns how many units became available, or dead letters where their attempts are used
        up. The lost attempt counts. Raises `Unavailable`."""
        notices = Notices()
        with database.relay(after=notices) as connection:
            holders = {row[0] for row in connection.execute(_HOLDERS, {"prefix": PREFIX})}
            if not holders:
                self._absent = {}
                return 0
            there = {row[0] for row in connection.execute(_PRESENT, (PREFIX,))}
            now = time.monotonic()
            self._absent = {owner: self._absent.get(owner, now) for owner in holders - there}
            lost = [owner for owner, since in self._absent.items() if now - since >= ABSENT_S]
            if not lost or all(owner.startswith(BESIDE) for owner in there):
                return 0
            ended = sum(
                connection.execute(_END.format(table=table), (lost,)).rowcount
                for table in ("messages", "hand_overs")
            )
            if ended:
                units.expire(connection, max_attempts=get_settings().max_attempts, limit=ended, notices=notices)
            return ended
