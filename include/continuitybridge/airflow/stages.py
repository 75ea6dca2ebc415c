"""The task of a flow's DAG: one stage of the plan, over the messages of the run.

At least once: a task that is killed after a delivery and before the message is settled delivers again, with the
same Idempotency-Key. Settled once: whatever Airflow leaves running as a duplicate holds an old epoch.

What a task's colour says: green, everything it took was settled or handed on, or waits for another try in a later
run; red, messages of its run became dead letters (they stand in triage, and running the task again runs none of
them) or the task itself could not work (then Airflow tries it again); pink, no message came this way.
"""

from __future__ import annotations

import logging
import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

import orjson
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from continuitybridge.airflow.processes import die_with_parent
from continuitybridge.errors import BridgeError, Verdict
from continuitybridge.flows.model import STREAM
from continuitybridge.flows.plan import Plan

if TYPE_CHECKING:
    from airflow.sdk import Context

    from continuitybridge.inbox.accept import Acceptance
    from continuitybridge.inbox.batches import Batch
    from continuitybridge.vault.keyring import Cipher

BATCH_MARK = "bridge:batch"
"""In place of a payload in `conf`: the run belongs to messages that are in the inbox already."""

_log = logging.getLogger("continuitybridge.stage")


class RunStageOperator(BaseOperator):
    """Runs one stage of a flow. Made by the DAG compiler; not for DAGs written by hand.

    A run that the dispatcher started has its batch already. Any other run (UI, REST, schedule, backfill) enters
    by the inbox in its first task: its payload becomes a message, under the run's id as idempotency key.

    Messages finish on the flow version they began on: a batch of another version than the DAG's is run whole, in
    whichever of the run's tasks comes to it first.

    XCom: counts only (`{"claimed": 3, "done": 2, "dead": 1}`).
    """

    ui_color = "#e8f1fb"
    custom_operator_name: ClassVar[str] = "Stage"

    def __init__(
        self,
        *,
        organization_id: UUID,
        organization: str,
        environment: str,
        plan: Plan,
        stage: str,
        first: bool,
        last: bool,
        enabled: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.organization_id = organization_id
        self.organization = organization
        self.environment = environment
        self.plan = plan
        self.stage = stage
        self.first = first
        self.last = last
        self.enabled = enabled

    def execute(self, context: Context) -> dict[str, int]:
        try:
            return self._execute(context)
        except BridgeError as error:
            if error.verdict is Verdict.TRANSIENT:
                raise
            # Trying again at once cannot help; the messages go to a later run.
            raise AirflowFailException(f"{error.code}: {error.detail}") from error

    def _execute(self, context: Context) -> dict[str, int]:
        from continuitybridge.airflow.services import TaskKeys, TaskServices
        from continuitybridge.airflow.work import StageWork
        from continuitybridge.engine.runner import Runner
        from continuitybridge.inbox.batches import dead_letters, finish

        die_with_parent()
        with Runner() as runner:
            # Before this process has threads (database pools make some): then its copy starts in milliseconds.
            runner.warm(self.plan)
            ti = context["ti"]
            with ThreadPoolExecutor(1) as side:
                # The database and the api-server are asked at the same time.
                found = side.submit(_find, ti.dag_id, ti.run_id)
                keys = TaskKeys()
                batch = found.result() or self._begin(context, keys)
            work = StageWork(
                batch=batch,
                plan=self._plan_of(batch),
                stage=self.stage if batch.version == self.plan.version else None,
                owner=f"{ti.dag_id}/{ti.run_id}/{ti.task_id}/{ti.try_number}/{os.getpid()}",
                organization=self.organization,
                keys=keys,
                services=TaskServices(),
                runner=runner,
            )
            counts = work.run(fence=ti.try_number > 1)
        finish(batch)
        return self._conclude(counts, dead_letters(batch) if self.last or counts["dead"] else 0)

    def on_kill(self) -> None:
        """Airflow ended the task (cleared, marked, shut down): leave at once. The node processes die with this
        one, what was claimed goes to the next try."""
        raise SystemExit(128 + signal.SIGTERM)

    def _plan_of(self, batch: Batch) -> Plan:
        if batch.version == self.plan.version:
            return self.plan
        from continuitybridge.deployments import get_plan

        _log.info(
            "the run's messages began on version %s of the flow and finish on it (the DAG is at %s)",
            batch.version,
            self.plan.version,
        )
        return get_plan(self.organization_id, self.plan.flow, batch.version)

    def _begin(self, context: Context, keys: Cipher) -> Batch:
        """Make the batch of a run that began outside the inbox."""
        from continuitybridge.errors import Conflict
        from continuitybridge.inbox import batches, holds

        run = context["dag_run"]
        payload = (run.conf or {}).get("payload")
        if not self.first:
            raise AirflowSkipException("the run has no messages: its first task did not take any")
        if isinstance(payload, dict) and BATCH_MARK in payload:
            raise AirflowFailException(
                f"the run says that its messages are in a batch, but {run.run_id} has none; start a run by hand "
                "with the message itself in `payload`"
            )
        if not self.enabled:
            raise AirflowFailException(
                f"flow {self.plan.flow} is disabled in {self.environment}: enable it, then start the run again"
            )
        try:
            holds.check_taking(self.organization_id, self.environment, self.plan.flow, self.plan.version)
        except holds.Draining as error:
            raise AirflowFailException(f"{error.detail}; resume it, then start the run again") from None
        try:
            return batches.adopt(
                run.dag_id,
                run.run_id,
                organization_id=self.organization_id,
                environment=self.environment,
                flow=self.plan.flow,
                version=self.plan.version,
                acceptances=list(self._acceptances(run, payload)),
                keys=keys,
            )
        except Conflict as error:
            raise AirflowFailException(f"the run's payload is not the one it began with: {error.detail}") from None

    def _acceptances(self, run: Any, payload: Any) -> Iterator[Acceptance]:
        """The messages of a run that began outside the inbox."""
        if payload is not None:
            manual = (name for name in self.plan.triggers if self.plan.nodes[name].type == "manual_trigger")
            yield self._acceptance(run, "manual", *_body(payload), trigger=next(manual, None))
            return
        fired = _fired(self.plan, run)
        if not fired:
            raise AirflowFailException("the run has no payload: give the message in `payload`")
        for trigger, body in fired:
            yield self._acceptance(run, "schedule", body, "application/json", trigger=trigger)

    def _acceptance(
        self, run: Any, source: Any, body: bytes, content_type: str, trigger: str | None
    ) -> Acceptance:
        from continuitybridge.inbox.accept import Acceptance

        return Acceptance(
            organization_id=self.organization_id,
            environment=self.environment,
            flow=self.plan.flow,
            version=self.plan.version,
            source=source,
            body=body,
            content_type=content_type,
            idempotency_key=f"{run.dag_id}/{run.run_id}/{trigger or ''}",
            trigger=trigger,
            mode="stream" if self.plan.mode == STREAM else "batch",
            ordering=self.plan.ordering,
        )

    def _conclude(self, counts: Counter[str], dead: int) -> dict[str, int]:
        said = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()) if count) or "nothing to do"
        _log.info("stage %s: %s", self.stage, said)
        if counts["retry"]:
            _log.info("what is tried again comes in a later run of this DAG, when its time has come")
        if counts["lost"]:
            raise RuntimeError(
                f"{counts['lost']} messages could not be settled; they are run again when their lease ends"
            )
        if dead:
            raise AirflowFailException(
                f"{dead} messages of this run are dead letters: they wait in triage with the reason, the others "
                "went on. Running this task again does not run them; replaying them does."
            )
        if not counts["claimed"] and not self.first:
            raise AirflowSkipException("no message came this way")
        return {what: count for what, count in sorted(counts.items()) if count}


