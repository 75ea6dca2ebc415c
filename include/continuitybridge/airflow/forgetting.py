"""What Airflow remembers of organizations that were deleted: DAGs, runs, tasks, XComs, logs. Their DAG files are
gone by then."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from airflow.api.common.delete_dag import delete_dag
from airflow.configuration import conf
from airflow.exceptions import DagNotFound
from airflow.sdk.exceptions import AirflowException
from airflow.utils.session import create_session
from sqlalchemy import text

from continuitybridge import lifecycle

_DAGS = text("SELECT dag_id FROM dag WHERE starts_with(dag_id, :prefix)")
_FORGET_LOG = text("DELETE FROM log WHERE starts_with(dag_id, :prefix)")

_log = logging.getLogger("continuitybridge.upkeep")


def forget_deleted() -> int:
    """Remove it, of every organization that was deleted since; returns of how many. One with tasks that still run
    is left for the next call. A crash in between: the next call goes on."""
    done = 0
    for organization in lifecycle.unforgotten():
        prefix = f"{organization.slug}."
        try:
            _forget(prefix)
        except AirflowException as error:
            _log.info("tasks of %s still run: %s", organization.slug, error)
            continue
        lifecycle.forgotten(organization.organization_id)
        done += 1
    return done


def _forget(prefix: str) -> None:
    with create_session() as session:
        dag_ids = [row[0] for row in session.execute(_DAGS, {"prefix": prefix})]
    for dag_id in dag_ids:
        try:
            delete_dag(dag_id, keep_records_in_log=False)
        except DagNotFound:
            continue
    with create_session() as session:
        session.execute(_FORGET_LOG, {"prefix": prefix})
    # Logs that are kept elsewhere go by the rules of that place.
    for directory in Path(conf.get("logging", "base_log_folder")).glob(f"dag_id={prefix}*"):
        shutil.rmtree(directory, ignore_errors=True)
