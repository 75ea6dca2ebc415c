"""Every endpoint in this process's memory, as intake needs it, kept alike with the database.

A connection of its own LISTENs on `bridge_endpoints` and, for flows that are drained, on `bridge_holds`: a change
is known some milliseconds after its commit. As a notification can be lost (NOTIFY is at most once), the same
connection compares count, revisions and states with the tables every `CHECK_INTERVAL_S`; a difference loads
everything again. Before a request is told that there is no such endpoint, the tables are asked (`confirm`), so
that whoever deployed and sends at once is not refused.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Collection
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import OperationalError

from continuitybridge.database import aio
from continuitybridge.errors import Unavailable
from continuitybridge.inbox import holds
from continuitybridge.vault.keyring import Cipher, Keyring
from continuitybridge.webhooks import endpoints
from continuitybridge.webhooks.target import Target

CHECK_INTERVAL_S = 5.0
CONFIRM_INTERVAL_S = 0.05
"""Least time between two questions to the tables about missing endpoints, however many requests ask."""
KEYS_AT_ONCE = 8
"""How many organizations' keys one reading opens at a time: of the process's threads for keys (`vault.opening`)
most stay free for who takes and works on messages meanwhile."""
MAX_QUESTIONS = 1_000
QUERY_TIMEOUT_S = 10.0
RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Waits between two tries to reach the database; the last repeats."""

_PLACE = re.compile(r"[a-z][a-z0-9-]{0,39}/[a-z]{1,16}/[a-z0-9][a-z0-9._-]{0,127}")

log = logging.getLogger(__name__)


