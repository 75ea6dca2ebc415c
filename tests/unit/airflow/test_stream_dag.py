"""The DAG of the stream workers, as Airflow reads it."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from continuitybridge.settings import get_settings, project_root


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Reads `dags/stream.py` with these settings; gives the DAG, or None when there is none."""

    def read_it(**settings: str) -> Any:
        for name, value in settings.items():
            monkeypatch.setenv(f"BRIDGE_{name}", value)
        get_settings.cache_clear()
        return runpy.run_path(str(project_root() / "dags" / "stream.py")).get("dag")

    yield read_it
    monkeypatch.undo()
    get_settings.cache_clear()


def version(dag: Any) -> str:
    """What Airflow compares to decide on a new version of the DAG."""
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.serialization.serialized_objects import DagSerialization

    return str(SerializedDagModel.hash(DagSerialization.to_dict(dag)))


def test_two_generations_at_most_work_at_a_time_in_a_pool_of_their_own(read: Any) -> None:
    dag = read(STREAM_WORKERS="3", STREAM_GENERATION_S="600")
    assert dag.dag_id == "stream"
    assert dag.is_paused_upon_creation is False
    assert dag.max_active_runs == 2
    assert dag.schedule == timedelta(seconds=600)
    assert sorted(task.task_id for task in dag.tasks) == ["worker_1", "worker_2", "worker_3"]
    assert {task.pool for task in dag.tasks} == {"stream"}
    assert {task.retry_delay for task in dag.tasks} == {timedelta(0)}
    assert not any(task.upstream_task_ids for task in dag.tasks)


def test_reading_it_again_gives_no_new_version_and_another_setting_does(read: Any) -> None:
    first = version(read())
    assert version(read()) == first
    assert version(read(STREAM_WORKERS="5")) != first


def test_without_stream_workers_there_is_no_dag(read: Any) -> None:
    assert read(STREAM_WORKERS="0") is None


def test_there_is_room_for_two_generations_beside_all_other_tasks() -> None:
    from continuitybridge.airflow.configuration import airflow_options, stream_slots

    settings = get_settings().model_copy(update={"task_parallelism": 5, "stream_workers": 3})
    options = airflow_options(settings)
    assert stream_slots(settings) == 6
    assert options["core", "parallelism"] == "11"
    assert options["core", "default_pool_task_slot_count"] == "5"


def test_a_worker_whose_generation_is_over_leaves_at_once(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from continuitybridge.airflow import resident

    monkeypatch.setattr(resident, "die_with_parent", lambda: None)
    task = read(STREAM_GENERATION_S="60").get_task("worker_1")
    due = datetime.now(UTC) - timedelta(seconds=60 + resident.OVERLAP_S + 1)
    context = {"ti": SimpleNamespace(id="t", dag_id="stream"), "dag_run": SimpleNamespace(run_after=due)}
    assert task.execute(context) == {}
