"""From a deployed flow to its DAG: stages become tasks, schedulers the schedule, the manual trigger's schema the
parameters. Called by the generated files of the DAG bundle, in the DAG processor and in every task.

Byte-stable: the same source gives the same serialized DAG, hence no new DAG version.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, Param, get_parsing_context
from airflow.sdk.definitions.timetables.trigger import CronTriggerTimetable, MultipleCronTriggerTimetable

from continuitybridge.airflow import source as sources
from continuitybridge.airflow.configuration import organization_pool
from continuitybridge.airflow.documentation import render, stage_title
from continuitybridge.airflow.schedules import ZonedCronsTimetable
from continuitybridge.airflow.source import DagSource
from continuitybridge.airflow.stages import BATCH_MARK, RunStageOperator
from continuitybridge.flows.plan import Plan, PlanNode
from continuitybridge.settings import get_settings

SOURCES_DIR = "sources"
"""Directory beside that of the generated files; holds a JSON file per flow."""

MAX_TAG_LENGTH = 100

_log = logging.getLogger(__name__)
_ANY = ("object", "array", "string", "number", "boolean")


def build_dags(file: str, flows: Mapping[str, str]) -> dict[str, DAG]:
    """The DAGs of one generated file, by DAG id. `flows` maps each DAG id to its source's fingerprint.

    Inside a task only the task's own DAG is built (0.1 s instead of 0.4 s with 200 flows). A source that cannot
    be compiled is logged and left out: it must not take its neighbours along.
    """
    wanted = get_parsing_context().dag_id
    directory = Path(file).parent.parent / SOURCES_DIR
    dags = {}
    for dag_id in flows if wanted is None else [wanted] if wanted in flows else ():
        try:
            dags[dag_id] = compile_dag(sources.load(directory / f"{dag_id}.json"), shown=wanted is None)
        except Exception:
            if wanted is not None:
                raise
            _log.exception("the DAG of %s could not be built", dag_id)
    return dags


def compile_dag(source: DagSource, *, shown: bool = True) -> DAG:
    """The DAG of a deployed flow: as Airflow shows and schedules it, or (`shown` false) as a task runs it."""
    plan = source.plan
    schedule = _schedule(plan) if source.status == "active" else None
    dag = DAG(
        source.dag_id,
        description=source.description or None,
        doc_md=render(source),
        schedule=schedule,
        catchup=False,
        is_paused_upon_creation=False,
        tags=_tags(source),
        default_args={"owner": source.organization, "fingerprint": source.fingerprint},
        owner_links={
            source.organization: f"{get_settings().external_url}/dags?tags=organization:{source.organization}"
        },
        params={"payload": _payload_param(plan, scheduled=schedule is not None)},
    )
    # Airflow shows what comes out of the flow. A task has no outlets: Airflow would make an event of its own for
    # each run, without counts, and ask the api-server before each; the dispatcher tells (see `outcomes`).
    outlets = [Asset(source.asset_uri)] if shown else []
    tasks = {}
    downstream = {upstream for stage in plan.stages for upstream in stage.upstream}
    for stage in plan.stages:
        # Joined to the DAG afterwards: handed to the constructor, each would copy the DAG's params for itself,
        # a quarter of the whole compilation.
        task = tasks[stage.id] = RunStageOperator(
            task_id=stage.id,
            task_display_name=stage_title(plan, stage.nodes),
            owner=source.organization,
            pool=organization_pool(source.organization),
            organization_id=source.organization_id,
            organization=source.organization,
            environment=source.environment,
            plan=plan,
            stage=stage.id,
            enabled=source.status == "active",
            first=stage is plan.stages[0],
            last=stage.id not in downstream,
            # A stage runs for the messages that came through, whatever became of the others.
            trigger_rule="all_done" if stage.upstream else "all_success",
            retries=3,
            retry_delay=timedelta(seconds=1),
            weight_rule="absolute",
            outlets=outlets if stage.id not in downstream else [],
        )
        task.dag = dag
    for stage in plan.stages:
        for upstream in stage.upstream:
            tasks[upstream].set_downstream(tasks[stage.id])
    for (upstream, stage_id), label in _routes(plan).items():
        dag.set_edge_info(upstream, stage_id, {"label": label})
    return dag


def schedulers(plan: Plan) -> list[PlanNode]:
    """The plan's scheduler nodes."""
    return [plan.nodes[node] for node in plan.triggers if plan.nodes[node].type == "scheduler"]


