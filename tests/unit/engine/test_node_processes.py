"""The processes behind a run: what survives the death of which, what is left behind (nothing)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_runs import (
    HOSTILE,
    PASS_ON,
    SLOW,
    alive,
    bodies,
    codes,
    endless,
    messages,
    node_processes,
    nurseries,
    plan_of,
    run,
    wait_until,
)

from continuitybridge.engine import child, runner
from continuitybridge.engine.limits import Limits
from continuitybridge.engine.message import Message
from continuitybridge.engine.runner import Runner
from continuitybridge.engine.services import LocalServices
from continuitybridge.errors import Unavailable, Verdict

QUIET = {"services": LocalServices(log=lambda *_: None), "limits": Limits()}
LONG = {"busy": 600_000}
"""A message that keeps the node busy for some tenths of a second."""


@pytest.fixture(autouse=True)
def none_of_other_tests() -> None:
    runner.close()


# -- reuse --------------------------------------------------------------------------------------------------


def test_a_plan_that_runs_again_meets_its_process_again(fresh: Runner) -> None:
    plan = plan_of(PASS_ON)
    run(plan, messages(1), using=fresh.run)
    first = node_processes()
    run(plan, messages(2), using=fresh.run)
    assert len(first) == 1
    assert node_processes() == first


@pytest.mark.parametrize(
    "other",
    [{"organization": "b"}, {"environment": "test"}, {"emulate": True}, {"limits": Limits(max_nesting_depth=9)}],
)
def test_a_process_is_never_shared_between_organizations_environments_or_limits(
    fresh: Runner, other: dict[str, Any]
) -> None:
    plan = plan_of(PASS_ON)
    run(plan, messages(1), using=fresh.run, organization="a", environment="prod")
    run(plan, messages(1), using=fresh.run, **{"organization": "a", "environment": "prod", **other})
    assert len(node_processes()) == 2


def test_only_the_plans_used_last_keep_their_processes() -> None:
    plans = [plan_of(PASS_ON.replace("tested", f"tested-{n}")) for n in range(5)]
    with Runner(idle_children=2) as own:
        for plan in plans:
            run(plan, messages(1), using=own.run)
        wait_until(lambda: len(node_processes()) == 2)
        before = set(node_processes())
        run(plans[-1], messages(1), using=own.run)
        run(plans[-2], messages(1), using=own.run)
        assert set(node_processes()) == before


def test_runs_of_one_plan_at_once_have_processes_of_their_own(fresh: Runner) -> None:
    plan = plan_of(PASS_ON)
    one = fresh.run(plan, endless(), **QUIET)
    other = fresh.run(plan, endless(), **QUIET)
    assert next(one).message_id == next(other).message_id == "m1"
    assert len(node_processes()) == 2


def test_threads_may_share_a_runner(fresh: Runner) -> None:
    plans = [plan_of(PASS_ON.replace("tested", f"tested-{n}")) for n in range(3)]
    found: list[int] = []

    def work(n: int) -> None:
        for _ in range(10):
            found.append(len(run(plans[n % 3], messages(*range(20)), using=fresh.run)))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [20] * 60


def test_a_worn_process_finishes_what_it_has_and_another_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log line of each message is written once."""
    monkeypatch.setattr(child, "GROWTH_CHECKED_EVERY", 10)
    monkeypatch.setattr(child, "GROWTH_SHARE", -1)
    lines: list[str] = []
    services = LocalServices(log=lambda level, text, fields: lines.append(text))
    plan = plan_of(PASS_ON + "  - {id: note, type: logger, config: {message: '{{ message.id }}'}}\n")
    seen: set[int] = set()
    with Runner(start="fork") as own:
        given = messages(*range(900))
        for n, outcome in enumerate(own.run(plan, given, services=services, limits=Limits())):
            assert outcome.status == "done"
            if n % 100 == 0:
                seen |= set(node_processes())
        assert n == 899
    assert sorted(lines) == sorted(f"m{n}" for n in range(1, 901))
    assert len(seen) >= 3


