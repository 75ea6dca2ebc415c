"""From webhook to delivery in batch mode, beside a bare no-op DAG run triggered in the same minute.

`python benchmarks/batch_latency.py [--rounds 15]` starts a platform of its own and prints the medians of
interleaved rounds and of their ratios. The no-op is a DAG of one Python task that does nothing, started by
`POST /api/v2/dags/{dag_id}/dagRuns`, timed from the request to the run's `end_date`. Ours is timed from the
webhook's request to the moment the destination got the message (parse → jq → map → HTTP).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "system" / "airflow"), str(ROOT)]

from benchmarks.figures import Figure  # noqa: E402
from trial import Tenant, Trial, wait_until  # noqa: E402

from continuitybridge.airflow.configuration import airflow_options  # noqa: E402
from continuitybridge.settings import Settings  # noqa: E402

TITLE = "Batch mode: webhook → delivered beside a bare no-op run"

NOOP = """\
from airflow.sdk import dag, task


@dag(schedule=None, is_paused_upon_creation=False)
def noop():
    @task
    def nothing() -> None:
        pass

    nothing()


noop()
"""

FLOW = """\
flow: order
version: 1.0.0
mode: batch
triggers:
  - {id: order-in, type: webhook_trigger, config: {slug: order, verification: api_key}}
steps:
  - {id: parse, type: json_parser}
  - {id: shape, type: jq, config: {program: "{id: .po, lines}"}}
  - id: map
    type: object_mapper
    config: {mapping: {order: $.id, lines: $.lines}}
  - {id: deliver, type: http_request, config: {connection: target, path: /order}}
"""


def bundles(directory: Path) -> str:
    """The platform's DAG bundles and one more, with the no-op in it."""
    (directory / "noop.py").write_text(NOOP)
    ours = json.loads(airflow_options(Settings())["dag_processor", "dag_bundle_config_list"])
    return json.dumps(
        [
            *ours,
            {
                "name": "bench",
                "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
                "kwargs": {"path": str(directory), "refresh_interval": 30},
            },
        ]
    )


def noop_s(trial: Trial) -> float:
    """Seconds from the request to the end of a no-op run."""
    start = time.time()
    made = trial.api("POST", "/dags/noop/dagRuns", json={"logical_date": None})
    made.raise_for_status()
    run_id = made.json()["dag_run_id"]
    trial.await_run("noop", run_id)
    ended = trial.api("GET", f"/dags/noop/dagRuns/{run_id}").json()["end_date"]
    return datetime.fromisoformat(ended).timestamp() - start


def delivery_s(tenant: Tenant) -> float:
    """Seconds from the webhook's request to the delivery."""
    seen = len(tenant.trial.destination.deliveries)
    start = time.time()
    tenant.send("order", {"po": f"PO-{seen}", "lines": [{"sku": "A-1", "quantity": 2}]})
    wait_until(lambda: len(tenant.trial.destination.deliveries) > seen, within_s=60, what="delivery")
    return tenant.trial.destination.deliveries[-1].at - start


def noops(rounds: int) -> list[float]:
    """Seconds of each of so many bare no-op runs, on a platform with nothing else to do."""
    with tempfile.TemporaryDirectory(prefix="bridge-bench-") as name:
        override = {"AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": bundles(Path(name))}
        with Trial.running(**override) as trial:
            wait_until(lambda: trial.api("GET", "/dags/noop").is_success, within_s=60, what="noop")
            taken = []
            for _ in range(rounds + 2):
                taken.append(noop_s(trial))
                time.sleep(1.0)
    return taken[2:]


def run(rounds: int = 15) -> tuple[list[float], list[float]]:
    """Seconds of each round: no-op runs, deliveries."""
    with tempfile.TemporaryDirectory(prefix="bridge-bench-") as name:
        override = {"AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": bundles(Path(name))}
        with Trial.running(**override) as trial:
            tenant = trial.organization()
            tenant.deploy("order", FLOW)
            wait_until(lambda: trial.api("GET", "/dags/noop").is_success, within_s=60, what="noop")
            noops, deliveries = [], []
            for number in range(rounds + 2):
                noop, delivery = noop_s(trial), delivery_s(tenant)
                # Airflow finishes the former run meanwhile; and the first of each warm things up.
                time.sleep(1.0)
                if number >= 2:
                    noops.append(noop)
                    deliveries.append(delivery)
    return noops, deliveries


def figures(rounds: int = 15) -> list[Figure]:
    noops, deliveries = run(rounds)
    return [
        Figure("webhook → delivered", "s", deliveries),
        Figure("bare no-op run", "s", noops),
        Figure(
            "the one by the other, round by round",
            "times",
            [delivery / noop for delivery, noop in zip(deliveries, noops, strict=True)],
            1.3,
            at_most=True,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    noops, deliveries = run(rounds)
    noop, delivery = statistics.median(noops), statistics.median(deliveries)
    ratio = statistics.median(d / n for d, n in zip(deliveries, noops, strict=True))
    print(f"batch latency, median of {rounds} interleaved rounds (maximum):")
    print(f"  bare no-op run     {noop:6.3f} s ({max(noops):.3f})")
    print(f"  webhook→delivered  {delivery:6.3f} s ({max(deliveries):.3f})")
    print(f"  ratio              {ratio:6.2f}  (target: at most 1.3)")


if __name__ == "__main__":
    main()
