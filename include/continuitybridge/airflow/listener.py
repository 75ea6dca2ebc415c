"""What a person says about a run in Airflow's UI or REST API, told to the inbox: marking success settles what is
left as skipped. Called in the api-server, before Airflow commits the mark.

When a mark does not get here (the api-server dies in between), the dispatcher finds a finished run with unsettled
messages and gives them to a later run: they are delivered rather than skipped.
"""

from __future__ import annotations

import logging
from typing import Any

from airflow.listeners import hookimpl

_log = logging.getLogger(__name__)

_BY_HAND = "manually set"
"""What Airflow's API says of a run's new state, and its scheduler never does."""


class MarkListener:
    """Airflow listener."""

    @hookimpl
    def on_dag_run_success(self, dag_run: Any, msg: str) -> None:
        if _BY_HAND in msg:
            _skip(dag_run.dag_id, dag_run.run_id, None)

    @hookimpl
    def on_task_instance_success(self, previous_state: Any, task_instance: Any) -> None:
        # A task that ends by itself says so in its own process, with the state before.
        if previous_state is None and hasattr(task_instance, "dag_run"):
            _skip(task_instance.dag_id, task_instance.run_id, task_instance.task_id)


def _skip(dag_id: str, run_id: str, stage: str | None) -> None:
    if dag_id.count(".") != 2:
        return
    from continuitybridge.errors import BridgeError, NotFound
    from continuitybridge.inbox import batches
    from continuitybridge.inbox.settle import skip

    try:
        skipped = skip(batches.find(dag_id, run_id), stage=stage, by="mark success")
    except NotFound:
        return
    except BridgeError:
        _log.exception("messages of run %s of %s could not be settled as skipped", run_id, dag_id)
        return
    if skipped:
        _log.info("%d units of run %s of %s settled as skipped", skipped, run_id, dag_id)
