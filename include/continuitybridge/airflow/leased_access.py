"""What a stream worker that runs as a task gets from outside: keys and connections of the organizations whose
messages it holds, asked of the api-server under the task's own token.

Both are kept for a bounded time, and longer only by asking again, which the api-server answers while a message of
the organization is leased to this worker. So the worker forgets an organization soon after its last message. While
the api-server does not answer, what is held is used on, for as long as a task's token holds: a restart of it holds
up no message.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from continuitybridge.airflow.secrets import connection_id
from continuitybridge.airflow.services import ask, ask_leased_keys, connection_info
from continuitybridge.errors import NotFound, ReconnectNeeded, Unavailable
from continuitybridge.nodes.base import ConnectionInfo
from continuitybridge.vault.keyring import REFRESH_S, Cipher, DataKeys

ASK_AGAIN_S = REFRESH_S * 0.75
"""After this time keys are asked for anew, beside the work."""

KEPT_S = 600.0
"""How long what is held is used while nobody answers: the life of a task's token."""

PATIENCE_S = 1.0
"""How long an answer is waited for when there is something to go on with."""

CONNECTIONS_KEPT_S = 30.0
"""How long a changed address or credential may go unnoticed when nobody says so."""

MISSING_KEPT_S = 5.0
"""How soon is asked again for a connection that was not there."""

REFUSED_KEPT_S = 1.0
"""How soon is asked again for another credential when that was in vain: it may just be obtained."""

_log = logging.getLogger("continuitybridge.stream")


@dataclass(frozen=True, slots=True)
class _Keys:
    asked_at: float
    cipher: DataKeys