# -- deaths -------------------------------------------------------------------------------------------------


def test_a_message_whose_process_is_killed_from_outside_runs_again(fresh: Runner) -> None:
    outcomes = fresh.run(plan_of(SLOW), messages({}, LONG, {}), **QUIET)
    assert next(outcomes).message_id == "m1"
    (pid,) = node_processes()
    os.kill(pid, signal.SIGKILL)
    assert [(o.message_id, o.status) for o in outcomes] == [("m2", "done"), ("m3", "done")]
    assert not alive(pid)


def test_finished_messages_do_not_run_again_after_a_crash(fresh: Runner) -> None:
    """The log line of each message is written once, but for the one that was under way."""
    lines: list[str] = []
    plan = plan_of(PASS_ON + "  - {id: note, type: logger, config: {message: '{{ message.id }}'}}\n")
    services = LocalServices(log=lambda level, text, fields: lines.append(text))
    outcomes = fresh.run(plan, messages(*range(200)), services=services, limits=Limits())
    done = [next(outcomes).message_id for _ in range(50)]
    os.kill(node_processes()[0], signal.SIGKILL)
    done += [outcome.message_id for outcome in outcomes]
    assert sorted(done, key=lambda name: int(name[1:])) == [f"m{n}" for n in range(1, 201)]
    assert 200 <= len(lines) <= 201


def test_a_message_whose_process_is_killed_each_time_fails_for_now(fresh: Runner) -> None:
    """Who kills from outside says nothing about the message: the verdict is transient."""
    plan = plan_of(SLOW)
    stop = threading.Event()

    def killer() -> None:
        while not stop.wait(0.05):
            for pid in node_processes():
                with Suppress():
                    os.kill(pid, signal.SIGKILL)

    outcomes = fresh.run(plan, messages({"busy": 10**9}, {}), **QUIET)
    thread = threading.Thread(target=killer)
    thread.start()
    try:
        outcome = next(outcomes)
    finally:
        stop.set()
        thread.join()
    assert (outcome.message_id, codes(outcome), outcome.verdict) == ("m1", ["node-crashed"], Verdict.TRANSIENT)
    assert outcome.failures[0].node_id in ("work", "in")
    assert [(o.message_id, o.status) for o in outcomes] == [("m2", "done")]


class Suppress:
    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, *rest: object) -> bool:
        return kind is not None and issubclass(kind, ProcessLookupError)


def test_the_nursery_may_be_killed_too(fresh: Runner) -> None:
    outcomes = fresh.run(plan_of(SLOW), messages({}, LONG, {}), **QUIET)
    assert next(outcomes).message_id == "m1"
    children, (nursery,) = node_processes(), nurseries()
    os.kill(nursery, signal.SIGKILL)
    assert [(o.message_id, o.status) for o in outcomes] == [("m2", "done"), ("m3", "done")]
    wait_until(lambda: not any(map(alive, children)))
    assert len(nurseries()) == 1


def test_a_run_finds_a_living_process_where_its_idle_one_died(fresh: Runner) -> None:
    plan = plan_of(PASS_ON)
    run(plan, messages(1), using=fresh.run)
    for pid in [*node_processes(), *nurseries()]:
        os.kill(pid, signal.SIGKILL)
    assert run(plan, messages(2), using=fresh.run)["m1"].status == "done"


def test_node_processes_do_not_mind_signals_that_are_their_owners(fresh: Runner) -> None:
    """Ctrl-C and a supervisor's TERM go to the whole process group; the owner decides what becomes of its work."""
    outcomes = fresh.run(plan_of(SLOW), messages({}, LONG, {}), **QUIET)
    next(outcomes)
    before = [*node_processes(), *nurseries()]
    for pid in before:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
    assert [o.status for o in outcomes] == ["done", "done"]
    assert [*node_processes(), *nurseries()] == before


