"""What Airflow is told of a deployed flow."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from continuitybridge.airflow.documentation import diagram, render
from continuitybridge.airflow.source import DagSource

Source = Callable[..., DagSource]

ORDERS = """\
flow: orders
version: 1.2.0
description: Orders to the warehouse
labels: {team: logistics, tier: gold}
triggers:
  - {id: order-in, type: webhook_trigger, label: Order, config: {slug: orders}}
  - id: by-hand
    type: manual_trigger
    config: {schema: {type: object, required: [po], properties: {po: {type: string}}, title: An order}}
steps:
  - {id: parse, type: json_parser}
  - id: by-country
    type: conditional
    isolate: true
    config: {branches: {domestic: '.country == "CH"'}}
    next: {domestic: local, otherwise: abroad}
  - {id: local, type: logger, isolate: true, config: {message: local}, next: end}
  - {id: abroad, type: logger, isolate: true, config: {message: abroad}, next: end, on_error: local}
"""
CLOCK = """\
flow: clock
version: 1.0.0
triggers:
{triggers}
steps:
  - {{id: note, type: logger, config: {{message: tick}}}}
"""


def clock(*schedules: tuple[str, str]) -> str:
    """A flow with a scheduler per (cron, time zone)."""
    lines = [
        f'  - {{id: t{number}, type: scheduler, config: {{cron: "{cron}", timezone: {zone}}}}}'
        for number, (cron, zone) in enumerate(schedules)
    ]
    return CLOCK.format(triggers="\n".join(lines))


def serialized(dag: Any) -> dict[str, Any]:
    """The DAG as Airflow stores it."""
    from airflow.serialization.serialized_objects import DagSerialization

    data: dict[str, Any] = DagSerialization.to_dict(dag)
    return data


def dag_hash(dag: Any) -> str:
    """What Airflow compares to decide on a new DAG version."""
    from airflow.models.serialized_dag import SerializedDagModel

    return str(SerializedDagModel.hash(serialized(dag)))


def as_served(dag: Any) -> Any:
    """The DAG as the api-server and the scheduler have it."""
    from airflow.serialization.serialized_objects import DagSerialization

    return DagSerialization.from_dict(serialized(dag))


def test_a_flow_is_one_dag_named_after_organization_environment_and_flow(
    compiler: ModuleType, source: Source
) -> None:
    dag = compiler.compile_dag(source(ORDERS))
    assert dag.dag_id == "acme.prod.orders"
    assert dag.description == "Orders to the warehouse"
    assert {
        "organization:acme",
        "environment:prod",
        "version:1.2.0",
        "team:logistics",
        "tier:gold",
        "webhook_trigger",
        "mode:stream",
    } <= set(dag.tags)
    assert {task.owner for task in dag.tasks} == {"acme"}
    assert dag.owner_links["acme"].endswith("/dags?tags=organization:acme")
    assert dag.is_paused_upon_creation is False
    assert dag.catchup is False


def test_stages_are_tasks_joined_as_the_flow_goes_with_the_routes_names(
    compiler: ModuleType, source: Source
) -> None:
    dag = compiler.compile_dag(source(ORDERS))
    assert {task.task_id: task.downstream_task_ids for task in dag.tasks} == {
        "parse": {"by-country"},
        "by-country": {"local", "abroad"},
        "abroad": {"local"},
        "local": set(),
    }
    assert dag.get_edge_info("by-country", "local") == {"label": "domestic"}
    assert dag.get_edge_info("by-country", "abroad") == {"label": "otherwise"}
    assert dag.get_edge_info("abroad", "local") == {"label": "error"}
    assert [task.task_id for task in dag.tasks if task.first] == ["parse"]
    assert [task.task_id for task in dag.tasks if task.last] == ["local"]
    assert {task.trigger_rule for task in dag.tasks} == {"all_success", "all_done"}


def test_the_same_source_gives_the_same_dag_version(compiler: ModuleType, source: Source) -> None:
    first = dag_hash(compiler.compile_dag(source(ORDERS)))
    assert dag_hash(compiler.compile_dag(source(ORDERS))) == first
    changed = ORDERS.replace('"CH"', '"DE"').replace("1.2.0", "1.2.1")
    assert dag_hash(compiler.compile_dag(source(changed))) != first


def test_the_page_of_a_flow_tells_endpoints_ways_and_steps(source: Source) -> None:
    page = render(source(ORDERS))
    assert "`POST /bridge/hooks/acme/prod/orders`" in page
    assert "POST /api/v2/dags/acme.prod.orders/dagRuns" in page
    assert "| `by-country` | `conditional` | `by-country` |" in page
    assert r"Acme \| \*Ltd\*" in page
    assert "Disabled" not in page
    assert "Disabled" in render(source(ORDERS, status="disabled"))


def test_the_page_of_a_flow_says_how_its_messages_run_and_where_they_are(source: Source) -> None:
    stream, batch = (render(source(text)) for text in (ORDERS, ORDERS + "mode: batch\n"))
    assert "take each message as it comes in" in stream
    assert "take each message as it comes in" not in batch
    assert "messages that came in make a run of this DAG" in batch
    for page in (stream, batch):
        assert "/bridge/messages?organization=acme&environment=prod&flow=orders)" in page
        assert "bridge://acme/prod/orders" in page


def test_a_flow_leads_to_its_asset_in_airflow_and_no_task_of_it_makes_events(
    compiler: ModuleType, source: Source, stored: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = compiler.compile_dag(source(ORDERS))
    assert {task.task_id: [asset.uri for asset in task.outlets] for task in shown.tasks if task.outlets} == {
        "local": ["bridge://acme/prod/orders"]
    }
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "acme.prod.orders")
    file = str(stored(ORDERS).parents[1] / "generated" / "acme.prod.1.py")
    [run] = compiler.build_dags(file, {"acme.prod.orders": ""}).values()
    assert not any(task.outlets for task in run.tasks)


def test_the_diagram_shows_chains_branches_and_error_routes(source: Source) -> None:
    assert diagram(source(ORDERS).plan).splitlines() == [
        "order-in → parse → by-country",
        "by-hand → parse",
        "by-country ─[domestic]→ local",
        "by-country ─[otherwise]→ abroad",
        "abroad → end",
        "abroad ─[error]→ local",
        "local → end",
    ]


def test_an_event_flow_has_no_schedule_and_a_scheduler_is_one(compiler: ModuleType, source: Source) -> None:
    from airflow.timetables.simple import NullTimetable
    from airflow.timetables.trigger import CronTriggerTimetable, MultipleCronTriggerTimetable

    assert isinstance(as_served(compiler.compile_dag(source(ORDERS))).timetable, NullTimetable)
    single = as_served(compiler.compile_dag(source(clock(("0 6 * * mon-fri", "Europe/Zurich"))))).timetable
    assert isinstance(single, CronTriggerTimetable)
    assert single.serialize()["expression"] == "0 6 * * mon-fri"
    assert single.serialize()["timezone"] == "Europe/Zurich"
    several = as_served(compiler.compile_dag(source(clock(("0 6 * * *", "UTC"), ("0 18 * * *", "UTC"))))).timetable
    assert isinstance(several, MultipleCronTriggerTimetable)
    assert several.serialize()["expressions"] == ["0 6 * * *", "0 18 * * *"]


def test_schedulers_in_different_time_zones_each_keep_their_own(compiler: ModuleType, source: Source) -> None:
    from airflow.timetables.base import TimeRestriction
    from pendulum import datetime

    text = clock(("0 6 * * *", "Europe/Zurich"), ("0 6 * * *", "Asia/Tokyo"))
    timetable = as_served(compiler.compile_dag(source(text))).timetable
    earliest = datetime(2026, 1, 1)
    runs = []
    last = None
    for _ in range(3):
        info = timetable.next_dagrun_info(
            last_automated_data_interval=last,
            restriction=TimeRestriction(earliest=earliest, latest=None, catchup=True),
        )
        last = info.data_interval
        runs.append(info.run_after.isoformat())
    assert runs == ["2026-01-01T05:00:00+00:00", "2026-01-01T21:00:00+00:00", "2026-01-02T05:00:00+00:00"]
    assert timetable.summary == "0 6 * * * Europe/Zurich, 0 6 * * * Asia/Tokyo"


def test_a_disabled_flow_keeps_its_dag_and_loses_its_schedule(compiler: ModuleType, source: Source) -> None:
    dag = compiler.compile_dag(source(clock(("0 6 * * *", "UTC")), status="disabled"))
    assert dag.schedule is None
    assert "disabled" in dag.tags


@pytest.mark.parametrize(
    ("payload", "refusal"),
    [
        ({"po": "PO-1"}, None),
        ({"bridge:batch": "01"}, None),
        ({"po": 5}, "5 is not of type 'string'"),
        ({}, "'po' is a required property"),
        ("text", "'text' is not of type 'object'"),
        (None, "None is not of type 'object'"),
    ],
)
def test_the_payload_of_a_run_by_hand_follows_the_manual_triggers_schema(
    compiler: ModuleType, source: Source, payload: Any, refusal: str | None
) -> None:
    from airflow.exceptions import ParamValidationError

    params = as_served(compiler.compile_dag(source(ORDERS))).params
    assert params.get_param("payload").schema["title"] == "An order"
    with pytest.raises(ParamValidationError, match="No value passed"):
        params.validate()
    if refusal is None:
        assert params.deep_merge({"payload": payload}).validate() == {"payload": payload}
        return
    with pytest.raises(ParamValidationError) as refused:
        params.deep_merge({"payload": payload}).validate()
    assert refusal in str(refused.value)


def test_a_flow_without_a_schema_takes_any_payload_but_none(compiler: ModuleType, source: Source) -> None:
    from airflow.exceptions import ParamValidationError

    text = ORDERS.replace(
        "config: {schema: {type: object, required: [po], properties: {po: {type: string}}, title: An order}}",
        "config: {}",
    )
    params = as_served(compiler.compile_dag(source(text))).params
    for payload in ("<order/>", [1], {"a": None}, 5, True):
        params.deep_merge({"payload": payload}).validate()
    with pytest.raises(ParamValidationError):
        params.deep_merge({"payload": None}).validate()


def test_a_scheduled_flow_needs_no_payload(compiler: ModuleType, source: Source) -> None:
    params = as_served(compiler.compile_dag(source(clock(("0 6 * * *", "UTC"))))).params
    assert params.validate() == {"payload": None}


def test_a_file_builds_all_its_flows_and_a_task_only_its_own(
    compiler: ModuleType, stored: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(stored(ORDERS).parents[1] / "generated" / "acme.prod.1.py")
    stored(clock(("0 6 * * *", "UTC")))
    flows = {"acme.prod.orders": "", "acme.prod.clock": ""}
    assert set(compiler.build_dags(file, flows)) == set(flows)
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "acme.prod.clock")
    assert set(compiler.build_dags(file, flows)) == {"acme.prod.clock"}
    assert compiler.build_dags(file, {"acme.prod.orders": ""}) == {}


def test_a_source_that_cannot_be_read_takes_no_neighbour_along(
    compiler: ModuleType, stored: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    altered = stored(ORDERS)
    altered.write_bytes(altered.read_bytes().replace(b"domestic", b"domestik"))
    stored(clock(("0 6 * * *", "UTC")))
    file = str(altered.parents[1] / "generated" / "acme.prod.1.py")
    with caplog.at_level(logging.ERROR, logger="continuitybridge.airflow.compiler"):
        built = compiler.build_dags(file, {"acme.prod.orders": "", "acme.prod.clock": ""})
    assert set(built) == {"acme.prod.clock"}
    assert "acme.prod.orders could not be built" in caplog.text


def test_what_does_not_belong_to_the_flow_does_not_change_its_source(stored: Callable[..., Path]) -> None:
    # Revision 7 and "somebody" stand in what is deployed; the file names neither.
    text = stored(ORDERS).read_text()
    assert "somebody" not in text
    assert "revision" not in text
