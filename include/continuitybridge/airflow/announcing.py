"""Keeping Airflow's page of required actions like our table of what waits for a person."""

from __future__ import annotations

import time

from airflow.api.common.trigger_dag import trigger_dag
from airflow.exceptions import DagNotFound, DagRunAlreadyExists
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from airflow.utils.types import DagRunTriggeredByType
from sqlalchemy import select

from continuitybridge.airflow.approval_names import DAG_NAME, TASK_ID, approval_of, run_id
from continuitybridge.airflow.approvals import MAX_OPEN
from continuitybridge.inbox.waits import announcements
from continuitybridge.inbox.waits.announcements import Unannounced

ABSENT_S = 10.0
"""How long a DAG is left alone that Airflow does not show yet."""
USER_NAME = "dispatcher"


class Announcer:
    """What the dispatcher does for it now and then; any number may. Raises `Unavailable` or SQLAlchemy's errors
    while a database is away, and goes on at the next call."""

    def __init__(self) -> None:
        self._absent: dict[str, float] = {}

    def announce(self) -> int:
        """Make a request of each approval that has none; returns how many stand now."""
        now = time.monotonic()
        self._absent = {dag_id: until for dag_id, until in self._absent.items() if until > now}
        absent = [dag_id.rsplit(".", 1)[0] for dag_id in self._absent]
        shown = [each for each in announcements.unannounced(MAX_OPEN, except_in=absent) if self._show(each)]
        if shown:
            announcements.mark_announced(shown)
        return len(shown)

    def _show(self, each: Unannounced) -> bool:
        dag_id = f"{each.organization}.{each.environment}.{DAG_NAME}"
        if dag_id in self._absent:
            return False
        try:
            trigger_dag(
                dag_id,
                run_id=run_id(each.approval_id),
                conf={"approval": str(each.approval_id), "subject": each.subject, "body": each.body},
                triggered_by=DagRunTriggeredByType.REST_API,
                triggering_user_name=USER_NAME,
            )
        except DagRunAlreadyExists:
            return True
        except DagNotFound:
            self._absent[dag_id] = time.monotonic() + ABSENT_S
            return False
        return True

    def close(self) -> int:
        """Skip the requests of what waits no more; returns how many."""
        with create_session() as session:
            rows = session.execute(
                select(TaskInstance.id, TaskInstance.run_id).where(
                    TaskInstance.dag_id.endswith(f".{DAG_NAME}", autoescape=True),
                    TaskInstance.task_id == TASK_ID,
                    TaskInstance.state == TaskInstanceState.AWAITING_INPUT,
                )
            ).all()
        found = {approval: row.id for row in rows if (approval := approval_of(row.run_id)) is not None}
        if not found:
            return 0
        over = set(found) - announcements.still_waiting(found)
        for approval in over:
            with create_session() as session:
                task = session.get(TaskInstance, found[approval], with_for_update={"of": TaskInstance})
                # Somebody may have responded meanwhile: then the task writes that nothing was changed.
                if task is not None and task.state == TaskInstanceState.AWAITING_INPUT:
                    task.set_state(TaskInstanceState.SKIPPED, session=session)
        return len(over)