def test_a_signal_handler_of_the_caller_interrupts_nothing(fresh: Runner) -> None:
    ticks = []
    former = signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    try:
        outcomes = run(plan_of(SLOW), messages(*[{"busy": 10_000}] * 100), using=fresh.run)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert {o.status for o in outcomes.values()} == {"done"}
    assert len(outcomes) == 100
    assert ticks


# -- ends ---------------------------------------------------------------------------------------------------


def test_closing_the_iterator_ends_what_is_under_way_at_once(fresh: Runner) -> None:
    outcomes = fresh.run(plan_of(HOSTILE), messages({"a": 1}, {"do": "loop"}), **QUIET)
    next(outcomes)
    (pid,) = node_processes()
    outcomes.close()  # type: ignore[attr-defined]
    wait_until(lambda: not alive(pid), 3)


def test_closing_the_runner_ends_every_process(fresh: Runner) -> None:
    run(plan_of(PASS_ON), messages(1), using=fresh.run)
    pids = [*node_processes(), *nurseries()]
    assert len(pids) == 2
    fresh.close()
    assert not any(map(alive, pids))
    fresh.close()


LEAVER = textwrap.dedent(
    """
    import os, sys
    sys.path.insert(0, {here!r})
    from engine_runs import *
    from continuitybridge.engine.limits import Limits
    from continuitybridge.engine.runner import Runner
    from continuitybridge.errors import ConfigurationError

    plan, hostile = plan_of(PASS_ON), plan_of(HOSTILE)
    quiet = {{"services": LocalServices(log=lambda *_: None), "limits": Limits()}}

    def everything(start):
        with Runner(start=start) as own:
            run(plan, messages(1, 2), using=own.run)
            hurried = Limits(node_time_limit_s=0.1)
            run(hostile, messages({{"do": "loop"}}, {{"a": 1}}), using=own.run, limits=hurried)
            unfinished = own.run(plan, endless(), **quiet)
            next(unfinished)
            unfinished.close()
            try:
                run(plan, messages(1), using=own.run, stage="none")
            except ConfigurationError:
                pass

    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    everything("fork")
    before = descriptors()
    for start in ("fork", "exec", "fork"):
        everything(start)
    assert descriptors() == before, (before, descriptors())
    assert not node_processes()
    try:
        print("a child is left:", os.waitpid(-1, os.WNOHANG))
    except ChildProcessError:
        print("nothing is left")
    """
)


def test_no_descriptor_and_no_zombie_is_left_behind() -> None:
    """In a process of its own: that of the tests has children and descriptors of other tests' servers."""
    script = LEAVER.format(here=str(Path(__file__).parent))
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("nothing is left\n", "")


def test_many_runs_do_not_grow_the_nursery(fresh: Runner) -> None:
    plan = plan_of(HOSTILE)
    limits = Limits(node_time_limit_s=0.05)

    def deaths(count: int) -> int:
        run(plan, messages(*[{"do": "loop"}] * count), using=fresh.run, limits=limits)
        (nursery,) = nurseries()
        return len(os.listdir(f"/proc/{nursery}/fd"))

    assert deaths(1) == deaths(10)


OWNER = textwrap.dedent(
    """
    import signal, sys, threading, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us without it
    sys.path.insert(0, {here!r})
    from engine_runs import *
    from continuitybridge.engine.runner import Runner
    own = Runner(start={start!r})
    outcomes = own.run(plan_of(HOSTILE), messages({{"a": 1}}, {{"do": "loop"}}),
                       services=LocalServices(), limits=Limits(node_time_limit_s=1000))
    next(outcomes)
    print("ready", flush=True)
    next(outcomes)
    """
)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("start", ["fork", "exec"])
def test_an_owner_that_ends_takes_its_node_processes_with_it(start: str, number: int) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(start=start, here=str(Path(__file__).parent))],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        pids = [*node_processes(owner.pid), *nurseries(owner.pid)]
        assert len(pids) == 2
        owner.send_signal(number)
        owner.wait(10)
        wait_until(lambda: not any(map(alive, pids)), 5)


