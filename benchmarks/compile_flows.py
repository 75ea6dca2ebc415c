"""Compiling 1,000 six-node flows to DAGs, each step a task of its own, with dag-factory beside it.

`python benchmarks/compile_flows.py [--flows 1000] [--rounds 5]`: milliseconds a flow, medians of interleaved
rounds, each in a fresh process. Ours is timed twice: `source` from the flow's YAML file to the DAG, `parse` from
what a deploy stored to the DAG (what Airflow's DAG processor does). dag-factory gets the same names, tasks and
edges in its own YAML, with EmptyOperator for each step, and lives in a virtualenv of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from benchmarks.figures import Figure

TITLE = "Compiling 1,000 six-node flows, each step its own stage"
DAG_FACTORY = "dag-factory==1.1.0"
ROOT = Path(__file__).resolve().parents[1]
STEPS = ("parse", "check", "shape", "map", "build", "note")

FLOW = """\
flow: {name}
version: 1.0.0
description: Orders of shop {number} to the warehouse
labels: {{team: logistics, shop: "{number}"}}
triggers:
  - {{id: order-in, type: webhook_trigger, config: {{slug: {name}}}}}
steps:
  - {{id: parse, type: json_parser, isolate: true}}
  - id: check
    type: validation
    isolate: true
    config: {{schema: {{type: object, required: [order], properties: {{order: {{type: object}}}}}}}}
  - {{id: shape, type: jq, isolate: true, config: {{program: .order}}}}
  - id: map
    type: object_mapper
    isolate: true
    config: {{mapping: {{id: $.id, customer: {{name: $.customer.name}}}}}}
  - {{id: build, type: json_builder, isolate: true}}
  - {{id: note, type: logger, isolate: true, config: {{message: "shop {number}"}}}}
"""


def write(directory: Path, count: int) -> None:
    """The flows, in our language and in dag-factory's."""
    for number in range(count):
        name = f"orders-{number:04d}"
        (directory / "ours").mkdir(exist_ok=True)
        (directory / "theirs").mkdir(exist_ok=True)
        (directory / "ours" / f"{name}.flow.yaml").write_text(FLOW.format(name=name, number=number))
        tasks = [
            {
                "task_id": step,
                "operator": "airflow.providers.standard.operators.empty.EmptyOperator",
                **({"dependencies": [STEPS[at - 1]]} if at else {}),
            }
            for at, step in enumerate(STEPS)
        ]
        dag = {
            "description": f"Orders of shop {number} to the warehouse",
            "default_args": {"owner": "acme", "start_date": "2026-01-01"},
            "schedule": None,
            "tags": ["acme", "logistics"],
            "tasks": tasks,
        }
        # JSON is YAML.
        (directory / "theirs" / f"{name}.yaml").write_text(json.dumps({name: dag}, indent=1))


def ours(directory: Path) -> dict[str, float]:
    """Seconds for all flows: `source` and `parse`."""
    from continuitybridge.airflow import compiler, source
    from continuitybridge.deployments import Deployed
    from continuitybridge.flows.load import load_flow
    from continuitybridge.flows.plan import compile_flow

    files = sorted((directory / "ours").iterdir())

    def deployed(file: Path) -> Deployed:
        flow = load_flow(file).flow
        return Deployed(
            organization_id=UUID(int=1),
            organization="acme",
            organization_name="Acme",
            environment="prod",
            flow=flow.name,
            version=flow.version,
            revision=1,
            status="active",
            description=flow.description,
            labels=flow.labels,
            deployed_by="bench",
            plan=compile_flow(flow),
        )

    stored = directory / "stored"
    stored.mkdir(exist_ok=True)
    start = time.perf_counter()
    for file in files:
        path = stored / f"{file.stem}.json"
        path.write_bytes(source.dump(deployed(file)))
        dag = compiler.compile_dag(source.load(path))
        if len(dag.tasks) != len(STEPS):
            raise SystemExit(f"{dag.dag_id} has {len(dag.tasks)} tasks, not {len(STEPS)}")
    whole = time.perf_counter() - start
    start = time.perf_counter()
    for path in sorted(stored.iterdir()):
        compiler.compile_dag(source.load(path))
    return {"source": whole, "parse": time.perf_counter() - start}