def manual_schema(plan: Plan) -> Mapping[str, Any] | None:
    """JSON Schema of the payload of a run started by hand, if the flow declares one."""
    for trigger in plan.triggers:
        node = plan.nodes[trigger]
        if node.type == "manual_trigger" and isinstance(schema := node.config.get("schema"), Mapping):
            return schema
    return None


def _schedule(plan: Plan) -> Any:
    nodes = schedulers(plan)
    if not nodes:
        # Without a schedule Airflow refuses backfills: what came in by an event cannot be had again by date.
        return None
    schedules = [(str(node.config["cron"]), str(node.config.get("timezone", "UTC"))) for node in nodes]
    schedules = list(dict.fromkeys(schedules))
    crons = [cron for cron, _ in schedules]
    zones = {zone for _, zone in schedules}
    if len(zones) > 1:
        return ZonedCronsTimetable(schedules)
    if len(crons) > 1:
        return MultipleCronTriggerTimetable(*crons, timezone=zones.pop())
    return CronTriggerTimetable(crons[0], timezone=zones.pop())


def _payload_param(plan: Plan, *, scheduled: bool) -> Param:
    schema = dict(manual_schema(plan) or {})
    types = schema.get("type", _ANY)
    kinds: list[str] = [types] if isinstance(types, str) else list(types)
    if "object" not in kinds:
        kinds.append("object")
    if scheduled and "null" not in kinds:
        kinds.append("null")
    description = str(schema.get("description") or "What the message holds: JSON, or a text such as XML.")
    rules: dict[str, Any] = {"title": str(schema.get("title") or "Payload"), "type": kinds}
    if schema:
        exempt: list[dict[str, Any]] = [{"type": "object", "required": [BATCH_MARK]}]
        if scheduled:
            exempt.append({"type": "null"})
        # Not `anyOf`: the refusal would say that nothing fits instead of what is wrong.
        rules |= {"if": {"anyOf": exempt}, "else": schema}
    if scheduled:
        # Airflow runs no schedule with a parameter that has no default; such a run takes the scheduler's payload.
        return Param(None, description=description, schema=rules)
    return Param(description=description, schema=rules)


def _tags(source: DagSource) -> list[str]:
    tags = [
        f"organization:{source.organization}",
        f"environment:{source.environment}",
        f"version:{source.version}",
        f"mode:{source.plan.mode}",
        *(f"{name}:{value}" for name, value in source.labels.items()),
        *sorted({source.plan.nodes[trigger].type for trigger in source.plan.triggers}),
    ]
    if source.status != "active":
        tags.append(source.status)
    return [tag[:MAX_TAG_LENGTH] for tag in tags]


def _routes(plan: Plan) -> dict[tuple[str, str], str]:
    """Names of the routes between stages, where they have one besides `out`."""
    routes: dict[tuple[str, str], list[str]] = {}

    def note(node: PlanNode, port: str, targets: Iterable[str]) -> None:
        for target in targets:
            stage = plan.nodes[target].stage
            if stage != node.stage and port != "out":
                routes.setdefault((node.stage, stage), []).append(port)

    for node in plan.nodes.values():
        for port, targets in node.next.items():
            note(node, port, targets)
        if node.on_error:
            note(node, "error", [node.on_error])
    return {edge: ", ".join(dict.fromkeys(ports)) for edge, ports in routes.items()}
