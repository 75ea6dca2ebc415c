"""What the database tells as it happens, and going on when it cannot."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import psycopg

from continuitybridge.database import aio
from continuitybridge.errors import Unavailable

RETRY_S = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Waits between two tries to reach the database; the last repeats."""

log = logging.getLogger(__name__)


class Listener:
    """Calls `on_notice(channel, payload)` for each notification. A notification is a hint: what was told while the
    connection was down is lost, so `on_connected` is called each time that it stands, for looking once. Others see
    the connection under `name`."""

    def __init__(
        self,
        channels: Sequence[str],
        on_notice: Callable[[str, str], None],
        on_connected: Callable[[], None],
        name: str = "bridge-listen",
    ) -> None:
        self._name = name
        self._channels = channels
        self._on_notice = on_notice
        self._on_connected = on_connected
        self._standing = asyncio.Event()

    @property
    def connected(self) -> bool:
        return self._standing.is_set()

    async def wait_connected(self) -> None:
        """Return when the connection stands."""
        await self._standing.wait()

    async def run(self) -> None:
        """Listen until cancelled."""
        failures = 0
        while True:
            try:
                async with await aio.connect("relay", application_name=self._name) as connection:
                    for channel in self._channels:
                        await connection.execute(f"LISTEN {channel}")
                    self._standing.set()
                    failures = 0
                    self._on_connected()
                    async for notice in connection.notifies():
                        self._on_notice(notice.channel, notice.payload)
            except (Unavailable, psycopg.Error, OSError) as error:
                if self.connected or not failures:
                    log.warning("not listening, looking instead: %s", error)
            except Exception:
                log.exception("listening failed")
            finally:
                self._standing.clear()
            await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
            failures += 1