class Directory:
    """The endpoints by place (`organization/environment/slug`). One per process and event loop."""

    def __init__(self, keyring: Cipher) -> None:
        self._keyring = keyring
        self._targets: dict[str, Target] = {}
        self._places: dict[str, str] = {}
        self._organizations: dict[str, UUID] = {}
        self._loaded = asyncio.Event()
        self._connected = False
        self._told_of_locked = False
        self._drains: Any = None
        self._questions: dict[str, asyncio.Future[None]] = {}
        self._asked = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._follow(), name="endpoint-directory"),
            asyncio.create_task(self._confirm(), name="endpoint-questions"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def current(self) -> bool:
        """Whether what is known here follows the tables right now; an absence can be believed only then."""
        return self._connected

    async def wait_loaded(self, timeout_s: float) -> bool:
        """Whether the endpoints were ever read, after waiting at most so long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._loaded.wait()
        except TimeoutError:
            return False
        return True

    def find(self, place: str) -> Target | None:
        """The endpoint at `organization/environment/slug`."""
        return self._targets.get(place)

    async def confirm(self, place: str) -> Target | None:
        """As `find`, after the tables were asked. One statement answers whoever asks meanwhile. Raises
        `Unavailable` when they cannot be asked."""
        if not _PLACE.fullmatch(place):
            return None
        if not self._connected:
            raise Unavailable("the endpoints are not known while the database does not answer")
        if place not in self._questions and len(self._questions) >= MAX_QUESTIONS:
            return self.find(place)
        question = self._questions.setdefault(place, asyncio.get_running_loop().create_future())
        self._asked.set()
        await asyncio.shield(question)
        return self.find(place)

    def organization_id(self, slug: str) -> UUID | None:
        """The id of an organization that has endpoints."""
        return self._organizations.get(slug)

    async def _follow(self) -> None:
        failures = 0
        while True:
            try:
                connection = await aio.connect("relay", application_name="bridge-endpoints")
                async with connection:
                    await connection.execute(f"LISTEN {endpoints.CHANNEL}")
                    await connection.execute(f"LISTEN {holds.CHANNEL}")
                    await self._load(connection, None)
                    self._connected = True
                    failures = 0
                    await self._keep_up(connection)
            except (Unavailable, OperationalError, TimeoutError) as error:
                if failures == 0:
                    log.warning("endpoints: the database does not answer, trying again: %s", error)
            except Exception:
                log.exception("endpoints: reading them failed, trying again")
            finally:
                self._connected = False
            await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
            failures += 1

    async def _confirm(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            questions, self._questions = self._questions, {}
            error: Exception | None = None
            try:
                async with asyncio.timeout(QUERY_TIMEOUT_S), aio.relay() as connection:
                    cursor = await connection.execute(_IDENTITIES, (list(questions),))
                    identities = [row[0] for row in await cursor.fetchall()]
                    if identities:
                        await self._load(connection, identities)
            except Exception as failed:
                error = Unavailable("the endpoints cannot be asked for")
                error.__cause__ = failed
            for question in questions.values():
                if question.done():
                    continue
                if error is None:
                    question.set_result(None)
                else:
                    question.set_exception(error)
                    question.exception()  # Read here, as the one who asked may be gone.
            await asyncio.sleep(CONFIRM_INTERVAL_S)

    async def _keep_up(self, connection: aio.AsyncConnection) -> None:
        checked = time.monotonic()
        while True:
            wait_s = max(0.0, checked + CHECK_INTERVAL_S - time.monotonic())
            notices = [notify async for notify in connection.notifies(timeout=wait_s, stop_after=1)]
            changed = {notify.payload for notify in notices if notify.channel == endpoints.CHANNEL}
            held = {notify.payload for notify in notices if notify.channel == holds.CHANNEL}
            # Endpoints are known by the same identity, with their slug behind it.
            changed |= {identity for identity in self._places if identity.rpartition("/")[0] in held}
            if changed:
                await self._load(connection, changed)
            if time.monotonic() - checked >= CHECK_INTERVAL_S:
                if not await self._alike(connection):
                    await self._load(connection, None)
                elif locked := [
                    identity for identity, place in self._places.items() if self._targets[place].later
                ]:
                    await self._load(connection, locked)
                checked = time.monotonic()

    async def _alike(self, connection: aio.AsyncConnection) -> bool:
        async with asyncio.timeout(QUERY_TIMEOUT_S):
            cursor = await connection.execute(
                "SELECT count(*), coalesce(sum(e.revision), 0),"
                " count(*) FILTER (WHERE e.status = 'active' AND d.status = 'active' AND o.status = 'active')"
                " FROM bridge.endpoints e JOIN bridge.organizations o USING (organization_id)"
                " JOIN bridge.deployments d USING (organization_id, environment, flow)"
            )
            there = await cursor.fetchone()
            if await self._drained(connection) != self._drains:
                return False
        here = self._targets.values()
        return there == (len(here), sum(t.revision for t in here), sum(t.active for t in here))

    async def _drained(self, connection: aio.AsyncConnection) -> Any:
        """Tells one set of drained flows and destinations from another."""
        cursor = await connection.execute(
            "SELECT (SELECT array_agg(ROW(organization_id, environment, flow)::text"
            "   ORDER BY organization_id, environment, flow)"
            "  FROM bridge.flow_holds WHERE kind = 'drain'),"
            " (SELECT array_agg(ROW(organization_id, environment, name)::text"
            "   ORDER BY organization_id, environment, name)"
            "  FROM bridge.destinations WHERE status = 'draining')"
        )
        return await cursor.fetchone()

    async def _load(self, connection: aio.AsyncConnection, identities: Collection[str] | None) -> None:
        """Read all endpoints, or those of these identities (`organization_id/environment/slug`)."""
        if identities is None:
            self._drains = await self._drained(connection)
            cursor = await connection.execute(_ALL_ENDPOINTS)
            rows = await cursor.fetchall()
            cursor = await connection.execute(_ALL_SECRETS)
            secrets = await cursor.fetchall()
        else:
            parts = tuple(map(list, zip(*(identity.split("/", 2) for identity in identities), strict=True)))
            async with asyncio.timeout(QUERY_TIMEOUT_S):
                cursor = await connection.execute(_SOME_ENDPOINTS, parts)
                rows = await cursor.fetchall()
                cursor = await connection.execute(_SOME_SECRETS, parts)
                secrets = await cursor.fetchall()
        if isinstance(self._keyring, Keyring):
            # Not one after the other: a key service that is slow would hold up all that follow. What does not open
            # is told below.
            await _open_keys(self._keyring, {row[0] for row in secrets})
        found = await asyncio.to_thread(_targets, rows, secrets, self._keyring)
        if identities is None:
            self._targets, self._places, self._organizations = {}, {}, {}
        for identity in identities or ():
            self._targets.pop(self._places.pop(identity, ""), None)
        for identity, target in found.items():
            self._targets[target.place] = target
            self._places[identity] = target.place
            self._organizations[target.organization] = target.organization_id
        self._tell_of_locked()
        self._loaded.set()

    def _tell_of_locked(self) -> None:
        # They are read again when somebody calls them.
        locked = sum(target.later for target in self._targets.values())
        if locked and not self._told_of_locked:
            log.warning(
                "endpoints: %d refuse (503) while their secrets cannot be opened: bridge vault keys", locked
            )
        self._told_of_locked = locked > 0


async def _open_keys(keyring: Keyring, owners: Collection[UUID]) -> None:
    at_once = asyncio.Semaphore(KEYS_AT_ONCE)

    async def open_one(owner: UUID) -> None:
        async with at_once:
            await keyring.ready(owner)

    await asyncio.gather(*map(open_one, owners), return_exceptions=True)


_ALL_ENDPOINTS = """
SELECT x.organization_id, o.slug, x.environment, x.slug, x.flow, d.version, v.mode, v.ordering_key, v.holds_order,
       x.trigger_id, x.revision, x.status = 'active' AND d.status = 'active' AND o.status = 'active',
       x.verification, x.settings, bridge.draining(x.organization_id, x.environment, x.flow, d.version),
       o.status = 'suspended'
  FROM bridge.endpoints x
  JOIN bridge.organizations o USING (organization_id)
  JOIN bridge.deployments d USING (organization_id, environment, flow)
  JOIN bridge.flow_versions v USING (organization_id, flow, version)
"""
_SOME_ENDPOINTS = """
SELECT x.organization_id, o.slug, x.environment, x.slug, x.flow, d.version, v.mode, v.ordering_key, v.holds_order,
       x.trigger_id, x.revision, x.status = 'active' AND d.status = 'active' AND o.status = 'active',
       x.verification, x.settings, bridge.draining(x.organization_id, x.environment, x.flow, d.version),
       o.status = 'suspended'
  FROM unnest(%s::uuid[], %s::text[], %s::text[]) AS wanted (organization_id, environment, slug)
  JOIN bridge.endpoints x USING (organization_id, environment, slug)
  JOIN bridge.organizations o USING (organization_id)
  JOIN bridge.deployments d USING (organization_id, environment, flow)
  JOIN bridge.flow_versions v USING (organization_id, flow, version)
"""
_ALL_SECRETS = """
SELECT x.organization_id, x.environment, x.slug, x.secret_id, x.ciphertext, x.expires_at
  FROM bridge.endpoint_secrets x
 WHERE x.expires_at IS NULL OR x.expires_at > now()
 ORDER BY x.created_at
"""
_SOME_SECRETS = """
SELECT x.organization_id, x.environment, x.slug, x.secret_id, x.ciphertext, x.expires_at
  FROM unnest(%s::uuid[], %s::text[], %s::text[]) AS wanted (organization_id, environment, slug)
  JOIN bridge.endpoint_secrets x USING (organization_id, environment, slug)
 WHERE x.expires_at IS NULL OR x.expires_at > now()
 ORDER BY x.created_at
"""
_IDENTITIES = """
SELECT o.organization_id || '/' || substr(place, strpos(place, '/') + 1)
  FROM unnest(%s::text[]) AS asked (place)
  JOIN bridge.organizations o ON o.slug = split_part(place, '/', 1)
"""


def _targets(
    rows: Collection[tuple[Any, ...]], secrets: Collection[tuple[Any, ...]], keyring: Cipher
) -> dict[str, Target]:
    """The targets by identity. `rows` as `_ALL_ENDPOINTS` gives them, `secrets` as `_ALL_SECRETS`."""
    kept: dict[tuple[UUID, str, str], list[tuple[UUID, bytes, datetime | None]]] = {}
    for organization_id, environment, slug, *stored in secrets:
        kept.setdefault((organization_id, environment, slug), []).append((stored[0], stored[1], stored[2]))
    found: dict[str, Target] = {}
    for row in rows:
        organization_id, organization, environment, slug = row[:4]
        try:
            found[f"{organization_id}/{environment}/{slug}"] = Target.of(
                row, kept.get((organization_id, environment, slug), []), keyring
            )
        except Exception:
            # One row that somebody altered must not keep all other addresses from answering.
            log.exception("endpoints: %s/%s/%s has settings that cannot be read", organization, environment, slug)
    return found
