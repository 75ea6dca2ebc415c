"""The stream workers: they take each message of a stream flow as it comes in and run it, in milliseconds.

Each run is a generation of workers. It works for `BRIDGE_STREAM_GENERATION_S`, and 20 s longer while the next one
takes over. While this DAG is paused no generation follows; messages wait then and are not lost.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from continuitybridge.airflow.configuration import STREAM_DAG, STREAM_POOL
from continuitybridge.airflow.resident import StreamWorkerOperator
from continuitybridge.settings import get_settings

settings = get_settings()

if settings.stream_workers:
    with DAG(
        STREAM_DAG,
        description="Stream workers: they deliver messages of stream flows as they come in",
        doc_md=__doc__,
        schedule=timedelta(seconds=settings.stream_generation_s),
        catchup=False,
        is_paused_upon_creation=False,
        # This generation and the one that takes over.
        max_active_runs=2,
        # One that hangs must not keep the next one from its place for ever.
        dagrun_timeout=timedelta(seconds=2 * settings.stream_generation_s + 60),
        tags=["platform"],
        default_args={"owner": "platform"},
    ) as dag:
        for number in range(1, settings.stream_workers + 1):
            StreamWorkerOperator(
                task_id=f"worker_{number}",
                task_display_name=f"Stream worker {number}",
                generation_s=settings.stream_generation_s,
                pool=STREAM_POOL,
                priority_weight=100,
                weight_rule="absolute",
                # Whatever ends a worker before its time, another one takes its place at once.
                retries=100_000,
                retry_delay=timedelta(0),
            )