@dataclass(frozen=True, slots=True)
class _Connection:
    asked_at: float
    info: ConnectionInfo | None
    problem: ReconnectNeeded | None = None

    def fresh(self, now: float) -> bool:
        if self.info is None:
            return now - self.asked_at < MISSING_KEPT_S
        return now - self.asked_at < CONNECTIONS_KEPT_S and self.info.holds(time.time())


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
        self._asking_keys: asyncio.Task[None] | None = None
        self._asked_at = float("-inf")
        self._connections: dict[tuple[UUID, str, str], _Connection] = {}
        self._asking: dict[tuple[UUID, str, str], asyncio.Task[_Connection]] = {}
        self._asking_another: dict[tuple[tuple[UUID, str, str], int], asyncio.Task[_Connection]] = {}
        # The task's supervisor answers one question after the other.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bridge-ask")

    def __repr__(self) -> str:
        return f"LeasedAccess(organizations={len(self._keys)})"

    async def keys(self, organization_id: UUID, *, fresh: bool = False) -> Cipher:
        """As `Access.keys`."""
        now = time.monotonic()
        held = self._held(organization_id, now)
        if held is None or fresh:
            await self._ask_since(now, None if fresh else organization_id)
            held = self._held(organization_id, now)
        elif now - held.asked_at >= REFRESH_S:
            with suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    await self._ask_since(now, organization_id)
                held = self._held(organization_id, now)
        elif now - held.asked_at >= ASK_AGAIN_S:
            self._begin_asking()
        if held is None:
            raise NotFound("the api-server has no data key of this organization for this worker")
        return held.cipher

    async def connection(
        self, organization_id: UUID, environment: str, name: str, *, refused: int | None = None
    ) -> ConnectionInfo:
        """As `Access.connection`."""
        place = (organization_id, environment, name)
        now = time.monotonic()
        found = self._connections.get(place)
        if refused is not None and (found is None or found.info is None or found.info.token == refused):
            found = await self._another(place, refused)
        if found is None or not found.fresh(now):
            asking = self._asking.get(place)
            if asking is None:
                asking = self._asking[place] = asyncio.create_task(self._ask_for_connection(place))
                asking.add_done_callback(_look_at)
            usable = (
                found is not None
                and found.info is not None
                and now - found.asked_at < KEPT_S
                and found.info.holds(time.time())
            )
            try:
                async with asyncio.timeout(PATIENCE_S if usable else None):
                    # Whoever gives up waiting must not take the answer from the others.
                    found = await asyncio.shield(asking)
            except (Unavailable, TimeoutError):
                if not usable:
                    raise
        assert found is not None  # noqa: S101  (asked for above)
        if found.problem is not None:
            raise found.problem
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
        for key in [key for key in self._asking_another if key[0][:2] == (organization_id, environment)]:
            del self._asking_another[key]

    def _held(self, organization_id: UUID, now: float) -> _Keys | None:
        held = self._keys.get(organization_id)
        return held if held is not None and now - held.asked_at < KEPT_S else None

    async def _ask_since(self, since: float, wanted: UUID | None) -> None:
        """Return when somebody has asked after `since`, or brought the wanted organization's keys meanwhile."""
        while self._asked_at < since:
            held = None if wanted is None else self._keys.get(wanted)
            if held is not None and since - held.asked_at < REFRESH_S:
                return
            await asyncio.shield(self._begin_asking())

    def _begin_asking(self) -> asyncio.Task[None]:
        if self._asking_keys is None or self._asking_keys.done():
            self._asking_keys = asyncio.create_task(self._ask_for_keys())
            self._asking_keys.add_done_callback(_look_at)
        return self._asking_keys

    async def _ask_for_keys(self) -> None:
        asked_at = time.monotonic()
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(self._thread, self._ask_keys)
        found: dict[str, Any] = json.loads(answer or "{}")
        kept = {each: held for each, held in self._keys.items() if asked_at - held.asked_at < REFRESH_S}
        for organization_id, versions in found.items():
            cipher = DataKeys.from_json(json.dumps({organization_id: versions}))
            kept[UUID(organization_id)] = _Keys(asked_at, cipher)
        self._keys, self._asked_at = kept, asked_at
        loop.call_later(KEPT_S, self._forget_old_keys)

    def _forget_old_keys(self) -> None:
        now = time.monotonic()
        self._keys = {each: held for each, held in self._keys.items() if now - held.asked_at < REFRESH_S}

    async def _ask_for_connection(self, place: tuple[UUID, str, str]) -> _Connection:
        mine, asked_at = asyncio.current_task(), time.monotonic()
        try:
            try:
                info = await asyncio.get_running_loop().run_in_executor(self._thread, self._look_up, place)
                found = _Connection(asked_at, info)
            except ReconnectNeeded as error:
                found = _Connection(asked_at, None, error)
            if self._asking.get(place) is mine:
                self._connections = {
                    key: kept for key, kept in self._connections.items() if asked_at - kept.asked_at < KEPT_S
                }
                self._connections[place] = found
            return found
        finally:
            if self._asking.get(place) is mine:
                self._asking.pop(place, None)

    async def _another(self, place: tuple[UUID, str, str], refused: int) -> _Connection:
        """One question for all whose credential was refused; that it could not be answered is remembered."""
        key = (place, refused)
        asking = self._asking_another.get(key)
        if asking is None:
            asking = self._asking_another[key] = asyncio.create_task(self._ask_for_another(place, refused))
            asking.add_done_callback(_look_at)
        return await asyncio.shield(asking)

    async def _ask_for_another(self, place: tuple[UUID, str, str], refused: int) -> _Connection:
        mine, key, asked_at = asyncio.current_task(), (place, refused), time.monotonic()
        loop = asyncio.get_running_loop()
        kept_s = 0.0
        try:
            try:
                info = await loop.run_in_executor(self._thread, self._look_up, place, refused)
                found = _Connection(asked_at, info)
            except ReconnectNeeded as error:
                found = _Connection(asked_at, None, error)
            if self._asking_another.get(key) is mine:
                self._connections[place] = found
            if found.info is None or found.info.token == refused:
                kept_s = REFUSED_KEPT_S
            return found
        except Unavailable:
            kept_s = REFUSED_KEPT_S
            raise
        finally:
            if kept_s:
                loop.call_later(kept_s, self._forget_asking, key, mine)
            else:
                self._forget_asking(key, mine)

    def _forget_asking(self, key: tuple[tuple[UUID, str, str], int], asking: asyncio.Task[Any] | None) -> None:
        if self._asking_another.get(key) is asking:
            del self._asking_another[key]

    def _look_up(self, place: tuple[UUID, str, str], refused: int | None = None) -> ConnectionInfo | None:
        extra = self._ask_connection(connection_id(":".join(map(str, place)), refused=refused))
        return None if extra is None else connection_info(place[2], extra)


def _look_at(task: asyncio.Task[Any]) -> None:
    """An answer that nobody waits for any more may have failed."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("the api-server could not be asked: %s", getattr(error, "detail", error))
