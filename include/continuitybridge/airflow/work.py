"""The work of a stage's task: claim, run, settle, until nothing of the batch is left for it."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from continuitybridge import destinations
from continuitybridge.engine.circuit import CircuitState
from continuitybridge.engine.destinations import DestinationState
from continuitybridge.engine.limits import Limits
from continuitybridge.engine.message import Outcome
from continuitybridge.engine.runner import Runner
from continuitybridge.errors import BridgeError, Unavailable
from continuitybridge.flows.plan import Plan
from continuitybridge.inbox import claim as claims
from continuitybridge.inbox.batches import Batch
from continuitybridge.inbox.claim import Claimed
from continuitybridge.inbox.retry import turned_back_by
from continuitybridge.inbox.settle import Became, settle_many
from continuitybridge.nodes.base import Services
from continuitybridge.settings import get_settings
from continuitybridge.vault.keyring import Cipher

CLAIM_MESSAGES = 100
"""Messages held in memory at once, each up to `BRIDGE_MAX_MESSAGE_BYTES`."""
CONCURRENCY = 8
"""Messages for which the outside world is called at once, unless their flow asks for fewer."""
LINES_PER_KIND = 200
"""So many messages of each ending are named in the log; the others are counted."""
MAX_DETAIL_LENGTH = 500

_log = logging.getLogger("continuitybridge.stage")
_SAID: dict[Became, str] = {
    "done": "done",
    "skipped": "skipped",
    "handed_over": "handed on",
    "retry": "not done, will be tried again",
    "dead": "failed, now a dead letter",
    "stale": "held or settled by another worker meanwhile; left alone",
}


@dataclass
class StageWork:
    """`stage` None: the whole plan, from wherever each message stands."""

    batch: Batch
    plan: Plan
    stage: str | None
    owner: str
    organization: str
    keys: Cipher
    services: Services
    runner: Runner
    said: Sequence[DestinationState] = ()

    def run(self, *, fence: bool) -> Counter[str]:
        """Counts by ending, and `claimed`; `lost` are those that ended but could not be written.

        `fence`: first end the leases of this task's former tries. Raises `Unavailable` when the database stays
        away for longer than a lease. When it cannot go on, or is ended from outside, it gives back what it held:
        whoever comes next has it at once, and the attempt counts.
        """
        try:
            return self._run(fence)
        except BaseException:
            with suppress(BridgeError):
                claims.fence(self.batch, "", self.stage)
            raise

    def _run(self, fence: bool) -> Counter[str]:
        settings = get_settings()
        limits = Limits.from_settings(settings)
        if fence:
            self._fence()
        counts: Counter[str] = Counter()
        while True:
            units = claims.claim(
                self.batch, self.owner, settings.lease_s, CLAIM_MESSAGES, self.stage, keys=self.keys
            )
            counts["claimed"] += len(units)
            if units:
                _log.info("took %d messages of batch %s", len(units), self.batch.batch_id)
                counts.update(self._run_units(units, limits, settings.lease_s))
            # The stages before this one have ended; what can still join the batch are groups that were completed
            # by what was just settled, and what is ordered, which comes one by one.
            if not units:
                return counts

    def _fence(self) -> None:
        freed = claims.fence(self.batch, self.owner, self.stage)
        if freed:
            _log.warning("%d messages were under way in a former try of this task; taken over", freed)

    def _run_units(self, units: Sequence[Claimed], limits: Limits, lease_s: float) -> Counter[str]:
        with Settler(units, self.plan, self.keys, lease_s) as settler:
            for wave in _waves(units):
                outcomes = self.runner.run(
                    self.plan,
                    [unit.message for unit in wave.values()],
                    services=self.services,
                    limits=limits,
                    stage=self.stage,
                    entry={name: unit.entry for name, unit in wave.items() if unit.entry is not None},
                    organization=self.organization,
                    environment=self.batch.environment,
                    concurrency=min(CONCURRENCY, self.plan.concurrency or CONCURRENCY),
                    destinations=self._destinations(),
                    on_circuit=self._tell_circuit,
                )
                for outcome in outcomes:
                    settler.put(wave[outcome.message_id], outcome)
        return settler.counts

    def _destinations(self) -> Sequence[DestinationState]:
        """What is said of destinations now; while the database does not answer, what was said last."""
        with suppress(Unavailable):
            self.said = destinations.states(self.batch.organization_id, self.batch.environment)
        return self.said

    def _tell_circuit(self, name: str, circuit: CircuitState) -> None:
        what = "closed" if not circuit.openings else "opened"
        _log.warning("the circuit of destination %s %s", name, what)
        try:
            destinations.record(self.batch.organization_id, self.batch.environment, name, circuit)
        except Unavailable as error:
            _log.warning("others do not know of it: %s", error.detail)


def _waves(units: Sequence[Claimed]) -> Iterator[dict[str, Claimed]]:
    """Units by message id. One message may stand at two nodes at once (a fan-out into this stage): such units run
    one after the other, because the engine tells messages apart by their ids."""
    rest = list(units)
    while rest:
        wave: dict[str, Claimed] = {}
        later = []
        for unit in rest:
            if unit.message.id in wave:
                later.append(unit)
            else:
                wave[unit.message.id] = unit
        yield wave
        rest = later


class Settler:
    """Writes outcomes beside the engine, in a thread: whatever came while the last transaction ran goes into the
    next one. Renews the leases of what is still under way. Rides out a database restart of up to a lease's
    length; what could not be written then is counted as `lost` and its lease runs out."""

    def __init__(self, units: Sequence[Claimed], plan: Plan, keys: Cipher, lease_s: float) -> None:
        self.counts: Counter[str] = Counter()
        self._plan = plan
        self._keys = keys
        self._lease_s = lease_s
        self._held = {self._key(unit): unit for unit in units}
        self._queue: list[tuple[Claimed, Outcome]] = []
        self._changed = threading.Condition()
        self._closing = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="bridge-settler", daemon=True)

    def __enter__(self) -> Settler:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        # Airflow kills a task that it ended some seconds later.
        self._thread.join(timeout=None if kind is None else 5.0)
        if kind is None and self._error is not None:
            raise self._error

    def put(self, unit: Claimed, outcome: Outcome) -> None:
        """Have an outcome written. Raises what made the writing give up."""
        if self._error is not None:
            raise self._error
        with self._changed:
            self._queue.append((unit, outcome))
            self._changed.notify()

    def _work(self) -> None:
        try:
            renew_at = time.monotonic() + self._lease_s / 3
            while True:
                with self._changed:
                    while not self._queue and not self._closing and time.monotonic() < renew_at:
                        self._changed.wait(max(0.0, renew_at - time.monotonic()))
                    taken, self._queue = self._queue, []
                    closing = self._closing
                if taken:
                    self._settle(taken)
                elif closing:
                    return
                if time.monotonic() >= renew_at:
                    self._renew()
                    renew_at = time.monotonic() + self._lease_s / 3
        except BaseException as error:
            self._error = error

    def _settle(self, taken: list[tuple[Claimed, Outcome]]) -> None:
        give_up_at = time.monotonic() + self._lease_s
        wait_s = 0.05
        while True:
            try:
                became = settle_many(taken, keys=self._keys, plan=self._plan)
                break
            except Unavailable:
                if time.monotonic() > give_up_at:
                    self.counts["lost"] += len(taken)
                    raise
                time.sleep(wait_s)
                wait_s = min(1.0, wait_s * 2)
        for (unit, outcome), ending in zip(taken, became, strict=True):
            self._held.pop(self._key(unit), None)
            self.counts[ending] += 1
            self._tell(unit, outcome, ending)

    def _renew(self) -> None:
        held = list(self._held.values())
        if not held:
            return
        try:
            kept = {self._key(unit) for unit in claims.renew(held, self._lease_s)}
        except Unavailable as error:
            _log.warning("leases could not be renewed now: %s", error.detail)
            return
        for unit in held:
            if self._key(unit) not in kept:
                _log.warning("message %s was taken over by another worker", unit.message_id)
                self._held.pop(self._key(unit), None)

    def _tell(self, unit: Claimed, outcome: Outcome, ending: Became) -> None:
        if self.counts[ending] > LINES_PER_KIND:
            return
        took_ms = sum(step.duration_us for step in outcome.trace) / 1000
        _log.info("message %s: %s (%.1f ms, try %d)", unit.message.id, _SAID[ending], took_ms, unit.attempts)
        for failure in outcome.failures:
            if turned_back_by(failure) is not None:
                _log.info("message %s waits at %s: %s", failure.message_id, failure.node_id, failure.detail)
                continue
            _log.warning(
                "message %s failed at %s (%s): %s",
                failure.message_id,
                failure.node_id,
                failure.code,
                failure.detail[:MAX_DETAIL_LENGTH],
            )
        if self.counts[ending] == LINES_PER_KIND:
            _log.info("further messages that are %s are only counted", _SAID[ending])

    @staticmethod
    def _key(unit: Claimed) -> tuple[str, object]:
        return unit.message_id, unit.hand_over_id
