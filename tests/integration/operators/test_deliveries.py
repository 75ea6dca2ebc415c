"""Deliveries with Airflow's connections: HTTP and PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from continuitybridge.airflow.operators import HttpDeliverOperator, PostgresWriteOperator
from continuitybridge.database.embedded import EmbeddedPostgres


def deliver(body: Any, **parameters: Any) -> HttpDeliverOperator:
    given = {"http_conn_id": "destination", "endpoint": "/orders", **parameters}
    return HttpDeliverOperator(task_id="deliver", input=body, **given)


def test_data_is_delivered_as_json_with_the_connections_credentials(execute: Any, destination: Any) -> None:
    answer = execute(deliver({"id": "PO-ä"}, headers={"X-More": "1"}))
    assert answer == {"status": 200, "body": {"receipt": "R-1"}}
    (request,) = destination.requests
    assert (request.method, request.path) == ("POST", "/orders")
    assert json.loads(request.body) == {"id": "PO-ä"}
    assert request.headers["content-type"] == "application/json"
    assert request.headers["authorization"].startswith("Basic ")
    assert request.headers["x-sender"] == "tests"
    assert request.headers["x-more"] == "1"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [("<?xml version='1.0'?><a>ä</a>", "application/xml; charset=utf-8"), ("ä", "text/plain; charset=utf-8")],
)
def test_text_is_delivered_as_it_is(body: str, content_type: str, execute: Any, destination: Any) -> None:
    execute(deliver(body, method="PUT"))
    (request,) = destination.requests
    assert request.method == "PUT"
    assert request.body == body.encode()
    assert request.headers["content-type"] == content_type


def test_a_declared_content_type_wins(execute: Any, destination: Any) -> None:
    execute(deliver("a,b", headers={"content-type": "text/csv"}))
    assert destination.requests[0].headers.get_all("content-type") == ["text/csv"]


def test_every_try_bears_the_same_key_and_every_run_another(execute: Any, destination: Any) -> None:
    for run_id, map_index in (("r1", -1), ("r1", -1), ("r2", -1), ("r1", 2)):
        execute(deliver({}), run_id=run_id, map_index=map_index)
    keys = [request.headers["idempotency-key"] for request in destination.requests]
    assert keys == ["d/r1:deliver:1", "d/r1:deliver:1", "d/r2:deliver:1", "d/r1/2:deliver:1"]


def test_a_key_of_ones_own_names_each_element(execute: Any, destination: Any) -> None:
    execute(deliver({}, idempotency_key="PO-1"))
    execute(deliver([{}, {}], idempotency_key="PO-1", each=True))
    keys = [request.headers["idempotency-key"] for request in destination.requests]
    assert keys == ["PO-1", "PO-1.1", "PO-1.2"]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 0])
def test_what_may_pass_is_left_to_the_tasks_retries(status: int, execute: Any, destination: Any) -> None:
    destination.statuses[:] = [status]
    with pytest.raises(AirflowException) as failed:
        execute(deliver({}))
    assert not isinstance(failed.value, AirflowFailException)


@pytest.mark.parametrize("status", [301, 307, 400, 401, 403, 404, 409, 413, 422])
def test_what_stands_fails_the_task_at_once(status: int, execute: Any, destination: Any) -> None:
    destination.statuses[:] = [status]
    with pytest.raises(AirflowFailException, match=str(status)):
        execute(deliver({}))
    assert len(destination.requests) == 1


def test_a_destination_that_is_not_there_may_come_back(execute: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_DESTINATION", "http://127.0.0.1:1")
    with pytest.raises(AirflowException) as failed:
        execute(deliver({}))
    assert not isinstance(failed.value, AirflowFailException)


def test_one_refused_element_does_not_keep_the_others_from_being_delivered(execute: Any, destination: Any) -> None:
    destination.statuses[:] = [200, 422, 200]
    with pytest.raises(AirflowFailException, match="1 of 3 messages failed"):
        execute(deliver([1, 2, 3], each=True))
    assert [json.loads(request.body) for request in destination.requests] == [1, 2, 3]
    destination.statuses[:] = [422, 503]
    with pytest.raises(AirflowException) as failed:
        execute(deliver([1, 2], each=True))
    assert not isinstance(failed.value, AirflowFailException)
    assert len(execute(deliver([1, 2], each=True))) == 2


def test_only_methods_that_deliver_are_taken() -> None:
    with pytest.raises(ValueError, match="GET"):
        deliver({}, method="GET")


# -- PostgreSQL -------------------------------------------------------------------------------------------


@pytest.fixture
def table(postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A table of this test behind the Airflow connection `target`."""
    name = f'stock {uuid4().hex[:6]}"x'
    quoted = '"' + name.replace('"', '""') + '"'
    with psycopg.connect(postgres.admin_url, autocommit=True) as connection:
        connection.execute(
            f"CREATE TABLE public.{quoted} (sku text PRIMARY KEY, qty integer CHECK (qty >= 0), more jsonb)"
        )
        settings = connection.info.get_parameters()
        password = quote(connection.info.password, safe="")
        monkeypatch.setenv(
            "AIRFLOW_CONN_TARGET",
            f"postgres://{settings['user']}:{password}@{connection.info.host}:{connection.info.port}/"
            f"{connection.info.dbname}",
        )
        yield f"public.{name}"
        connection.execute(f"DROP TABLE public.{quoted}")


