"""What Airflow has of our DAGs now, read from its own tables. For the DAG processor and the dispatcher, which have
Airflow's database connection; a task has not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from airflow.utils.session import create_session
from sqlalchemy import text

_DAGS = text(
    "SELECT d.dag_id, d.is_paused, d.is_stale,"
    " (SELECT s.data #>> '{dag,default_args,__var,fingerprint}' FROM dag_version v"
    "  JOIN serialized_dag s ON s.dag_version_id = v.id WHERE v.dag_id = d.dag_id"
    "  ORDER BY v.version_number DESC LIMIT 1)"
    " FROM dag d WHERE d.dag_id = ANY(:dag_ids)"
)


@dataclass(frozen=True, slots=True)
class VisibleDag:
    """`fingerprint` is that of the source its newest version was built from; None when there is none of ours."""

    dag_id: str
    paused: bool
    stale: bool
    fingerprint: str | None


def visible_dags(dag_ids: Iterable[str]) -> dict[str, VisibleDag]:
    """Those of the DAGs that Airflow knows, by id."""
    with create_session() as session:
        rows = session.execute(_DAGS, {"dag_ids": list(dag_ids)}).all()
    return {row[0]: VisibleDag(*row) for row in rows}
