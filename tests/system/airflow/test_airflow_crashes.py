"""kill -9 of whoever works on a message: delivered at least once, settled once."""

from __future__ import annotations

from contextlib import suppress

import httpx
import psutil
from trial import Gate, Tenant, Trial, delivered, only_run, settled, wait_until


def task_of(trial: Trial, dag_id: str) -> psutil.Process:
    """The process that runs the DAG's one task: it has node processes, and its supervisor writes its log."""
    found = set()
    for process in trial.processes()["scheduler"].children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name() != "bridge-nursery":
                continue
            task = psutil.Process(process.ppid())
            logs = [file.path for file in psutil.Process(task.ppid()).open_files()]
            if any(f"dag_id={dag_id}/" in path for path in logs):
                found.add(task)
    [task] = found
    return task


def test_a_killed_tasks_message_is_delivered_again_and_settled_once(trial: Trial, acme: Tenant) -> None:
    gate = Gate(trial, "PO-killed")
    before = len(trial.runs(acme.dag_id("order")))
    message_id = acme.send("order", {"po": "PO-killed"})
    assert gate.reached.wait(60)
    task_of(trial, acme.dag_id("order")).kill()
    gate.open.set()
    keys = {each.headers["idempotency-key"] for each in delivered(acme, "PO-killed", times=2, within_s=120)}
    assert keys == {f"{message_id}:deliver:1"}
    settled(acme, message_id)
    run_id = only_run(trial, acme.dag_id("order"), before)
    assert trial.await_run(acme.dag_id("order"), run_id, within_s=120) == "success"
    assert "taken over" in trial.task_log(acme.dag_id("order"), run_id, "parse", 2)


def test_a_killed_supervisor_takes_its_task_along(trial: Trial, acme: Tenant) -> None:
    gate = Gate(trial, "PO-orphan")
    message_id = acme.send("order", {"po": "PO-orphan"})
    assert gate.reached.wait(60)
    task = task_of(trial, acme.dag_id("order"))
    supervisor = psutil.Process(task.ppid())
    supervisor.kill()
    task.wait(30)
    delivered(acme, "PO-orphan", times=2, within_s=120)
    gate.open.set()
    settled(acme, message_id, within_s=120)


def workers(trial: Trial) -> set[psutil.Process]:
    """The processes that run or await tasks, whichever scheduler made them."""
    above = trial.processes()["scheduler"].parent()
    assert above is not None
    found = set()
    for process in above.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name() == "bridge-worker":
                found.add(process)
    return found


def has_task(worker: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(worker.children())
    return True


def test_a_killed_schedulers_task_goes_on_and_its_idle_workers_end(trial: Trial, acme: Tenant) -> None:
    gate = Gate(trial, "PO-scheduler")
    before = len(trial.runs(acme.dag_id("order")))
    message_id = acme.send("order", {"po": "PO-scheduler"})
    assert gate.reached.wait(60)
    left, running = workers(trial), task_of(trial, acme.dag_id("order")).parent()
    trial.processes()["scheduler"].kill()
    # Its successor works: another message goes through whole meanwhile.
    settled(acme, acme.send("order", {"po": "PO-other"}), within_s=120)
    assert running in left
    assert running.is_running()
    wait_until(
        lambda: all(has_task(process) for process in left if process.is_running()),
        within_s=30,
        what="the dead scheduler's idle workers have ended",
    )
    gate.open.set()
    settled(acme, message_id)
    run_id = only_run(trial, acme.dag_id("order"), before)
    assert trial.await_run(acme.dag_id("order"), run_id) == "success"
    path = f"/dags/{acme.dag_id('order')}/dagRuns/{run_id}/taskInstances/parse"
    assert trial.api("GET", path).json()["try_number"] == 1
    assert len(delivered(acme, "PO-scheduler")) == 1
    wait_until(lambda: not running.is_running(), within_s=30, what="the dead scheduler's worker has ended")


def test_a_batch_whose_dispatcher_died_before_making_the_run_gets_its_run(trial: Trial, acme: Tenant) -> None:
    dispatcher = trial.processes()["dispatch"]
    dispatcher.suspend()
    try:
        message_id = acme.send("order", {"po": "PO-dispatcher"})
        # What the dispatcher does first, and then it dies.
        trial.python(
            "from continuitybridge.inbox.batches import dispatch_ready\n"
            "assert len(dispatch_ready()) == 1, 'no batch was made'\n"
        )
    finally:
        dispatcher.kill()
    delivered(acme, "PO-dispatcher", within_s=120)
    settled(acme, message_id)


def test_messages_accepted_while_no_dispatcher_runs_are_delivered_when_one_does(
    trial: Trial, acme: Tenant
) -> None:
    trial.processes()["dispatch"].kill()
    message_id = acme.send("order", {"po": "PO-no-dispatcher"})
    delivered(acme, "PO-no-dispatcher", within_s=120)
    settled(acme, message_id)


def test_after_a_restart_of_postgresql_messages_go_on(trial: Trial, acme: Tenant) -> None:
    gate = Gate(trial, "PO-under-way")
    under_way = acme.send("order", {"po": "PO-under-way"})
    assert gate.reached.wait(60)
    trial.processes()["postgres"].kill()
    gate.open.set()

    def accepted() -> str | None:
        try:
            return acme.send("order", {"po": "PO-restart"}, **{"webhook-id": "restart"})
        except (AssertionError, httpx.HTTPError):
            return None

    message_id = wait_until(accepted, within_s=90, what="the webhook answering again")
    settled(acme, message_id, within_s=120)
    delivered(acme, "PO-restart")
    settled(acme, under_way, within_s=120)
