"""Replaying what a query finds: what would happen, and a job that does it at a rate, whatever is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner
from inbox_world import Deployed, done, failed, make_plan

from continuitybridge import database
from continuitybridge.cli import bridge
from continuitybridge.engine.message import NodeTrace
from continuitybridge.errors import ConfigurationError, Conflict, NotFound
from continuitybridge.flows.plan import Plan, PlanNode
from continuitybridge.inbox import batches, reconcile, replays
from continuitybridge.inbox.claim import claim
from continuitybridge.inbox.replays import Query, work
from continuitybridge.inbox.settle import settle
from continuitybridge.inbox.status import status


@pytest.fixture(autouse=True)
def the_store_agrees_with_itself(deployed: Deployed) -> Iterator[None]:
    yield
    assert reconcile.violations(deployed.organization_id) == []


def make_dead(deployed: Deployed, n: int = 1, *, node: str = "deliver", **changes: Any) -> list[str]:
    batch, ids = deployed.batch(n, **changes)
    for unit in claim(batch, "w", 30, 100, keys=deployed.keyring):
        settle(unit, failed(unit, node=node), keys=deployed.keyring, plan=deployed.plan)
    batches.finish(batch)
    return ids


def make_done(deployed: Deployed, n: int = 1, **changes: Any) -> list[str]:
    batch, ids = deployed.batch(n, **changes)
    for unit in claim(batch, "w", 30, 100, keys=deployed.keyring):
        settle(unit, done(unit), keys=deployed.keyring)
    batches.finish(batch)
    return ids


def found(deployed: Deployed, **query: Any) -> list[str]:
    """The ids that a query finds, by the sample of its preview."""
    return sorted(
        each.message_id for each in replays.preview(deployed.organization_id, Query(**query), sample=100).sample
    )


def start(deployed: Deployed, query: Query, **how: Any) -> replays.Job:
    return replays.start(deployed.organization_id, query, by="anna", **{"rate_per_s": 5_000.0, **how})


def show(deployed: Deployed, job: replays.Job) -> replays.Job:
    return replays.show(deployed.organization_id, job.job_id)


def work_to_the_end(deployed: Deployed, job: replays.Job, within_s: float = 30.0) -> replays.Job:
    deadline = time.monotonic() + within_s
    while show(deployed, job).status in ("queued", "running"):
        assert time.monotonic() < deadline
        if not work():
            time.sleep(0.05)
    return show(deployed, job)


def states(deployed: Deployed, ids: list[str]) -> list[str]:
    return [status(deployed.organization_id, message_id).state for message_id in ids]


def test_a_query_finds_by_everything_it_may_name(deployed: Deployed) -> None:
    here = {"flow": deployed.flow, "environment": "prod"}
    at_parse = make_dead(deployed, node="parse", keys={"po": "A1"})
    at_deliver = make_dead(deployed, node="deliver", keys={"po": "4711"})
    moment = datetime.now(UTC)
    later = make_dead(deployed, keys={"po": 4711})
    settled = make_done(deployed, 2, keys={"po": "A1"})
    assert found(deployed, **here) == sorted(at_parse + at_deliver + later)
    assert found(deployed) == sorted(at_parse + at_deliver + later)
    assert found(deployed, node="parse") == at_parse
    assert found(deployed, code="delivery-failed", until=moment) == sorted(at_parse + at_deliver)
    assert found(deployed, code="another") == []
    assert found(deployed, since=moment) == later
    assert found(deployed, keys={"po": "4711"}) == sorted(at_deliver + later)
    assert found(deployed, environment="test") == []
    assert found(deployed, **here, states=("done",)) == sorted(settled)
    assert found(deployed, **here, states=("dead", "done"), keys={"po": "A1"}) == sorted(at_parse + settled)
    assert found(deployed, states=("dead", "done"), message_ids=(settled[0], at_parse[0], "nothing")) == sorted(
        [settled[0], at_parse[0]]
    )


def test_what_is_settled_must_be_asked_for(deployed: Deployed) -> None:
    make_done(deployed)
    with pytest.raises(NotFound):
        start(deployed, Query(flow=deployed.flow, environment="prod"))
    for wrong in ({"states": ("done",)}, {"states": ()}, {"states": ("accepted",)}):
        with pytest.raises(ConfigurationError):
            Query(**wrong)


def delivering(deployed: Deployed, version: str, *nodes: str) -> Plan:
    """A plan whose node `deliver` calls outside."""
    plan = make_plan(deployed.flow, version, nodes=nodes)
    found = plan.nodes["deliver"]
    node = PlanNode(found.id, "http_request", found.label, {}, found.next, found.on_error, found.stage)
    return Plan(plan.flow, plan.version, {**plan.nodes, "deliver": node}, plan.stages, plan.triggers)


def test_a_preview_tells_version_node_key_and_what_is_delivered_again_and_changes_nothing(
    deployed: Deployed,
) -> None:
    deployed.deploy(delivering(deployed, "1.1.0", "parse", "deliver", "archive"))
    batch, [message_id] = deployed.batch(trigger="in")
    [unit] = claim(batch, "w", 30, 10, keys=deployed.keyring)
    broken = failed(unit, node="archive")
    broken.trace = [NodeTrace("parse", 1, 1), NodeTrace("deliver", 1, 1), NodeTrace("archive", 1, 0, 1)]
    settle(unit, broken, keys=deployed.keyring, plan=deployed.plan)
    batches.finish(batch)
    before = status(deployed.organization_id, message_id)

    def preview(**how: Any) -> replays.Previewed:
        [only] = replays.preview(deployed.organization_id, Query(flow=deployed.flow), **how).sample
        return only

    anew = preview()
    assert (anew.from_version, anew.version, anew.starts_at, anew.repeats) == ("1.1.0", "1.1.0", [], ["deliver"])
    assert (anew.generation, anew.new_generation) == (1, False)
    on = preview(start="failure")
    assert (on.starts_at, on.repeats) == (["archive"], [])
    deployed.deploy(delivering(deployed, "2.0.0", "check", "deliver"))
    newest = preview(version="newest")
    assert (newest.version, newest.generation, newest.new_generation, newest.repeats) == (
        "2.0.0",
        2,
        True,
        ["deliver"],
    )
    refused = preview(version="newest", start="failure")
    assert refused.version is None
    assert "'archive'" in (refused.refused or "")
    whole = replays.preview(deployed.organization_id, Query(flow=deployed.flow), version="newest")
    assert [(group.from_version, group.version, group.messages) for group in whole.groups] == [
        ("1.1.0", "2.0.0", 1)
    ]
    assert status(deployed.organization_id, message_id) == before


def test_a_job_replays_what_its_query_found_once_and_tells_what_it_refused(deployed: Deployed) -> None:
    fine = make_dead(deployed, 5, trigger="in")
    [stuck] = make_dead(deployed, node="parse", trigger="in")
    deployed.deploy(make_plan(deployed.flow, "2.0.0", nodes=("check", "deliver")))
    job = start(deployed, Query(flow=deployed.flow), start="failure", version="newest")
    assert (job.status, job.matched) == ("queued", 6)
    job = work_to_the_end(deployed, job)
    assert (job.status, job.replayed, job.refused) == ("done", 5, 1)
    assert [(each["id"], each["code"]) for each in job.refusals] == [(stuck, "conflict")]
    assert states(deployed, fine) == ["handed_over"] * 5
    note = status(deployed.organization_id, fine[0]).trace[-1]
    assert (note["replayed_by"], note["version"], note["generation"]) == (f"anna (job {job.job_id})", "2.0.0", 2)
    # What dies again is another job's business.
    batch = deployed.dispatch()
    for unit in claim(batch, "w", 30, 100, keys=deployed.keyring):
        settle(unit, failed(unit), keys=deployed.keyring, plan=deployed.plan)
    assert work_to_the_end(deployed, job).replayed == 5
    assert {status(deployed.organization_id, message_id).replays for message_id in fine} == {1}


def test_done_messages_are_replayed_when_they_are_asked_for_and_keep_ids_and_keys(deployed: Deployed) -> None:
    ids = make_done(deployed, 3)
    query = Query(flow=deployed.flow, environment="prod", states=("done",))
    job = work_to_the_end(deployed, start(deployed, query))
    assert job.replayed == 3
    batch = deployed.dispatch()
    units = claim(batch, "w", 30, 10, keys=deployed.keyring)
    assert sorted(unit.message.id for unit in units) == sorted(ids)
    assert {unit.message.generation for unit in units} == {1}
    for unit in units:
        settle(unit, done(unit), keys=deployed.keyring)
    # Settled a second time after the query's moment.
    assert start(deployed, query).matched == 3


def test_a_job_keeps_its_rate(deployed: Deployed) -> None:
    make_dead(deployed, 9)
    began = time.monotonic()
    job = start(deployed, Query(flow=deployed.flow), rate_per_s=4)
    work()
    work()
    assert show(deployed, job).replayed == 4, "the next four are due in a second"
    job = work_to_the_end(deployed, job)
    assert job.replayed == 9
    assert time.monotonic() - began > 1.0


def test_a_cancelled_job_stops_and_what_it_did_stays(deployed: Deployed) -> None:
    ids = make_dead(deployed, 6)
    job = start(deployed, Query(flow=deployed.flow), rate_per_s=2)
    work()
    ended = replays.cancel(deployed.organization_id, job.job_id, by="bert")
    assert (ended.status, ended.replayed, ended.ended_by) == ("cancelled", 2, "bert")
    time.sleep(1.1)
    work()
    assert states(deployed, ids).count("dead") == 4
    with pytest.raises(Conflict):
        replays.cancel(deployed.organization_id, job.job_id, by="bert")


WORKER = """
import os, sys
from continuitybridge.inbox.replays import work
print("ready", flush=True)
while True:
    work()
