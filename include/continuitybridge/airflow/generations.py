"""The runs of the stream DAG: each is a generation of stream workers. Kept going, and not for ever, by the
dispatcher."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime, timedelta

from airflow.api.common.trigger_dag import trigger_dag
from airflow.exceptions import DagNotFound, DagRunAlreadyExists
from airflow.utils.session import create_session
from airflow.utils.types import DagRunTriggeredByType
from sqlalchemy import text

from continuitybridge.airflow.configuration import DAGS_BUNDLE, STREAM_DAG
from continuitybridge.settings import Settings

KEPT = timedelta(days=7)
"""How long Airflow remembers a generation."""

ALONE_S = 10.0
"""How long no generation may run before one is started out of turn."""

# Runs that ended before their time: marked by a person, or tried so often that Airflow gave up. The schedule would
# bring the next one, up to a generation later.
_NONE_RUNS = text(
    "SELECT count(r.id) > 0 AND count(r.id) FILTER (WHERE r.state IN ('queued', 'running')) = 0"
    " AND max(coalesce(r.end_date, r.run_after)) < now() - make_interval(secs => :alone)"
    " FROM dag d LEFT JOIN dag_run r ON r.dag_id = d.dag_id"
    " WHERE d.dag_id = :dag_id AND d.bundle_name = :bundle AND NOT d.is_paused AND NOT d.is_stale"
)
_FORGET_RUNS = text(
    "DELETE FROM dag_run WHERE dag_id = :dag_id AND state IN ('success', 'failed') AND run_after < :before"
)
_FORGET_LOG = text("DELETE FROM log WHERE dag_id = :dag_id AND dttm < :before")

_log = logging.getLogger("continuitybridge.upkeep")


def revive(settings: Settings) -> bool:
    """Start a generation when none runs, and say whether that was so. Not while somebody has the DAG paused."""
    if not settings.stream_workers:
        return False
    with create_session() as session:
        alone = session.execute(
            _NONE_RUNS, {"dag_id": STREAM_DAG, "bundle": DAGS_BUNDLE, "alone": ALONE_S}
        ).scalar()
    if not alone:
        return False
    try:
        # Several dispatchers make one run of it.
        trigger_dag(
            STREAM_DAG,
            run_id=f"revived__{int(time.time() // ALONE_S)}",
            triggered_by=DagRunTriggeredByType.REST_API,
            triggering_user_name="dispatcher",
        )
    except (DagRunAlreadyExists, DagNotFound):
        return False
    _log.warning("no stream workers ran: a generation was started out of turn")
    return True


def forget_runs() -> None:
    """Remove what Airflow remembers of generations older than `KEPT`; their workers remove their logs."""
    values = {"dag_id": STREAM_DAG, "before": datetime.now(UTC) - KEPT}
    with create_session() as session:
        session.execute(_FORGET_RUNS, values)
        session.execute(_FORGET_LOG, values)
