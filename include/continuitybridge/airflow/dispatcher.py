"""The dispatcher: accepted messages become runs of their flows' DAGs.

Woken by NOTIFY as soon as a message is accepted, and by the clock for what no notification tells (a retry that is
due, a place that became free, a notification lost while a connection was down). Each batch is committed before its
run is made, under an id that names it: a crash in between leaves a batch whose run is made later, and making it
twice is refused by Airflow. Any number of dispatchers may run; none is needed for a message to be safe.

Held back are messages of DAGs that are paused, of flows that are disabled or removed, of a flow's version that
Airflow does not show yet, and of flows with enough runs under way. Messages of stream flows are left to the stream
workers, which are told here of Airflow's pause button.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from airflow.api.common.trigger_dag import trigger_dag
from airflow.exceptions import DagNotFound, DagRunAlreadyExists
from airflow.utils.session import create_session
from airflow.utils.types import DagRunTriggeredByType
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from continuitybridge import database
from continuitybridge.airflow import source as sources
from continuitybridge.airflow.configuration import FLOW_BUNDLE
from continuitybridge.airflow.stages import BATCH_MARK
from continuitybridge.airflow.upkeep import Upkeep
from continuitybridge.airflow.visible import visible_dags
from continuitybridge.deployments import list_since
from continuitybridge.deployments.verbs import CHANNEL as DEPLOYED
from continuitybridge.errors import Unavailable
from continuitybridge.flows.model import STREAM
from continuitybridge.inbox import batches, holds
from continuitybridge.inbox.accept import CHANNEL as ACCEPTED
from continuitybridge.inbox.batches import Batch, FlowKey
from continuitybridge.inbox.presence import LostLeases
from continuitybridge.inbox.replays import ReplayWorker
from continuitybridge.inbox.sweep import sweep
from continuitybridge.inbox.waits import CHANNEL_DUE, release_due
from continuitybridge.settings import get_settings

POLL_S = 0.5
"""How often is looked without a notification."""
RECONCILE_S = 1.0
"""How often open batches are compared with their runs."""
NEW_VERSION_WAIT_S = 30.0
"""How long messages wait for a changed flow's new DAG version. Then they run under the old one: they finish on
their own flow version all the same."""
MAX_BACKOFF_S = 300.0
"""Longest pause of a flow whose runs fail one after the other."""
USER_NAME = "dispatcher"
"""Who Airflow shows as having started a run."""

_log = logging.getLogger("continuitybridge.dispatcher")

_HELD = text("SELECT dag_id, is_paused FROM dag WHERE bundle_name = :bundle AND (is_paused OR is_stale)")
_RUNS = text(
    "SELECT r.dag_id, r.run_id, r.state FROM dag_run r"
    " JOIN unnest(CAST(:dag_ids AS text[]), CAST(:run_ids AS text[])) AS w (dag_id, run_id)"
    " ON r.dag_id = w.dag_id AND r.run_id = w.run_id"
)


@dataclass
class _Awaited:
    """A deployment that Airflow does not show yet."""

    fingerprint: str
    since: float


@dataclass
class _Resting:
    """A flow whose runs fail: none is started before `until`."""

    until: float = 0.0
    failures: int = 0


class Dispatcher:
    """`run` works until `stop`, riding out restarts of PostgreSQL."""

    def __init__(self) -> None:
        self._settings = get_settings()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._revision = 0
        self._deployed = threading.Event()
        self._deployed.set()
        self._flows: dict[str, FlowKey] = {}
        self._awaited: dict[str, _Awaited] = {}
        self._resting: dict[FlowKey, _Resting] = {}
        self._running: set[tuple[str, str]] = set()
        self._lost = LostLeases()
        self._mirrored: frozenset[FlowKey] | None = None
        # What a notification says of flows whose messages stream workers take.
        self._streams: set[str] = set()

    def run(self) -> None:
        listener = threading.Thread(target=self._listen, name="bridge-listen", daemon=True)
        listener.start()
        Upkeep(self._settings, self._stopping).start()
        replays = ReplayWorker()
        replays.start()
        _log.info("dispatching")
        next_reconcile = next_sweep = 0.0
        while not self._stopping.is_set():
            self._wake.wait(POLL_S)
            self._wake.clear()
            if self._stopping.is_set():
                break
            try:
                now = time.monotonic()
                if release_due().is_full:
                    self._wake.set()
                self.dispatch()
                if now >= next_reconcile:
                    next_reconcile = now + RECONCILE_S
                    self.reconcile()
                    self._end_lost_leases()
                if now >= next_sweep:
                    next_sweep = now + self._settings.sweep_interval_s
                    # In case the notification was lost.
                    self._deployed.set()
                    self._mirrored = None
                    self._sweep()
            except (Unavailable, DBAPIError) as error:
                self._deployed.set()
                _log.warning("the database does not answer, trying again: %s", _first_line(error))
                self._stopping.wait(1.0)
            except Exception:
                # Whatever it is, the other flows' messages must not wait for it.
                _log.exception("dispatching failed, trying again")
                self._stopping.wait(1.0)
        replays.stop()
        _log.info("stopped")

    def stop(self, *_: object) -> None:
        """End after what is being done now; safe in a signal handler."""
        self._stopping.set()
        self._wake.set()

    def dispatch(self) -> list[Batch]:
        """Put what is ready into batches and start their runs; returns the batches whose run stands."""
        held = self._held()
        made = batches.dispatch_ready(
            max_messages=self._settings.batch_max_messages,
            max_open_per_flow=self._settings.batch_max_active,
            paused=held,
        )
        if made:
            # There may be more than one call takes.
            self._wake.set()
        return [batch for batch in made if self._start(batch)]

    def reconcile(self) -> None:
        """Compare open batches with their runs: start runs that were not made, close what has ended, give back
        what an ended run left."""
        for batch in batches.unstarted():
            self._start(batch)
        opened = batches.open_batches()
        if not opened:
            self._running = set()
            return
        with create_session() as session:
            rows = session.execute(
                _RUNS,
                {"dag_ids": [each.dag_id for each in opened], "run_ids": [each.run_id for each in opened]},
            ).all()
        states = {(row[0], row[1]): row[2] for row in rows}
        self._running = {run for run, state in states.items() if state in ("queued", "running")}
        for batch in opened:
            state = states.get((batch.dag_id, batch.run_id))
            if state in ("success", "failed") or (state is None and batch.status == "started"):
                self._close(batch, state)

    def _close(self, batch: Batch, state: str | None) -> None:
        """End a batch whose run has ended (or was deleted). Marking success settled what was left as skipped when
        it was marked (see `listener`): what is left here was not, and must not be lost."""
        key = _key(batch)
        if batches.finish(batch):
            self._resting.pop(key, None)
            return
        released = batches.release(batch)
        _log.warning(
            "run %s of %s ended (%s) and left %d units, which go to a later run",
            batch.run_id,
            batch.dag_id,
            state or "deleted",
            released,
        )
        if state == "failed":
            self._rest(key)

    def _start(self, batch: Batch) -> bool:
        try:
            trigger_dag(
                batch.dag_id,
                run_id=batch.run_id,
                conf={"payload": {BATCH_MARK: batch.batch_id}},
                triggered_by=DagRunTriggeredByType.REST_API,
                triggering_user_name=USER_NAME,
            )
        except DagRunAlreadyExists:
            return True
        except DagNotFound:
            _log.info("the DAG %s is not there yet: its messages wait", batch.dag_id)
        except DBAPIError:
            # Nobody can tell whether the run was made: `reconcile` makes it, or finds it.
            raise
        except Exception:
            _log.exception("no run of %s could be started", batch.dag_id)
        else:
            _log.info("started run %s of %s for %d messages", batch.run_id, batch.dag_id, batch.messages)
            return True
        batches.release(batch)
        self._rest(_key(batch))
        return False

    def _rest(self, key: FlowKey) -> None:
        resting = self._resting.setdefault(key, _Resting())
        resting.failures += 1
        resting.until = time.monotonic() + min(MAX_BACKOFF_S, 2.0 ** (resting.failures - 1))

    def _held(self) -> set[FlowKey]:
        """Flows whose messages wait now."""
        self._read_deployments()
        held = {self._flows[dag_id] for dag_id in self._not_shown() if dag_id in self._flows}
        with create_session() as session:
            rows = session.execute(_HELD, {"bundle": FLOW_BUNDLE}).all()
        held |= {self._flows[row.dag_id] for row in rows if row.dag_id in self._flows}
        self._mirror(
            frozenset(self._flows[row.dag_id] for row in rows if row.is_paused and row.dag_id in self._flows)
        )
        now = time.monotonic()
        return held | {key for key, resting in self._resting.items() if resting.until > now}

    def _mirror(self, paused: frozenset[FlowKey]) -> None:
        """Tell whoever claims of Airflow's pause button: stream workers see nothing of Airflow."""
        if paused != self._mirrored:
            self._mirrored = None
            holds.mirror_airflow(paused)
            self._mirrored = paused

    def _read_deployments(self) -> None:
        if not self._deployed.is_set():
            return
        self._deployed.clear()
        for deployed in list_since(self._revision):
            dag_id = deployed.dag_id
            self._revision = max(self._revision, deployed.revision)
            if deployed.status == "removed":
                self._flows.pop(dag_id, None)
                self._awaited.pop(dag_id, None)
                continue
            self._flows[dag_id] = (deployed.organization_id, deployed.environment, deployed.flow)
            mark = sources.fingerprint(sources.dump(deployed))
            self._awaited[dag_id] = _Awaited(mark, time.monotonic())
            name = f"{deployed.organization_id}/{deployed.environment}/{deployed.flow}"
            (self._streams.add if deployed.plan.mode == STREAM else self._streams.discard)(name)

    def _not_shown(self) -> Iterable[str]:
        """DAGs that Airflow does not show in their deployed version."""
        if not self._awaited:
            return ()
        visible = visible_dags(self._awaited)
        now = time.monotonic()
        for dag_id, awaited in list(self._awaited.items()):
            dag = visible.get(dag_id)
            if dag is None:
                continue
            if dag.fingerprint == awaited.fingerprint:
                del self._awaited[dag_id]
            elif dag.fingerprint is not None and now - awaited.since > NEW_VERSION_WAIT_S:
                _log.warning("Airflow does not show the new version of %s; running under the old DAG", dag_id)
                del self._awaited[dag_id]
        return tuple(self._awaited)

    def _sweep(self) -> None:
        swept = sweep(running=self._running)
        if swept.leases_expired or swept.batches_abandoned or swept.orphans_released:
            _log.info("sweep: %s", swept)

    def _end_lost_leases(self) -> None:
        ended = self._lost.end()
        if ended:
            _log.warning("%d units were in the hands of stream workers that are gone; others take them up", ended)

    def _listen(self) -> None:
        while not self._stopping.is_set():
            try:
                for notice in database.listen([ACCEPTED, DEPLOYED, CHANNEL_DUE], timeout_s=30.0):
                    if notice.channel == DEPLOYED:
                        self._deployed.set()
                    if notice.payload not in self._streams:
                        self._wake.set()
            except Unavailable:
                self._stopping.wait(0.5)
            except Exception:
                _log.exception("listening failed, trying again")
                self._stopping.wait(1.0)


def run_dispatcher() -> None:
    """Dispatch until SIGTERM or SIGINT."""
    dispatcher = Dispatcher()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, dispatcher.stop)
    dispatcher.run()


def _key(batch: Batch) -> FlowKey:
    return batch.organization_id, batch.environment, batch.flow


def _first_line(error: Any) -> str:
    return str(error).strip().split("\n", 1)[0]
