"""What a stream worker may ask for: an organization's data keys and connections.

In the platform's own processes the keyring answers (`DirectAccess`); where the master key must not be (a task),
the api-server does, against the task's token.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol
from uuid import UUID

from continuitybridge import tokens
from continuitybridge.nodes.base import ConnectionInfo
from continuitybridge.vault.keyring import Cipher, Keyring


class Access(Protocol):
    """Asked before every claim's and settlement's use of an organization, so an implementation keeps what it got:
    keys for at most `vault.keyring.REFRESH_S`, connections until `forget`. One event loop."""

    async def keys(self, organization_id: UUID, *, fresh: bool = False) -> Cipher:
        """What encrypts and decrypts for the organization, without waiting when it is used: its keys are held.
        `fresh`: ask again, because a key version is missing that was made since. Raises `NotFound` when the
        organization is not there or not this worker's, `Unavailable` when nobody answers now."""

    async def connection(
        self, organization_id: UUID, environment: str, name: str, *, refused: int | None = None
    ) -> ConnectionInfo:
        """A connection with its credentials, `refused` as `nodes.base.Services.connection` says. Raises
        `NotFound`, `ReconnectNeeded` and `Unavailable`."""

    def forget(self, organization_id: UUID, environment: str) -> None:
        """The environment's connections changed: ask for them again."""


class DirectAccess:
    """`Access` of a process that holds the master key."""

    def __init__(self, keyring: Keyring | None = None) -> None:
        self._keyring = keyring or Keyring.open()
        self._connections: dict[tuple[UUID, str, str], ConnectionInfo] = {}
        self._changes = 0

    async def keys(self, organization_id: UUID, *, fresh: bool = False) -> Cipher:
        if fresh:
            # What others have under way may have begun before the version was made.
            self._keyring.forget(organization_id)
            await asyncio.to_thread(self._keyring.export, organization_id)
        await self._keyring.ready(organization_id)
        return self._keyring

    async def connection(
        self, organization_id: UUID, environment: str, name: str, *, refused: int | None = None
    ) -> ConnectionInfo:
        key = (organization_id, environment, name)
        found = self._connections.get(key)
        if found is None or not found.holds(time.time(), refused):
            changes = self._changes
            cipher = await self.keys(organization_id)
            found = await asyncio.to_thread(tokens.resolve, *key, cipher, refused=refused)
            if changes == self._changes:  # else this may be what it was before
                self._connections[key] = found
        return found

    def forget(self, organization_id: UUID, environment: str) -> None:
        self._changes += 1
        for key in [key for key in self._connections if key[:2] == (organization_id, environment)]:
            del self._connections[key]
