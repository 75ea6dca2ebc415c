"""Running messages in the process that accepts them, for callers who wait for the result.

Such a message is claimed by the very transaction that accepts it, and its answer goes to the waiting request from
here: no other process is told, woken, or asked. It is held, run and settled like any other: under a lease, in a
node process, with the same tables to show for it. What cannot be run here at once (its flow has an order or a
bound, this worker is full, or hears nothing of the database now) is accepted for the stream workers, and what has
to be tried again is theirs too.

Answers are sent when what they tell is on disk. Only where its trigger says `when: ended` a result is sent when
the flow has ended, while its outcome is being written. What cannot be written then (the process is killed, the
database is away longer than the lease or refuses it, a stop ends first) leaves a message that was answered and is
run again when its lease is over, its outside calls with the same idempotency keys: it may end otherwise, as a dead
letter too; and as skipped where somebody cancels it in between. A copy of the request is then answered with how it
ended.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from uuid6 import uuid7

from continuitybridge import connections, destinations
from continuitybridge.deployments.verbs import CHANNEL as DEPLOYED
from continuitybridge.engine.message import Message, Outcome
from continuitybridge.engine.runner import Runner
from continuitybridge.inbox.accept import Acceptance
from continuitybridge.inbox.claim import Claimed
from continuitybridge.inbox.offload import is_large
from continuitybridge.inbox.presence import BESIDE
from continuitybridge.inbox.replies import Notice
from continuitybridge.inbox.replies.rows import answers_when_ended
from continuitybridge.inbox.settle.writing import Became
from continuitybridge.inbox.stream import Hear
from continuitybridge.settings import Settings
from continuitybridge.stream.access import DirectAccess
from continuitybridge.stream.units import Held
from continuitybridge.stream.worker import StreamWorker
from continuitybridge.vault.keyring import Keyring


class DirectWorker(StreamWorker):
    """One intake's. `start` begins in the background; until it knows the deployments it reserves nothing."""

    _CHANNELS = (DEPLOYED, connections.CHANNEL, destinations.CHANNEL)
    _SETTLE_PAUSE_S = 0.01
    """Between outcomes for which nobody waits any more."""

    def __init__(self, keyring: Keyring, settings: Settings, hear: Hear) -> None:
        self._runner = Runner(idle_children=1)
        self._hear = hear
        self._answered: set[tuple[UUID, str]] = set()
        """Messages whose callers have their answers, and whose outcomes are being written."""
        owner = f"{BESIDE}{socket.gethostname()[:20]}/{os.getpid()}/{uuid7().hex[-12:]}"
        super().__init__(
            owner, DirectAccess(keyring), self._runner, settings, lanes=settings.intake_lanes, hear=self._heard
        )
        self.lease_s = settings.lease_s
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin. Harmless when running."""
        if self._running is None:
            self._running = asyncio.create_task(self.run(), name="intake-direct")

    async def aclose(self) -> None:
        """Finish what is under way, as `StreamWorker.stop` says."""
        self.stop()
        if self._running is not None:
            await asyncio.gather(self._running, return_exceptions=True)
        await asyncio.to_thread(self._runner.close)

    def reserve(self, acceptance: Acceptance, organization: str) -> Reservation | None:
        """Room for a message that is about to be accepted; None when it should wait for the stream workers.
        `organization` is the organization's slug. Whoever gets one gives it back (`Reservation.end`)."""
        organization_id, flow = acceptance.organization_id, acceptance.flow
        if (
            self._running is None
            or self._stopping.is_set()
            or not self.listening
            or not self._is_informed
            or acceptance.ordering is not None
            or acceptance.mode != "stream"
            or is_large(acceptance.body)
            or self._bounds.of((organization_id, acceptance.environment, flow)) is not None
            or self._room.allowance(organization_id) < 1
            or self._room.free < 1
            or self._resting.get(organization_id, 0.0) > time.monotonic()
        ):
            return None
        return Reservation(self, acceptance, organization)

    # -- for reservations -----------------------------------------------------------------------------------

    def _take_room(self, acceptance: Acceptance) -> None:
        self._room.take(acceptance.organization_id, len(acceptance.body))

    def _give_room(self, acceptance: Acceptance) -> None:
        self._room.give_back(acceptance.organization_id, len(acceptance.body))

    def _run_now(self, acceptance: Acceptance, organization: str, message_id: str) -> None:
        """Run a message that was claimed; its room is taken."""
        self.counts["claimed"] += 1
        now = datetime.now(UTC)
        headers = {"content-type": acceptance.content_type, **acceptance.headers}
        message = Message(
            message_id,
            acceptance.body,
            headers,
            {} if acceptance.trigger is None else {"trigger": acceptance.trigger},
        )
        claimed = Claimed(
            acceptance.organization_id,
            acceptance.environment,
            acceptance.flow,
            acceptance.version,
            message_id,
            message,
            epoch=1,
            attempts=1,
            entry=None,
            hand_over_id=None,
            batch_id=None,
            owner=self.owner,
            lease_until=now + timedelta(seconds=self.lease_s),
            accepted_at=now,
        )
        lane = (acceptance.organization_id, acceptance.environment, acceptance.flow, acceptance.version)
        held = Held(claimed, organization, len(acceptance.body), False, lane)
        self._held.add(held)
        self._empty.clear()
        self._lanes.submit(held)

    def _heard(self, notice: Notice) -> bool:
        """Of a message that is settled now."""
        # Whoever sent it again meanwhile waits too.
        heard = self._hear(notice)
        return heard or (notice.organization_id, notice.message_id) in self._answered

    # -- as a stream worker ---------------------------------------------------------------------------------

    def _loops(self) -> Iterable[Callable[[], Coroutine[Any, Any, None]]]:
        # Workers that claim watch over all leases, these among them.
        return self._listener.run, self._settler.run, self._refresh, self._upkeep.renew

    def _outcome(self, held: Held, outcome: Outcome) -> None:
        reply, claimed = outcome.reply, held.claimed
        message = claimed.organization_id, claimed.message_id
        is_answered = (
            reply is not None
            and reply.code is None
            and outcome.status == "done"
            and not outcome.outputs
            and answers_when_ended(held.plan, claimed.message)
            and self._hear(Notice(*message, known=True, status=reply.status, reply=reply))
        )
        if is_answered:
            self._answered.add(message)
        self._settler.put(held, outcome, urgent=not is_answered)

    def _settled(self, held: Held, became: Became) -> None:
        super()._settled(held, became)
        self._answered.discard((held.claimed.organization_id, held.claimed.message_id))

    async def _claim(self) -> None:
        await self._stopping.wait()

    async def _close(self) -> None:
        # The pools are the process's.
        await self._settler.close()


class Reservation:
    """Room for one message, and the lease under which it is accepted (`accept.rows.Lease`)."""

    __slots__ = ("_acceptance", "_has_room", "_organization", "_worker")

    def __init__(self, worker: DirectWorker, acceptance: Acceptance, organization: str) -> None:
        self._worker = worker
        self._acceptance = acceptance
        self._organization = organization
        self._has_room = True
        worker._take_room(acceptance)

    @property
    def owner(self) -> str:
        return self._worker.owner

    @property
    def lease_s(self) -> float:
        return self._worker.lease_s

    def claimed(self, message_id: str) -> None:
        if not self._has_room:
            # Its caller left while it was committed.
            self._worker._take_room(self._acceptance)
        self._has_room = False
        self._worker._run_now(self._acceptance, self._organization, message_id)

    def end(self) -> None:
        """Give the room back, unless the message was claimed. Harmless when repeated."""
        if self._has_room:
            self._has_room = False
            self._worker._give_room(self._acceptance)