def _find(dag_id: str, run_id: str) -> Batch | None:
    from continuitybridge.errors import NotFound
    from continuitybridge.inbox import batches

    try:
        return batches.find(dag_id, run_id)
    except NotFound:
        return None


def _body(payload: Any) -> tuple[bytes, str]:
    """A payload of `conf` as the bytes a webhook would have brought, and their media type."""
    if not isinstance(payload, str):
        return orjson.dumps(payload), "application/json"
    xml = payload.lstrip().startswith("<")
    return payload.encode(), "application/xml" if xml else "text/plain"


def _fired(plan: Plan, run: Any) -> list[tuple[str, bytes]]:
    """The schedulers whose time it is, with their messages' bodies; by hand, the first one."""
    from continuitybridge.nodes.base import BuildContext
    from continuitybridge.nodes.registry import build
    from continuitybridge.nodes.triggers.scheduler import Scheduler

    nodes = [plan.nodes[name] for name in plan.triggers if plan.nodes[name].type == Scheduler.type]
    built = [(node.id, build(node.type, node.config, BuildContext(plan.flow, node.id))) for node in nodes]
    schedulers = [(id, node) for id, node in built if isinstance(node, Scheduler)]
    time = run.logical_date or run.run_after
    due = [(id, node) for id, node in schedulers if str(run.run_type) != "manual" and node.fires_at(time)]
    return [(id, node.body_at(time)) for id, node in due or schedulers[:1]]
