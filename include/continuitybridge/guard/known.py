"""Blocks and policies in this process's memory, kept alike with the tables by a thread of its own.

The thread reads both every `READ_EVERY_S` and writes the blocks that the guard decides on, so that no request
waits for the database. While that does not answer, what was read last holds.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from uuid import UUID

from continuitybridge import database
from continuitybridge.guard import network

READ_EVERY_S = 1.0
EVERYWHERE = UUID(int=0)
"""The organization of blocks that hold for the whole platform."""
PLATFORM = ""
"""Its slug."""
MAX_BLOCK_S = 7 * 24 * 3600
ESCALATION = 6
"""So many times longer each block is than the one before it."""
REMEMBERED_S = 7 * 24 * 3600
"""How long a block that is over makes the next one longer."""
MAX_WAITING = 1_000
END_WITHIN_S = 2.0
"""How long the end of the process waits for the thread."""

Mode = Literal["enforce", "detect", "off"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Policy:
    """What an organization wants; None and empty: as the platform's settings say."""

    mode: Mode | None = None
    block_bots: bool | None = None
    allowed: tuple[network.Network, ...] = ()
    webhooks_limit: str | None = None
    api_limit: str | None = None
    programs_limit: str | None = None
    """What its tier allows calls by API keys."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`blocks`: (organization's slug, address) → its end in seconds since the epoch; `policies` by slug."""

    blocks: Mapping[tuple[str, str], float] = field(default_factory=dict)
    policies: Mapping[str, Policy] = field(default_factory=dict)


_NOTHING = Policy()


class Known:
    """What this process knows. `start` begins to follow the tables; before, nothing is known."""

    def __init__(self) -> None:
        self._snapshot = Snapshot()
        self._orders: queue.Queue[tuple[str, str, float] | None] = queue.Queue(MAX_WAITING)
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._pid: int | None = None

    def start(self) -> None:
        """Follow the tables. Harmless when it does; a forked child begins anew."""
        if self._pid == os.getpid():
            return
        with self._lock:
            if self._pid != os.getpid():
                self._pid = os.getpid()
                thread = threading.Thread(target=self._follow, name="bridge-guard", daemon=True)
                thread.start()
                # A thread that is still at work when the interpreter is taken apart aborts the process.
                atexit.register(self._end, thread)

    def _end(self, thread: threading.Thread) -> None:
        self._over.set()
        with suppress(queue.Full):
            self._orders.put_nowait(None)
        thread.join(END_WITHIN_S)

    def policy(self, organization: str) -> Policy:
        return self._snapshot.policies.get(organization, _NOTHING)

    def blocked_until(self, address: str, organization: str = PLATFORM) -> float | None:
        """The end of an address's block (seconds since the epoch), there or everywhere."""
        blocks = self._snapshot.blocks
        if not blocks:
            return None
        ends = [end for end in (blocks.get((PLATFORM, address)), blocks.get((organization, address))) if end]
        return max(ends) if ends and max(ends) > time.time() else None

    def block(self, address: str, reason: str, base_s: float) -> None:
        """Block an address everywhere, for `base_s`, and for longer each time; holds here at once."""
        try:
            self._orders.put_nowait((address, reason, base_s))
        except queue.Full:
            return
        now = self._snapshot
        self._snapshot = Snapshot({**now.blocks, (PLATFORM, address): time.time() + base_s}, now.policies)

    def _follow(self) -> None:
        failed = False
        waiting: list[tuple[str, str, float]] = []
        while not self._over.is_set():
            try:
                with database.platform() as connection:
                    while waiting:
                        _write(connection, *waiting[-1])
                        waiting.pop()
                    self._snapshot = _read(connection)
                failed = False
            except Exception as error:
                # It is the platform's own thread: whatever goes wrong, it goes on with what it knows.
                if not failed:
                    log.warning("guard: blocks and policies cannot be read, trying again: %s", error)
                failed = True
            waiting = waiting[-MAX_WAITING:] + self._wait()

    def _wait(self) -> list[tuple[str, str, float]]:
        """What is to be written after a while, or as soon as there is something."""
        try:
            order = self._orders.get(timeout=READ_EVERY_S)
        except queue.Empty:
            return []
        return [] if order is None else [order]


def _read(connection: Any) -> Snapshot:
    blocks = connection.execute(
        "SELECT coalesce(o.slug, ''), b.address, coalesce(extract(epoch FROM b.until)::float8, 'infinity')"
        " FROM bridge.guard_blocks b LEFT JOIN bridge.organizations o ON o.organization_id = b.owner_id"
        " WHERE b.until IS NULL OR b.until > now()"
    ).fetchall()
    policies = connection.execute(
        "SELECT o.slug, p.mode, p.block_bots, p.allowed, p.webhooks_limit, p.api_limit"
        " FROM bridge.guard_policies p JOIN bridge.organizations o USING (organization_id)"
    ).fetchall()
    tiers = dict(
        connection.execute(
            "SELECT o.slug, string_agg(l.allowed || '/' || split_part(l.resource, '_per_', 2), ';')"
            " FROM bridge.organization_limits l JOIN bridge.organizations o USING (organization_id)"
            " WHERE l.resource IN ('api_calls_per_minute', 'api_calls_per_hour') AND l.allowed IS NOT NULL"
            " GROUP BY o.slug"
        ).fetchall()
    )
    own = {
        slug: Policy(mode, bots, network.networks(tuple(allowed)), webhooks, api)
        for slug, mode, bots, allowed, webhooks, api in policies
    }
    return Snapshot(
        {(slug, address): end for slug, address, end in blocks},
        {slug: replace(own.get(slug, _NOTHING), programs_limit=tiers.get(slug)) for slug in {*own, *tiers}},
    )


def _write(connection: Any, address: str, reason: str, base_s: float) -> None:
    """A block of the platform's. One that holds already, by another process, stays as it is."""
    connection.execute(
        "DELETE FROM bridge.guard_blocks WHERE organization_id = %s AND until < now() - %s * interval '1 second'",
        (EVERYWHERE, REMEMBERED_S),
    )
    connection.execute(
        "INSERT INTO bridge.guard_blocks (organization_id, address, reason, until, blocked_by)"
        " VALUES (%(nil)s, %(address)s, %(reason)s, now() + %(base)s * interval '1 second', 'guard')"
        " ON CONFLICT (organization_id, address) DO UPDATE SET reason = excluded.reason, blocked_at = now(),"
        " times = guard_blocks.times + 1, blocked_by = 'guard',"
        " until = now() + interval '1 second'"
        "   * least(%(most)s, %(base)s * power(%(more)s, least(guard_blocks.times, 20)))"
        " WHERE guard_blocks.until < now()",
        {
            "nil": EVERYWHERE, "address": address, "reason": reason, "base": base_s, "most": MAX_BLOCK_S,
            "more": ESCALATION,
        },
    )  # fmt: skip


known = Known()
"""This process's."""