"""


def test_a_job_whose_workers_are_killed_again_and_again_replays_each_message_once(deployed: Deployed) -> None:
    ids = make_dead(deployed, 24)
    job = start(deployed, Query(flow=deployed.flow), rate_per_s=8)
    killed = 0
    deadline = time.monotonic() + 60
    while show(deployed, job).status in ("queued", "running"):
        assert time.monotonic() < deadline
        worker = subprocess.Popen([sys.executable, "-c", WORKER], env=os.environ.copy(), stdout=subprocess.PIPE)
        assert worker.stdout is not None
        worker.stdout.readline()
        time.sleep(random.uniform(0.05, 1.2))
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        worker.stdout.close()
        killed += 1
    assert killed > 1
    ended = show(deployed, job)
    assert (ended.status, ended.replayed, ended.refused) == ("done", 24, 0)
    assert {status(deployed.organization_id, message_id).replays for message_id in ids} == {1}


def test_another_organization_sees_neither_jobs_nor_messages(
    deployed: Deployed, make_deployed: Callable[[], Deployed]
) -> None:
    theirs = make_deployed()
    ids = make_dead(theirs)
    job = start(theirs, Query(flow=theirs.flow))
    assert replays.list_jobs(deployed.organization_id) == []
    for verb in (replays.show, lambda *of: replays.cancel(*of, by="anna")):
        with pytest.raises(NotFound):
            verb(deployed.organization_id, job.job_id)
    with pytest.raises(NotFound):
        start(deployed, Query(message_ids=tuple(ids)))
    with pytest.raises(NotFound):
        replays.show(deployed.organization_id, uuid4())
    work_to_the_end(theirs, job)


def test_an_operator_previews_starts_and_follows_a_replay_by_command(deployed: Deployed) -> None:
    ids = make_dead(deployed, 3)
    where = ["-o", deployed.organization.slug]

    def call(*arguments: str, exit_code: int = 0) -> str:
        result = CliRunner().invoke(bridge, ["replay", *arguments, *where])
        assert result.exit_code == exit_code, result.output
        return result.output

    shown = call("preview", "--flow", deployed.flow, "--code", "delivery-failed")
    assert "3 messages" in shown
    assert ids[0] in shown
    assert json.loads(call("preview", ids[0], "--json"))["matched"] == 1
    assert "3 messages, 7 a second" in call("start", "--flow", deployed.flow, "--rate", "7")
    [job] = json.loads(call("list", "--json"))
    assert "queued: 0 replayed" in call("show", job["job_id"])
    assert "cancelled" in call("cancel", job["job_id"])
    call("start", exit_code=2)
    call("start", "--code", "never-seen", exit_code=2)
    yesterday = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}"
    assert "0 messages" in call("preview", "--until", yesterday)


def test_more_messages_than_one_page_are_found_in_order_across_dead_and_settled(deployed: Deployed) -> None:
    settled, dead = make_done(deployed, 4), make_dead(deployed, 5)
    query = Query(flow=deployed.flow, environment="prod", states=("dead", "done"))
    job = start(deployed, query, rate_per_s=2)
    seen = []
    for _ in range(12):
        _pass_time(deployed)
        work()
        seen.append(show(deployed, job).replayed)
    assert show(deployed, job).status == "done"
    assert seen[:5] == [2, 4, 6, 8, 9]
    assert set(states(deployed, settled)) == {"accepted"}
    assert "dead" not in states(deployed, dead)


def _pass_time(deployed: Deployed) -> None:
    with database.tenant(deployed.organization_id) as connection:
        connection.execute("UPDATE bridge.replay_jobs SET next_at = now()")
