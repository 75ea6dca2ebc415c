"""The maintenance DAG does its work as a DAG: what is over is dropped, with its large payloads."""

from __future__ import annotations

import json

from trial import FLOW, Trial, settled, wait_until

PARTITIONS = """
import json, psycopg
from continuitybridge import database
with psycopg.connect(database.owner_url()) as connection:
    rows = connection.execute("SELECT relname FROM pg_class WHERE relname LIKE 'settled_messages_%'").fetchall()
print(json.dumps(sorted(row[0] for row in rows)))
"""
OLD_ONES = """
from datetime import UTC, datetime, timedelta
from continuitybridge.inbox import retention
retention.ensure_partitions(ahead=0, today=(datetime.now(UTC) - timedelta(days=400)).date())
"""


NEWEST_GOES = """
import psycopg
with psycopg.connect(database.owner_url()) as connection:
    [(newest,)] = connection.execute(
        "SELECT max(relname) FROM pg_class WHERE relname LIKE 'settled_messages_short_%' AND relkind = 'r'"
        " AND relname ~ '[0-9]$'"
    ).fetchall()
    connection.execute(psycopg.sql.SQL("DROP TABLE bridge.{}").format(psycopg.sql.Identifier(newest)))
"""
"""The scheduled run may have made it already."""


def test_the_maintenance_run_makes_partitions_and_drops_those_that_are_over(trial: Trial) -> None:
    before = set(
        json.loads(
            trial.python(
                "from continuitybridge import database\n" + OLD_ONES + NEWEST_GOES + PARTITIONS
            ).splitlines()[-1]
        )
    )
    made = trial.api("POST", "/dags/maintenance_retention/dagRuns", json={"logical_date": None})
    assert made.status_code == 200, made.text
    run_id = made.json()["dag_run_id"]
    assert trial.await_run("maintenance_retention", run_id, within_s=90) == "success"
    after = set(json.loads(trial.python(PARTITIONS).splitlines()[-1]))
    gone = before - after
    assert gone, "the partitions of 400 days ago are over for the classes short and standard"
    assert all("short" in name or "standard" in name for name in gone)
    assert after - before, "the next partitions were made"
    assert "removed" in trial.task_log("maintenance_retention", run_id, "remove_payloads")


def test_an_organization_that_is_deleted_is_gone_from_airflow_too(trial: Trial) -> None:
    mine, other = trial.organization(), trial.organization()
    for each in (mine, other):
        each.deploy("order", FLOW.format(version="1.0.0", path=each.slug))
    message_id = mine.send("order", {"po": f"PO-{mine.slug}"})
    settled(mine, message_id)
    dag_id = mine.dag_id("order")
    # Its batch flows have a pool with as many slots as its tier (enterprise) allows runs.
    pools = {each["name"]: each for each in trial.api("GET", "/pools?limit=100").json()["pools"]}
    assert pools[f"organization.{mine.slug}"]["slots"] == 100
    [task] = {each["pool"] for each in trial.api("GET", f"/dags/{dag_id}/tasks").json()["tasks"]}
    assert task == f"organization.{mine.slug}"
    assert trial.api("GET", f"/dags/{dag_id}").status_code == 200
    trial.bridge("organization", "delete", mine.slug, "--export", "--confirm", mine.slug)

    def forgotten() -> bool:
        return trial.api("GET", f"/dags/{dag_id}").status_code == 404

    wait_until(forgotten, within_s=60, what="Airflow forgetting the DAG")
    wait_until(
        lambda: f"organization.{mine.slug}" not in trial.api("GET", "/pools?limit=100").text,
        within_s=10,
        what="the pool going",
    )
    assert trial.runs(other.dag_id("order")) == []
    assert trial.api("GET", f"/dags/{other.dag_id('order')}").status_code == 200
    logs = trial.state_dir.rglob(f"dag_id={mine.slug}.*")
    assert list(logs) == []
    assert mine.slug not in trial.bridge("organization", "list").stdout
