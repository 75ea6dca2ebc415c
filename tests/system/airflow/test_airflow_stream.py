"""Stream workers as tasks of Airflow: fast, private, obedient to its buttons, and there after every kill -9."""

from __future__ import annotations

import itertools
import json
import os
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
import pytest
from test_airflow_access import ask, tokens_of
from trial import BRIDGE, ROOT, Gate, Tenant, Trial, delivered, settled, wait_until

FLOW = """\
flow: fast
version: 1.0.0
triggers:
  - {{id: order-in, type: webhook_trigger, config: {{slug: fast, verification: api_key}}}}
  - {{id: by-hand, type: manual_trigger}}
steps:
  - {{id: parse, type: json_parser}}
  - id: deliver
    type: http_request
    config: {{connection: target, path: "/{path}", timeout_s: 170, attempt_timeout_s: 170}}
"""

WITHIN_S = 10.0
"""Longest pause between two deliveries around a kill; longer on a machine that is busy with other things."""

SEEN_AFTER_S = 3.0
"""What a kill does shows within this time: what is looked at was accepted after it."""


@pytest.fixture(scope="module")
def fast(trial: Trial) -> Tenant:
    """An organization with a stream flow, whose first message has been through."""
    tenant = trial.organization()
    tenant.deploy("fast", FLOW.format(path=tenant.slug))
    settled(tenant, tenant.send("fast", {"po": "first"}), within_s=120)
    return tenant


@dataclass
class Sender:
    """Sends an order every 50 ms by the intake that runs alone, which goes on without an api-server; what is
    not accepted is sent again until it is."""

    tenant: Tenant
    url: str
    sent: dict[str, float] = field(default_factory=dict)
    """When each accepted order was accepted, in seconds since the epoch."""
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Sender:
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _send(self) -> None:
        prefix, number = f"{time.time_ns()}", 0
        headers = {"x-api-key": self.tenant.secrets["fast"]}
        with httpx.Client(base_url=self.url, headers=headers, timeout=5) as client:
            while not self._stop.is_set():
                po = f"{prefix}-{number}"
                try:
                    address = f"/bridge/hooks/{self.tenant.slug}/prod/fast"
                    answer = client.post(address, json={"po": po}, headers={"webhook-id": po})
                    accepted = answer.status_code == 202
                except httpx.HTTPError:
                    accepted = False
                if accepted:
                    self.sent[po] = time.time()
                    number += 1
                self._stop.wait(0.05)

    def arrived(self) -> dict[str, float]:
        """When the destination first got each of these orders."""
        first: dict[str, float] = {}
        for delivery in self.tenant.trial.destination.of(f"/{self.tenant.slug}"):
            first.setdefault(str(delivery.data["po"]), delivery.at)
        return {po: at for po, at in first.items() if po in self.sent}

    def longest_pause(self, since: float, then_s: float) -> float:
        """The longest time from then on in which nothing arrived, once orders go through again that were accepted
        `then_s` later."""
        wait_until(
            lambda: sum(self.sent[po] > since + then_s for po in self.arrived()) > 20,
            within_s=120,
            what="deliveries after the kill",
        )
        times = [since, *sorted(at for at in self.arrived().values() if at > since)]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def all_arrive(self, within_s: float = 60) -> None:
        wait_until(lambda: not self.sent.keys() - self.arrived().keys(), within_s=within_s, what="all orders")


