"""From a deploy to a visible, runnable DAG of that version, with 1,000 flows deployed.

`python -m benchmarks deploy`, or `python benchmarks/deploy_visible.py [--flows 1000] [--rounds 10]`, starts a
platform of its own, deploys flows of six nodes to organizations of fifty each, and then times, for new flows and
for changed ones: the deploy itself, until the flow's webhook takes a message, until Airflow's REST API shows the
DAG in this version, and until a run of it has succeeded under this version. Seconds from the deploy's return.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "system" / "airflow")]

from benchmarks.figures import Figure, print_table  # noqa: E402
from trial import Trial, wait_until  # noqa: E402

from continuitybridge import deployments, organizations  # noqa: E402
from continuitybridge.flows.load import load_flow  # noqa: E402
from continuitybridge.organizations import Organization  # noqa: E402
from continuitybridge.settings import get_settings  # noqa: E402

TITLE = "From a deploy until it is there, with 1,000 flows deployed"

FLOWS = 1000
FLOWS_PER_ORGANIZATION = 50
REACH = {"webhook": 1.0, "visible": 5.0}
"""In seconds."""

FLOW = """\
flow: {name}
version: {version}
triggers:
  - {{id: order-in, type: webhook_trigger, config: {{slug: {name}, verification: api_key}}}}
  - {{id: by-hand, type: manual_trigger}}
steps:
  - {{id: parse, type: json_parser}}
  - {{id: check, type: validation, config: {{schema: {{type: object}}}}}}
  - {{id: shape, type: jq, config: {{program: "{{id, version: \\"{version}\\"}}"}}}}
  - {{id: map, type: object_mapper, config: {{mapping: {{order: $.id}}}}}}
  - {{id: build, type: json_builder}}
  - {{id: note, type: logger, config: {{message: "{version}"}}}}
"""


def deploy(organization: Organization, name: str, version: str) -> dict[str, str]:
    """Returns the new endpoint's secret by slug."""
    loaded = load_flow(FLOW.format(name=name, version=version), name=f"{name}.flow.yaml")
    made = deployments.deploy(organization.organization_id, "prod", loaded, "bench")
    return dict(made.new_secrets)


def fill(trial: Trial, flows: int) -> list[Organization]:
    """Deploy the flows and wait until Airflow shows all of them."""
    tenants = []
    start = time.monotonic()
    for number in range(flows):
        if number % FLOWS_PER_ORGANIZATION == 0:
            slug = f"tenant-{number // FLOWS_PER_ORGANIZATION:03d}"
            tenants.append(organizations.create(slug, slug, environments=["prod"], tier="enterprise"))
        deploy(tenants[-1], f"flow-{number:04d}", "1.0.0")
    print(f"deployed {flows} flows in {time.monotonic() - start:.1f} s", flush=True)
    wait_until(
        lambda: trial.api("GET", "/dags", params={"limit": 1}).json()["total_entries"] >= flows,
        within_s=900,
        what=f"{flows} DAGs",
    )
    print(f"all visible after {time.monotonic() - start:.1f} s", flush=True)
    return tenants


class Timed:
    """One deploy and what follows; times in seconds."""

    def __init__(self, trial: Trial, organization: Organization, name: str, version: str, secret: str) -> None:
        start = time.monotonic()
        self.secret = deploy(organization, name, version).get(name, secret)
        deployed = time.monotonic()
        self.deploy = deployed - start
        hook = f"{trial.url}/bridge/hooks/{organization.slug}/prod/{name}"

        def answers() -> bool:
            sent = trial.client.post(hook, json={"id": 1}, headers={"x-api-key": self.secret})
            return sent.status_code == 202

        wait_until(answers, within_s=30, what="the webhook")
        self.webhook = time.monotonic() - deployed
        dag_id = f"{organization.slug}.prod.{name}"

        def shown() -> bool:
            answer = trial.api("GET", f"/dags/{dag_id}")
            return answer.is_success and any(tag["name"] == f"version:{version}" for tag in answer.json()["tags"])

        wait_until(shown, within_s=60, what=f"{dag_id} {version}")
        self.visible = time.monotonic() - deployed
        made = trial.api(
            "POST", f"/dags/{dag_id}/dagRuns", json={"logical_date": None, "conf": {"payload": {"id": 2}}}
        )
        made.raise_for_status()
        run_id = made.json()["dag_run_id"]
        if trial.await_run(dag_id, run_id) != "success":
            raise SystemExit(f"{run_id} of {dag_id} failed")
        self.run = time.monotonic() - deployed
        if f"note: {version}" not in trial.task_log(dag_id, run_id, "parse") and version not in trial.task_log(
            dag_id, run_id, "parse"
        ):
            raise SystemExit(f"{run_id} of {dag_id} did not run version {version}")


def measure(trial: Trial, flows: int, rounds: int) -> dict[str, list[Timed]]:
    """Deploys of new and changed flows, in turns over the organizations."""
    tenants = fill(trial, flows)
    taken: dict[str, list[Timed]] = {"new flow": [], "changed flow": []}
    for number in range(rounds):
        tenant = tenants[number * 7 % len(tenants)]
        new = Timed(trial, tenant, f"new-{number:04d}", "1.0.0", "")
        taken["new flow"].append(new)
        taken["changed flow"].append(Timed(trial, tenant, f"new-{number:04d}", "2.0.0", new.secret))
        time.sleep(1)
    return taken


def figures(rounds: int = 10, flows: int = FLOWS) -> list[Figure]:
    """Seconds from a deploy's return until its webhook, its DAG and a run of it are there."""
    with Trial.running() as trial:
        before = dict(os.environ)
        os.environ.update(trial.settings, BRIDGE_STATE_DIR=str(trial.state_dir))
        get_settings.cache_clear()
        try:
            taken = measure(trial, flows, rounds)
        finally:
            os.environ.clear()
            os.environ.update(before)
            get_settings.cache_clear()
    return [
        Figure(f"{kind}: {what}", "s", [getattr(each, what) for each in times], REACH.get(what), at_most=True)
        for kind, times in taken.items()
        for what in ("deploy", "webhook", "visible", "run")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flows", type=int, default=FLOWS)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    print_table(TITLE, figures(given.rounds, given.flows))


if __name__ == "__main__":
    main()