def rows(postgres: EmbeddedPostgres, table: str) -> list[Any]:
    from psycopg.sql import SQL, Identifier

    with psycopg.connect(postgres.admin_url) as connection:
        return connection.execute(
            SQL("SELECT * FROM {} ORDER BY sku").format(Identifier(*table.split(".", 1)))
        ).fetchall()


def write(body: Any, table: str, **parameters: Any) -> PostgresWriteOperator:
    given = {"columns": ["sku", "qty", "more"], "key_columns": ["sku"], "postgres_conn_id": "target", **parameters}
    return PostgresWriteOperator(task_id="write", input=body, table=table, **given)


def test_rows_are_written_and_written_again_without_doubling(
    execute: Any, postgres: EmbeddedPostgres, table: str
) -> None:
    body = [{"sku": "A'; --", "qty": 1, "more": {"x": [1]}}, {"sku": "B", "qty": 2, "unknown": 1}]
    assert execute(write(body, table)) == 2
    assert execute(write({"sku": "B", "qty": 5}, table)) == 1
    assert rows(postgres, table) == [("A'; --", 1, {"x": [1]}), ("B", 5, None)]


def test_columns_are_taken_from_other_keys(execute: Any, postgres: EmbeddedPostgres, table: str) -> None:
    operator = write({"article": "A", "n": 3}, table, columns={"sku": "article", "qty": "n"}, key_columns=())
    assert execute(operator) == 1
    assert rows(postgres, table) == [("A", 3, None)]
    with pytest.raises(AirflowFailException, match="duplicate key"):
        execute(operator)


def test_one_refused_row_leaves_the_table_as_it_was(execute: Any, postgres: EmbeddedPostgres, table: str) -> None:
    with pytest.raises(AirflowFailException, match="check constraint"):
        execute(write([{"sku": "A", "qty": 1}, {"sku": "B", "qty": -1}], table))
    assert rows(postgres, table) == []


def test_what_is_no_row_and_a_missing_table_fail_the_task_at_once(execute: Any, table: str) -> None:
    with pytest.raises(AirflowFailException, match="a row is an object"):
        execute(write([1], table))
    with pytest.raises(AirflowFailException, match="does not exist"):
        execute(write({"sku": "A"}, "public.nowhere"))
    assert execute(write([], table)) == 0


def test_a_server_that_does_not_answer_may_come_back(
    execute: Any, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_TARGET", "postgres://u:p@127.0.0.1:1/x")
    with pytest.raises(AirflowException) as failed:
        execute(write({"sku": "A"}, table))
    assert not isinstance(failed.value, AirflowFailException)


def test_key_columns_must_be_written() -> None:
    with pytest.raises(ValueError, match="sku"):
        write({}, "t", columns=["qty"])
