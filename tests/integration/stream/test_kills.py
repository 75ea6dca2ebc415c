"""kill -9 of everything that a stream consists of: nothing is lost, nothing is settled twice."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from stream_world import Destination, Flow, start_stream, wait_until

from continuitybridge.database.embedded import EmbeddedPostgres
from continuitybridge.inbox import reconcile

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `bridge stream`; all that were started are ended."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        started.append(start_stream(tmp_path / "stream.log", *arguments, **environment))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
    for process in started:
        assert process.wait(30) in (0, -signal.SIGKILL), (tmp_path / "stream.log").read_text()


def kill(process: psutil.Process | subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGKILL)


def family(process: subprocess.Popen[bytes]) -> tuple[psutil.Process, list[psutil.Process]]:
    """A worker's nursery and its node processes."""
    [nursery] = psutil.Process(process.pid).children()
    return nursery, nursery.children()


def alive(process: psutil.Process) -> bool:
    """Whether it runs; one that has ended and that nobody asked how does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_all_well(flow: Flow, destination: Destination, sent: list[str]) -> None:
    """Each message is settled once and was delivered; what came twice came under one key."""
    assert flow.states() == {"done": len(sent)}
    assert reconcile.violations(flow.id) == []
    keys = Counter(each.key for each in destination.deliveries)
    assert {key.split(":")[0] for key in keys} == set(sent)
    assert len(keys) == len(sent)


def test_what_a_killed_worker_held_is_taken_up_within_seconds(
    make_flow: Callable[[], Flow], destination: Destination, start: Start
) -> None:
    flow = make_flow()
    destination.answer = lambda delivery: time.sleep(0.1) or 200
    first, _ = start(), start()
    sent = flow.send(0)
    flow.await_done(1)
    sent += flow.send(*range(1, 150))
    wait_until(lambda: destination.begun > 40)
    kill(first)
    killed = time.monotonic()
    sent += flow.send("after")
    wait_until(lambda: "after" in destination.numbers())
    assert time.monotonic() - killed < 40
    # Its leases would hold for a minute.
    flow.await_done(len(sent), within_s=45)
    assert_all_well(flow, destination, sent)


def test_a_killed_nursery_or_node_process_costs_no_message(
    make_flow: Callable[[], Flow], destination: Destination, start: Start
) -> None:
    flow = make_flow()
    worker = start()
    sent = flow.send(0)
    flow.await_done(1)
    for what in ("node", "nursery", "node"):
        destination.answer = lambda delivery: time.sleep(0.05) or 200
        begun = destination.begun
        sent += flow.send(*range(20))
        wait_until(lambda begun=begun: destination.begun > begun)
        wait_until(lambda: family(worker)[1])
        nursery, nodes = family(worker)
        kill(nursery if what == "nursery" else nodes[0])
        flow.await_done(len(sent))
    assert worker.poll() is None
    assert_all_well(flow, destination, sent)


def test_a_killed_database_costs_no_message(
    make_flow: Callable[[], Flow], destination: Destination, start: Start, postgres: EmbeddedPostgres
) -> None:
    flow = make_flow()
    start("--workers", "2")
    sent = flow.send(0)
    flow.await_done(1)
    held = destination.begun
    waiting = {"for": 1.5}
    destination.answer = lambda delivery: time.sleep(waiting["for"]) or 200
    sent += flow.send(*range(1, 30))
    wait_until(lambda: destination.begun > held)
    # Between claim and settlement: the claims, which do not wait for the disk, may be forgotten.
    postgres.kill()
    waiting["for"] = 0.0
    postgres.start(die_with_parent=True)
    flow.await_done(len(sent), within_s=60)
    assert_all_well(flow, destination, sent)


def test_workers_end_with_the_process_that_keeps_them_and_finish_when_it_is_asked_to_end(
    make_flow: Callable[[], Flow], destination: Destination, start: Start
) -> None:
    flow = make_flow()
    keeper = start("--workers", "2")
    sent = flow.send(0)
    flow.await_done(1)
    workers = psutil.Process(keeper.pid).children()
    assert len(workers) == 2
    everybody = psutil.Process(keeper.pid).children(recursive=True)
    kill(workers[0])
    wait_until(lambda: len(psutil.Process(keeper.pid).children()) == 2, what="another worker")
    destination.answer = lambda delivery: time.sleep(0.5) or 200
    sent += flow.send(1, 2, 3)
    wait_until(lambda: destination.begun == 4)
    everybody += psutil.Process(keeper.pid).children(recursive=True)
    keeper.terminate()
    assert keeper.wait(30) == 0
    assert_all_well(flow, destination, sent)
    wait_until(lambda: not any(map(alive, everybody)), what="all ended")

    keeper = start("--workers", "2")
    wait_until(lambda: len(psutil.Process(keeper.pid).children(recursive=True)) >= 4)
    everybody = psutil.Process(keeper.pid).children(recursive=True)
    kill(keeper)
    wait_until(lambda: not any(map(alive, everybody)), what="all ended")