def theirs(directory: Path) -> dict[str, float]:
    """Seconds for all flows through dag-factory."""
    from dagfactory import load_yaml_dags

    found: dict[str, object] = {}
    files = sorted((directory / "theirs").iterdir())
    start = time.perf_counter()
    for file in files:
        load_yaml_dags(globals_dict=found, config_filepath=str(file))
    taken = time.perf_counter() - start
    dags = [dag for dag in found.values() if hasattr(dag, "task_ids")]
    if len(dags) != len(files) or any(len(dag.task_ids) != len(STEPS) for dag in dags):
        raise SystemExit(f"dag-factory made {len(dags)} DAGs of {len(files)}")
    return {"dag-factory": taken}


def peer_python() -> Path | None:
    """The interpreter of dag-factory's own virtualenv, made when it is missing; None where it cannot be."""
    venv = ROOT / ".bench" / "dag-factory"
    python = venv / "bin" / "python"
    if not (venv / "ready").exists():
        uv = [str(Path(sys.executable).with_name("uv"))]
        lock = str(ROOT / "requirements.txt")
        try:
            subprocess.run([*uv, "venv", "-q", "--clear", "--python", sys.executable, str(venv)], check=True)
            subprocess.run(
                [*uv, "pip", "install", "-q", "--python", str(python), "-r", lock, DAG_FACTORY], check=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"SKIPPED dag-factory: its virtualenv could not be made ({error})", file=sys.stderr)
            return None
        (venv / "ready").touch()
    return python


def measure(python: Path | str, which: str, directory: Path) -> dict[str, float]:
    """One round in a fresh process."""
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(directory / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
        "BRIDGE_STATE_DIR": str(directory / "state"),
        "DO_NOT_TRACK": "true",
        "SCARF_NO_ANALYTICS": "true",
    }
    done = subprocess.run(
        [str(python), __file__, "--one", which, "--directory", str(directory)],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run(flows: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds a flow by what was timed, one sample a round."""
    with tempfile.TemporaryDirectory(prefix="bridge-bench-") as name:
        directory = Path(name)
        write(directory, flows)
        peer = peer_python()
        taken: dict[str, list[float]] = {}
        for _ in range(rounds):
            for python, which in ((sys.executable, "ours"), (peer, "theirs")):
                if python is not None:
                    for key, seconds in measure(python, which, directory).items():
                        taken.setdefault(key, []).append(seconds * 1000 / flows)
    return taken


def figures(rounds: int = 5, flows: int = 1000) -> list[Figure]:
    """What a deploy stored to the DAG, beside dag-factory; and the whole way from the YAML source."""
    from benchmarks.figures import Figure

    taken = run(flows, rounds)
    found = [
        Figure("stored flow to DAG", "ms a flow", taken["parse"], 2.5, at_most=True),
        Figure("YAML source to DAG", "ms a flow", taken["source"]),
    ]
    if "dag-factory" in taken:
        ratios = [theirs / ours for ours, theirs in zip(taken["parse"], taken["dag-factory"], strict=True)]
        found += [
            Figure("dag-factory, YAML to DAG", "ms a flow", taken["dag-factory"]),
            Figure("times as fast as dag-factory", "x", ratios, 2.5),
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(ours(given.directory) if given.one == "ours" else theirs(given.directory)))
        return
    for key, samples in run(given.flows, given.rounds).items():
        print(f"{key:12} {statistics.median(samples):6.2f} ms a flow, median of {given.rounds}")


if __name__ == "__main__":
    main()