@pytest.fixture(scope="module")
def intake(trial: Trial) -> Iterator[str]:
    """Where `bridge intake` answers."""
    process = subprocess.Popen(
        [str(BRIDGE), "intake"],
        env=trial.environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{trial.settings['BRIDGE_INTAKE_PORT']}"

    def answers() -> bool:
        try:
            return httpx.get(url, timeout=2).status_code > 0
        except httpx.HTTPError:
            return False

    try:
        wait_until(answers, within_s=120, what="the intake's answer")
        yield url
    finally:
        process.terminate()
        process.wait(30)


def workers(trial: Trial) -> list[psutil.Process]:
    """The stream workers that listen, oldest first."""
    rows = json.loads(trial.bridge("status", "--json", check=False).stdout)
    found = []
    for row in rows:
        with suppress(psutil.NoSuchProcess):
            if row["name"].startswith("stream-") and row["state"] == "running":
                found.append(psutil.Process(row["pid"]))
    return found


def two_work(trial: Trial) -> list[psutil.Process]:
    return list(
        wait_until(
            lambda: found if len(found := workers(trial)) >= 2 else None, within_s=120, what="two stream workers"
        )
    )


def quick(seconds: float) -> float:
    """A bound on this machine: more where others work on it too."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def test_a_message_makes_no_run_and_is_delivered_many_times_sooner_than_by_one(trial: Trial, fast: Tenant) -> None:
    took = []
    for number in range(20):
        po = f"PO-quick-{number}"
        sent = time.time()
        fast.send("fast", {"po": po})
        took.append(delivered(fast, po)[0].at - sent)
    assert statistics.median(took) < quick(0.1)
    assert trial.runs(fast.dag_id("fast")) == []


def test_airflows_trigger_runs_the_same_flow_as_a_batch(trial: Trial, fast: Tenant) -> None:
    made = fast.trigger("fast", {"payload": {"po": "PO-by-hand"}})
    assert made.status_code == 200, made.text
    [delivery] = delivered(fast, "PO-by-hand")
    message_id = delivery.headers["idempotency-key"].split(":")[0]
    assert trial.await_run(fast.dag_id("fast"), made.json()["dag_run_id"]) == "success"
    settled(fast, message_id)


def test_pausing_the_dag_holds_what_is_accepted_until_it_runs_again(trial: Trial, fast: Tenant) -> None:
    dag_id = fast.dag_id("fast")
    trial.api("PATCH", f"/dags/{dag_id}", json={"is_paused": True}).raise_for_status()
    time.sleep(quick(2.0))
    held = fast.send("fast", {"po": "PO-held"})
    other = trial.organization()
    other.deploy("fast", FLOW.format(path=other.slug))
    settled(other, other.send("fast", {"po": "PO-free"}))
    assert fast.state_of(held) == "accepted"
    trial.api("PATCH", f"/dags/{dag_id}", json={"is_paused": False}).raise_for_status()
    delivered(fast, "PO-held")
    settled(fast, held)


def test_the_workers_dag_is_the_superadmins_and_its_workers_have_a_pool_of_their_own(
    trial: Trial, fast: Tenant
) -> None:
    two_work(trial)
    assert trial.api("GET", "/dags/stream").json()["is_paused"] is False
    slots = {pool["name"]: pool for pool in trial.api("GET", "/pools").json()["pools"]}
    assert slots["stream"]["slots"] == 4
    assert slots["stream"]["running_slots"] >= 2
    assert slots["default_pool"]["slots"] == 8
    member = f"member-of-{fast.slug}"
    password = trial.accounts([member])[member]
    trial.bridge("organization", "member", "add", "-o", fast.slug, member, "--role", "customer_admin")
    trial.sign_in(member, password)
    assert "stream" not in {dag["dag_id"] for dag in trial.api("GET", "/dags", user=member).json()["dags"]}
    assert trial.api("GET", "/dags/stream", user=member).status_code in (403, 404)
    body = {"logical_date": None, "conf": {}}
    assert trial.api("POST", "/dags/stream/dagRuns", user=member, json=body).status_code in (403, 404)


def test_a_worker_gets_the_secrets_of_messages_that_it_holds_and_of_no_others(trial: Trial, fast: Tenant) -> None:
    other = trial.organization()
    organizations = {
        row["slug"]: row["organization_id"]
        for row in json.loads(trial.bridge("organization", "list", "--json").stdout)
    }

    def connection(tenant: Tenant, environment: str = "prod") -> str:
        return f"bridge-connection:{organizations[tenant.slug]}:{environment}:target"

    gate = Gate(trial, "PO-secret")
    message_id = fast.send("fast", {"po": "PO-secret"})
    assert gate.reached.wait(60)
    answers = {token: ask(trial, token, connection(fast)) for token in tokens_of(trial, "stream", "running")}
    # One of them holds the message, the others hold nothing.
    assert {answer.status_code for answer in answers.values()} == {200, 404}
    [holder] = [token for token, answer in answers.items() if answer.is_success]
    idle = next(token for token, answer in answers.items() if not answer.is_success)
    keys = ask(trial, holder, "bridge-keys").json()
    assert list(json.loads(keys["login"])) == [organizations[fast.slug]]
    assert json.loads(ask(trial, idle, "bridge-keys").json()["login"]) == {}
    for foreign in (connection(other), connection(fast, "test"), "bridge-connection:target", "postgres_default"):
        assert ask(trial, holder, foreign).status_code == 404, foreign
    assert ask(trial, holder[:-2] + "xx", "bridge-keys").status_code == 403
    gate.open.set()
    settled(fast, message_id)


def test_a_generation_takes_over_from_another_without_anybody_noticing(
    trial: Trial, fast: Tenant, intake: str
) -> None:
    before = {process.pid for process in two_work(trial)}
    with Sender(fast, intake) as sender:
        wait_until(
            lambda: not before & {process.pid for process in workers(trial)},
            within_s=240,
            what="another generation at work",
        )
    sender.all_arrive()
    arrived = sender.arrived()
    waited = sorted(arrived[po] - at for po, at in sender.sent.items())
    median = waited[len(waited) // 2]
    assert waited[-1] < max(median, 0) + quick(1.0), (median, waited[-5:])
    runs = {run["dag_run_id"]: run["state"] for run in trial.runs("stream")}
    assert set(runs.values()) <= {"success", "running", "queued"}, runs


@pytest.mark.parametrize("killed", ["worker", "its supervisor", "scheduler", "api-server", "postgres"])
def test_after_a_kill_9_delivery_goes_on_within_seconds_and_nothing_is_lost(
    trial: Trial, fast: Tenant, intake: str, killed: str
) -> None:
    worker = two_work(trial)[-1]
    victim = {"worker": worker, "its supervisor": worker.parent()}.get(killed) or trial.processes()[killed]
    assert victim is not None
    with Sender(fast, intake) as sender:
        wait_until(lambda: len(sender.arrived()) > 20, within_s=60, what="orders on their way")
        moment = time.time()
        os.kill(victim.pid, signal.SIGKILL)
        pause = sender.longest_pause(moment, SEEN_AFTER_S)
        print(f"kill -9 of {killed}: the longest pause between two deliveries was {pause:.1f} s")
        with suppress(psutil.NoSuchProcess):
            assert victim.status() == psutil.STATUS_ZOMBIE
    sender.all_arrive()
    assert pause < quick(WITHIN_S)
    keys: dict[str, set[str]] = {}
    for delivery in trial.destination.of(f"/{fast.slug}"):
        keys.setdefault(str(delivery.data["po"]), set()).add(delivery.headers["idempotency-key"])
    doubled: dict[str, Any] = {po: found for po, found in keys.items() if len(found) > 1}
    assert doubled == {}
