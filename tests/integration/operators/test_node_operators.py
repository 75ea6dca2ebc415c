"""Nodes as tasks of DAGs in Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from continuitybridge.airflow import operators
from continuitybridge.airflow.operators import (
    ConditionalBranchOperator,
    CsvParseOperator,
    FilterOperator,
    JqOperator,
    JsonBuildOperator,
    JsonParseOperator,
    NodeOperator,
    ObjectMapperOperator,
    ValidateOperator,
    XmlBuildOperator,
    XmlParseOperator,
    XsltOperator,
)
from continuitybridge.errors import ConfigurationError, NotFound

SHEET = (
    '<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">'
    '<xsl:output method="text"/><xsl:template match="/a">n=<xsl:value-of select="b"/></xsl:template>'
    "</xsl:stylesheet>"
)


@pytest.mark.parametrize(
    ("operator", "parameters", "input", "expected"),
    [
        (JsonParseOperator, {}, '{"a": 1}', {"a": 1}),
        (XmlParseOperator, {"config": {"typed_values": True}}, "<a><b>1</b></a>", {"a": {"b": 1}}),
        (CsvParseOperator, {"config": {"delimiter": ";"}}, "a;b\n1;2\n", [{"a": "1", "b": "2"}]),
        (JqOperator, {"program": "{b: .a}"}, {"a": 1}, {"b": 1}),
        (JqOperator, {"program": "$headers.x", "headers": {"X": "y"}}, {}, "y"),
        (ObjectMapperOperator, {"mapping": {"b": "$.a"}}, {"a": 1}, {"b": 1}),
        (XsltOperator, {"stylesheet": SHEET}, "<a><b>1</b></a>", "n=1"),
        (ValidateOperator, {"schema": {"type": "object"}}, {"a": 1}, {"a": 1}),
        (ValidateOperator, {"rules": {"a": {"required": True}}}, {"a": 1}, {"a": 1}),
        (FilterOperator, {"where": ".a == 1"}, {"a": 1}, {"a": 1}),
        (JsonBuildOperator, {"config": {"sort_keys": True}}, {"b": 1, "a": 2**70}, f'{{"a":{2**70},"b":1}}'),
        (XmlBuildOperator, {"config": {"declaration": False}}, {"a": {"b": 1}}, "<a><b>1</b></a>"),
        (NodeOperator, {"node_type": "logger", "config": {"message": "{{ body.a }}"}}, {"a": 1}, {"a": 1}),
    ],
)
def test_an_operator_gives_what_its_node_gives(
    operator: Any, parameters: Any, input: Any, expected: Any, execute: Any
) -> None:
    assert execute(operator(task_id="t", input=input, **parameters)) == expected


def test_a_wrong_configuration_is_an_error_of_the_dag_and_names_the_field() -> None:
    with pytest.raises(ConfigurationError, match="program"):
        JqOperator(task_id="t", program="{", input={})
    with pytest.raises(ConfigurationError, match="did you mean delimiter"):
        CsvParseOperator(task_id="t", input="", config={"delimeter": ";"})
    with pytest.raises(ConfigurationError):
        XsltOperator(task_id="t", input="", stylesheet="<no/>")
    with pytest.raises(ConfigurationError):
        ConditionalBranchOperator(task_id="t", input={}, branches={"a": "=="})
    with pytest.raises(NotFound, match="did you mean jq"):
        NodeOperator(task_id="t", node_type="jqq", input={})


def test_a_message_that_would_fail_again_fails_the_task_at_once(execute: Any) -> None:
    with pytest.raises(AirflowFailException, match="line 1"):
        execute(JsonParseOperator(task_id="t", input="{"))
    with pytest.raises(AirflowFailException, match="total"):
        execute(ValidateOperator(task_id="t", input={}, rules={"total": {"required": True}}))


def test_an_endless_program_is_stopped_and_fails_the_task(execute: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from continuitybridge.settings import get_settings

    monkeypatch.setenv("BRIDGE_NODE_TIME_LIMIT_S", "0.5")
    get_settings.cache_clear()
    try:
        with pytest.raises(AirflowFailException, match="BRIDGE_NODE_TIME_LIMIT_S"):
            execute(JqOperator(task_id="t", program="def f: f; f", input={}))
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()


def test_a_dropped_message_skips_the_task(execute: Any) -> None:
    with pytest.raises(AirflowSkipException):
        execute(FilterOperator(task_id="t", where=".a > 1", input={"a": 1}))


def test_several_messages_need_to_be_wanted(execute: Any) -> None:
    with pytest.raises(AirflowFailException, match="many=True"):
        execute(JqOperator(task_id="t", program=".[]", input=[1, 2]))
    assert execute(JqOperator(task_id="t", program=".[]", input=[1, 2], many=True)) == [1, 2]
    assert execute(JqOperator(task_id="t", program=".[]", input=[1], many=True)) == [1]
    assert execute(JqOperator(task_id="t", program=".[]", input=[], many=True)) == []


def test_each_element_is_a_message_of_its_own(execute: Any) -> None:
    each = JqOperator(
        task_id="t", program="if .a then .a, .a else empty end", input=[{"a": 1}, {}, {"a": 2}], each=True
    )
    assert execute(each) == [1, 1, 2, 2]
    ids = JqOperator(task_id="t", program="$message.id", input=[0, 0], each=True)
    assert execute(ids) == ["d/r1.1", "d/r1.2"]
    assert execute(ids, map_index=3) == ["d/r1/3.1", "d/r1/3.2"]
    with pytest.raises(AirflowFailException, match="needs a list"):
        execute(JqOperator(task_id="t", program=".", input={}, each=True))


def test_one_bad_element_fails_the_task_and_is_named(execute: Any) -> None:
    with pytest.raises(AirflowFailException, match="1 of 3 messages failed"):
        execute(JsonParseOperator(task_id="t", input=["1", "{", "3"], each=True))


def test_files_are_read_with_the_dag(execute: Any, tmp_path: Path) -> None:
    (tmp_path / "a.xsl").write_text(SHEET)
    (tmp_path / "order.schema.json").write_text('{"type": "object", "required": ["a"]}')
    (tmp_path / "map.yaml").write_text("mapping: {b: $.a, c: {path: $.a, lookup: names}}\n")
    (tmp_path / "names.yaml").write_text("'1': one\n")
    assert execute(XsltOperator(task_id="x", stylesheet=tmp_path / "a.xsl", input="<a><b>2</b></a>")) == "n=2"
    assert execute(ValidateOperator(task_id="v", schema=tmp_path / "order.schema.json", input={"a": 1})) == {
        "a": 1
    }
    mapped = ObjectMapperOperator(
        task_id="m",
        mapping=tmp_path / "map.yaml",
        files={"names.yaml": tmp_path / "names.yaml"},
        config={"lookup_files": ["names.yaml"]},
        input={"a": 1},
    )
    assert execute(mapped) == {"b": 1, "c": "one"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [({"n": 1}, "group.small"), ({"n": 50}, "large"), ({"n": 500}, "huge"), ({}, "group.small")],
)
def test_the_first_condition_that_holds_names_the_next_task(body: Any, expected: str, execute: Any) -> None:
    with DAG("d", schedule=None):
        branch = ConditionalBranchOperator(
            task_id="t", input=body, branches={"group.small": ".n < 10", "large": ".n < 100"}, otherwise="huge"
        )
    assert branch.choose_branch({"ti": _ti()}) == expected  # type: ignore[typeddict-item]


def test_without_otherwise_nothing_downstream_runs() -> None:
    branch = ConditionalBranchOperator(task_id="t", input={"n": 1}, branches={"a": ".n == 2"})
    assert branch.choose_branch({"ti": _ti()}) is None  # type: ignore[typeddict-item]


def test_a_condition_that_fails_on_the_data_fails_the_task() -> None:
    branch = ConditionalBranchOperator(task_id="t", input={"n": "x"}, branches={"a": ".n.m == 2"})
    with pytest.raises(AirflowFailException):
        branch.choose_branch({"ti": _ti()})  # type: ignore[typeddict-item]


def test_operators_are_chained_by_their_outputs_and_mapped() -> None:
    with DAG("d", schedule=None) as dag:
        rows = CsvParseOperator(task_id="rows", input="a\n1\n")
        JqOperator.partial(task_id="each", program=".").expand(input=rows.output)
        JqOperator(task_id="all", program=".", input=rows.output)
    assert dag.task_dict["each"].upstream_task_ids == {"rows"}
    assert dag.task_dict["all"].upstream_task_ids == {"rows"}


def test_the_http_request_node_uses_airflows_connections(execute: Any, destination: Any) -> None:
    node = NodeOperator(
        task_id="t",
        node_type="http_request",
        config={"connection": "destination", "path": "/orders/{{ body.id }}", "retries": 0},
        input={"id": "PO 1"},
    )
    assert execute(node) == {"id": "PO 1"}
    (request,) = destination.requests
    assert request.path == "/orders/PO%201"
    assert request.headers["authorization"].startswith("Basic ")
    assert request.headers["x-sender"] == "tests"
    assert request.headers["idempotency-key"] == "d/r1:t:1"
    destination.statuses[:] = [503]
    with pytest.raises(AirflowException) as refused:
        execute(node)
    assert not isinstance(refused.value, AirflowFailException)


def test_an_unknown_connection_fails_the_task(execute: Any) -> None:
    config = {"connection": "nowhere", "retries": 0}
    with pytest.raises(AirflowFailException, match="nowhere"):
        execute(NodeOperator(task_id="t", node_type="http_request", config=config, input={}))


def _ti() -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(dag_id="d", run_id="r1", map_index=-1)


GUIDE = Path(__file__).parents[3] / "docs" / "python-operators.md"


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL))
def test_every_dag_of_the_guide_can_be_built(block: str) -> None:
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["dag"].task_dict


def test_the_guide_names_everything_that_is_public() -> None:
    missing = [name for name in operators.__all__ if f"`{name}`" not in GUIDE.read_text("utf-8")]
    assert not missing
