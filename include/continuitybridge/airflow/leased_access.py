"""What a stream worker that runs as a task gets from outside: keys and connections of the organizations whose
messages it holds, asked of the api-server under the task's own token.

Both are kept for a bounded time, and longer only by asking again, which the api-server answers while a message of
the organization is leased to this worker. So the worker forgets an organization soon after its last message.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from continuitybridge.airflow.secrets import CONNECTION_PREFIX
from continuitybridge.airflow.services import ask, ask_leased_keys, connection_info
from continuitybridge.errors import NotFound, Unavailable
from continuitybridge.nodes.base import ConnectionInfo
from continuitybridge.vault.keyring import REFRESH_S, Cipher, DataKeys

ASK_AGAIN_S = REFRESH_S * 0.75
"""After this time keys are asked for anew, beside the work."""

CONNECTIONS_KEPT_S = 30.0
"""How long a changed address or credential may go unnoticed when nobody says so."""

MISSING_KEPT_S = 5.0
"""How soon is asked again for a connection that was not there."""

_log = logging.getLogger("continuitybridge.stream")


@dataclass(frozen=True, slots=True)
class _Keys:
    asked_at: float
    cipher: DataKeys


@dataclass(frozen=True, slots=True)
class _Connection:
    until: float
    info: ConnectionInfo | None


class LeasedAccess:
    """`stream.access.Access` of a task. Every answer about keys is about all that is leased to this worker at that
    moment, so that one question serves a whole claim. The asking blocks in threads, never in the event loop.

    `ask_keys` and `ask_connection` give what the api-server has for this task, or None; they raise `Unavailable`.
    """

    def __init__(
        self,
        ask_keys: Callable[[], str | None] = ask_leased_keys,
        ask_connection: Callable[[str], str | None] = ask,
    ) -> None:
        self._ask_keys = ask_keys
        self._ask_connection = ask_connection
        self._keys: dict[UUID, _Keys] = {}
        self._asking_keys = asyncio.Lock()
        self._asked_at = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None
        self._connections: dict[tuple[UUID, str, str], _Connection] = {}
        self._asking: dict[tuple[UUID, str, str], asyncio.Task[_Connection]] = {}

    def __repr__(self) -> str:
        return f"LeasedAccess(organizations={len(self._keys)})"

    async def keys(self, organization_id: UUID, *, fresh: bool = False) -> Cipher:
        """As `Access.keys`."""
        held = self._keys.get(organization_id)
        now = time.monotonic()
        if fresh or held is None or now - held.asked_at >= REFRESH_S:
            await self._ask_for_keys(now, None if fresh else organization_id)
            held = self._keys.get(organization_id)
        elif now - held.asked_at >= ASK_AGAIN_S and (self._refreshing is None or self._refreshing.done()):
            self._refreshing = asyncio.create_task(self._refresh(now))
        if held is None:
            raise NotFound("the api-server has no data key of this organization for this worker")
        return held.cipher

    async def connection(self, organization_id: UUID, environment: str, name: str) -> ConnectionInfo:
        """As `Access.connection`."""
        place = (organization_id, environment, name)
        found = self._connections.get(place)
        if found is None or found.until <= time.monotonic():
            asking = self._asking.get(place)
            if asking is None:
                asking = self._asking[place] = asyncio.create_task(self._ask_for_connection(place))
            # Whoever gives up waiting must not take the answer from the others.
            found = await asyncio.shield(asking)
        if found.info is None:
            raise NotFound(
                f"there is no connection {name!r} in this environment; make it with `bridge connection set`",
                connection=name,
            )
        return found.info

    def forget(self, organization_id: UUID, environment: str) -> None:
        """As `Access.forget`. An answer that is under way is of before: whoever waits gets it, and nobody else."""
        for known in (self._connections, self._asking):
            for place in [place for place in known if place[:2] == (organization_id, environment)]:
                del known[place]

    async def _ask_for_keys(self, since: float, wanted: UUID | None = None) -> None:
        """Ask, unless somebody asked after `since`, or brought the wanted organization's keys meanwhile."""
        async with self._asking_keys:
            held = None if wanted is None else self._keys.get(wanted)
            if self._asked_at >= since or (held is not None and since - held.asked_at < REFRESH_S):
                return
            asked_at = time.monotonic()
            answer = await asyncio.to_thread(self._ask_keys)
            found: dict[str, Any] = json.loads(answer or "{}")
            self._keys = {each: held for each, held in self._keys.items() if asked_at - held.asked_at < REFRESH_S}
            for organization_id, versions in found.items():
                cipher = DataKeys.from_json(json.dumps({organization_id: versions}))
                self._keys[UUID(organization_id)] = _Keys(asked_at, cipher)
            self._asked_at = asked_at

    async def _refresh(self, since: float) -> None:
        try:
            await self._ask_for_keys(since)
        except Unavailable as error:
            _log.warning("data keys could not be refreshed now: %s", error.detail)

    async def _ask_for_connection(self, place: tuple[UUID, str, str]) -> _Connection:
        mine = asyncio.current_task()
        try:
            info = await asyncio.to_thread(self._look_up, place)
            now = time.monotonic()
            found = _Connection(now + (MISSING_KEPT_S if info is None else CONNECTIONS_KEPT_S), info)
            if self._asking.get(place) is mine:
                self._connections = {key: kept for key, kept in self._connections.items() if kept.until > now}
                self._connections[place] = found
            return found
        finally:
            if self._asking.get(place) is mine:
                self._asking.pop(place, None)

    def _look_up(self, place: tuple[UUID, str, str]) -> ConnectionInfo | None:
        extra = self._ask_connection(CONNECTION_PREFIX + ":".join(map(str, place)))
        return None if extra is None else connection_info(place[2], extra)