# -- where it runs ------------------------------------------------------------------------------------------


@pytest.fixture
def threads_at_work() -> Iterator[None]:
    """Threads that allocate, import, log and hold locks while others fork."""
    stop = threading.Event()

    def work() -> None:
        import logging

        while not stop.is_set():
            logging.getLogger("test").debug("%s", [str(n) for n in range(100)])
            __import__("json").loads("[" + "1," * 100 + "1]")
            time.sleep(0.0005)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("start", ["auto", "fork", "exec"])
@pytest.mark.usefixtures("threads_at_work")
def test_it_runs_in_a_process_with_threads(start: Any) -> None:
    plan = plan_of(PASS_ON)
    for _ in range(4):
        with Runner(start=start) as own:
            assert run(plan, messages(1), using=own.run)["m1"].status == "done"


def test_a_run_that_began_in_a_thread_outlives_it(fresh: Runner) -> None:
    """The kernel ends a process with the *thread* that started it, if told so naively."""
    plan = plan_of(PASS_ON)
    thread = threading.Thread(target=lambda: run(plan, messages(1), using=fresh.run))
    thread.start()
    thread.join()
    before = node_processes()
    time.sleep(0.1)
    run(plan, messages(2), using=fresh.run)
    assert node_processes() == before


def test_a_fork_of_the_owner_has_processes_of_its_own_and_leaves_the_owners_alone(fresh: Runner) -> None:
    plan = plan_of(PASS_ON)
    run(plan, messages(1), using=fresh.run)
    before = [*node_processes(), *nurseries()]
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if run(plan, messages(1), using=fresh.run)["m1"].status == "done":
                fresh.close()
                status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert [*node_processes(), *nurseries()] == before
    assert run(plan, messages(2), using=fresh.run)["m1"].status == "done"


def test_node_processes_hold_nothing_of_their_owners(fresh: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_DATABASE_URL", "postgresql://somebody:canary-of-this-test@host/db")
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        run(plan_of(PASS_ON), messages(1), using=fresh.run)
        for pid in [*node_processes(), *nurseries()]:
            held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            assert os.readlink(f"/proc/self/fd/{write}") not in held
        if fresh.processes.start == "exec":
            for pid in [*node_processes(), *nurseries()]:
                assert b"canary-of-this-test" not in Path(f"/proc/{pid}/environ").read_bytes()
    finally:
        os.close(read)
        os.close(write)


def test_a_machine_that_can_start_no_process_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Runner(start="exec") as own, pytest.raises(Unavailable, match="no node process can be started"):
        run(plan_of(PASS_ON), messages(1), using=own.run)


def test_a_slow_caller_does_not_make_a_node_overdue(fresh: Runner) -> None:
    """The node waits for its line to be taken; that is not its time."""
    plan = plan_of(PASS_ON + "  - {id: note, type: logger, config: {message: '{{ \"x\" * 9000 }}'}}\n")
    outcomes = []
    for outcome in fresh.run(
        plan, messages(*range(300)), services=QUIET["services"], limits=Limits(node_time_limit_s=0.2)
    ):  # type: ignore[arg-type]
        if not outcomes:
            time.sleep(1)
        outcomes.append(outcome)
    assert {o.status for o in outcomes} == {"done"}


def test_messages_are_taken_from_their_source_as_room_comes_up(fresh: Runner) -> None:
    taken = 0

    def source() -> Iterator[Message]:
        nonlocal taken
        for message in endless():
            taken += 1
            yield message

    outcomes = fresh.run(plan_of(PASS_ON), source(), **QUIET)
    for _ in range(1000):
        next(outcomes)
    assert taken < 1000 + 2 * 256
    outcomes.close()  # type: ignore[attr-defined]


def test_a_large_message_passes_whole(fresh: Runner) -> None:
    body = {"text": "x" * 9_000_000, "numbers": list(range(1000))}
    assert bodies(run(plan_of(PASS_ON), messages(body, body), using=fresh.run)["m2"]) == [body]
