"""`reply: result` where the message is run by the intake that accepted it: no stream worker runs in these tests
unless one is started."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from continuitybridge import database
from continuitybridge.database import connections as pools
from continuitybridge.database.embedded import EmbeddedPostgres
from continuitybridge.inbox import holds
from continuitybridge.organizations import Organization

from .conftest import Hook, Intake, end, eventually, run_intake
from .reply_world import ENVIRONMENT, Destination, deploy, stream_worker, to

ORDER = b'{"number": "PO-1", "quantity": 2}'
PRICE = {"id": "price", "type": "jq", "config": {"program": ".total = .quantity * 3"}}


@pytest.fixture
def destination() -> Iterator[Destination]:
    made = Destination()
    yield made
    made.close()


@pytest.fixture
def senders() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.fixture
def intake(tmp_path: Path, organization: Organization) -> Iterator[Intake]:
    """An intake of the test's own that runs messages by now."""
    running = run_intake(tmp_path)
    try:
        first = deploy(organization, PRICE, mode="stream")
        eventually(lambda: ask(running, first, wait_s=1).status_code == 200, within_s=60)
        yield running
    finally:
        end(running)


def ask(intake: Intake, hook: Hook, *, wait_s: int = 20, body: bytes = ORDER, **given: Any) -> httpx.Response:
    headers = {**hook.signed(body, **given), "prefer": f"wait={wait_s}"}
    return intake.post(hook, body, headers=headers)


def states(hook: Hook) -> dict[str, str]:
    with database.tenant(hook.organization.organization_id) as tables:
        rows = tables.execute(
            "SELECT message_id, state FROM bridge.messages WHERE flow = %(flow)s UNION ALL"
            " SELECT message_id, result FROM bridge.settled_messages WHERE flow = %(flow)s",
            {"flow": hook.flow},
        ).fetchall()
    return dict(rows)


def test_the_answer_is_the_flows_and_the_message_is_settled_like_any_other(
    intake: Intake, organization: Organization, destination: Destination, senders: ThreadPoolExecutor
) -> None:
    hook = deploy(organization, PRICE, to(destination, response="vars"), mode="stream")
    answers = list(senders.map(lambda _: ask(intake, hook), range(40)))
    assert {answer.status_code for answer in answers} == {200}
    assert all(answer.json()["total"] == 6 for answer in answers)
    assert len(set(destination.keys)) == len(destination.keys) == 40
    eventually(lambda: list(states(hook).values()) == ["done"] * 40)


def test_copies_at_once_are_one_message_with_one_answer(
    intake: Intake, organization: Organization, destination: Destination, senders: ThreadPoolExecutor
) -> None:
    hook = deploy(organization, PRICE, to(destination, response="vars"), mode="stream")
    answers = list(senders.map(lambda _: ask(intake, hook, message_id="order-1"), range(60)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len(destination.keys) == len(states(hook)) == 1


def test_a_copy_in_another_process_is_answered_with_the_first_one(
    intake: Intake,
    organization: Organization,
    destination: Destination,
    senders: ThreadPoolExecutor,
    tmp_path: Path,
) -> None:
    hook = deploy(organization, PRICE, to(destination, response="vars"), mode="stream")
    eventually(lambda: ask(intake, hook, wait_s=1).status_code == 200, within_s=60)
    others = run_intake(tmp_path, BRIDGE_INTAKE_LANES="0")
    try:
        assert ask(others, hook, wait_s=0).status_code == 202
        destination.opened.clear()
        first = senders.submit(ask, intake, hook, message_id="order-1")
        before = len(destination.keys)
        eventually(lambda: len(destination.keys) == before + 1)
        copies = [senders.submit(ask, others, hook, message_id="order-1") for _ in range(2)]
        with pytest.raises(TimeoutError):
            copies[0].result(0.3)
        destination.opened.set()
        assert first.result().status_code == 200
        # Sooner than whoever asks the tables once a second.
        answers = [each.result(0.5) for each in copies]
        assert {answer.content for answer in answers} == {first.result().content}
        assert {answer.headers["idempotent-replayed"] for answer in answers} == {"true"}
    finally:
        end(others)


@contextmanager
def nothing_settles() -> Iterator[None]:
    """Whatever writes a settled message waits until the block ends."""
    with psycopg.connect(pools.owner_url()) as connection:
        connection.execute("LOCK TABLE bridge.settled_messages IN SHARE MODE")
        yield


def test_a_result_may_be_answered_when_the_flow_has_ended_and_who_is_killed_then_repeats_no_more_than_its_calls(
    organization: Organization,
    destination: Destination,
    senders: ThreadPoolExecutor,
    tmp_path: Path,
    postgres: EmbeddedPostgres,
) -> None:
    running = run_intake(tmp_path)
    first = deploy(organization, PRICE, mode="stream")
    eventually(lambda: ask(running, first, wait_s=1).status_code == 200, within_s=60)
    hook = deploy(organization, PRICE, to(destination, response="vars"), mode="stream", when="ended")
    eventually(lambda: ask(running, hook, wait_s=1, message_id="first").status_code == 200, within_s=60)
    with nothing_settles():
        answer = ask(running, hook, message_id="early")
        assert (answer.status_code, answer.json()["total"]) == (200, 6)
        assert states(hook)[answer.headers["bridge-message-id"]] == "claimed"
        copy = senders.submit(ask, running, hook, message_id="early")
        with pytest.raises(TimeoutError):
            copy.result(0.5)
    assert copy.result().headers["idempotent-replayed"] == "true"
    assert copy.result().content == answer.content
    assert states(hook)[answer.headers["bridge-message-id"]] == "done"
    with nothing_settles():
        answer = ask(running, hook)
        assert answer.status_code == 200
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
        # What it had asked the server for is done without it otherwise.
        with psycopg.connect(postgres.admin_url, autocommit=True) as server:
            server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                " AND application_name = 'bridge-settlements'"
            )
    assert states(hook)[answer.headers["bridge-message-id"]] == "claimed"
    with stream_worker():
        eventually(lambda: set(states(hook).values()) == {"done"}, within_s=60)
    assert sorted(Counter(destination.keys).values()) == [1, 1, 2]
    running.client.close()


def test_a_result_is_answered_when_it_is_settled_unless_the_trigger_says_otherwise(
    intake: Intake, organization: Organization, senders: ThreadPoolExecutor
) -> None:
    hook = deploy(organization, PRICE, mode="stream")
    eventually(lambda: ask(intake, hook, wait_s=1).status_code == 200, within_s=60)
    with nothing_settles():
        asked = senders.submit(ask, intake, hook)
        with pytest.raises(TimeoutError):
            asked.result(0.5)
    assert asked.result().status_code == 200
    assert states(hook)[asked.result().headers["bridge-message-id"]] == "done"


def test_a_failing_flow_is_answered_at_once(intake: Intake, organization: Organization) -> None:
    hook = deploy(
        organization,
        {"id": "check", "type": "validation", "config": {"schema": {"required": ["customer"]}}},
        mode="stream",
    )
    answer = ask(intake, hook)
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] == "validation-failed"
    assert list(states(hook).values()) == ["dead"]


def test_what_has_to_be_tried_again_is_the_stream_workers(
    intake: Intake, organization: Organization, destination: Destination
) -> None:
    destination.answers = lambda n: (503, {}) if n == 1 else (200, {"receipt": n})
    hook = deploy(organization, PRICE, to(destination, response="vars"), mode="stream")
    answer = ask(intake, hook, wait_s=1)
    assert answer.status_code == 202, answer.text
    with stream_worker():
        eventually(lambda: list(states(hook).values()) == ["done"], within_s=60)
    assert len(destination.keys) == 2
    assert len(set(destination.keys)) == 1


@pytest.mark.parametrize("reason", ["paused", "bounded", "ordered"])
def test_what_may_not_run_at_once_waits_in_the_tables(
    intake: Intake, organization: Organization, reason: str
) -> None:
    more: dict[str, Any] = {
        "paused": {},
        "bounded": {"concurrency": 1},
        "ordered": {"ordering": {"key": "number"}},
    }[reason]
    hook = deploy(organization, PRICE, mode="stream", flow=more)
    if reason == "paused":
        holds.hold(organization.organization_id, ENVIRONMENT, hook.flow, "pause", by="tester")
    eventually(lambda: ask(intake, hook, wait_s=0).status_code == 202)
    assert ask(intake, hook, wait_s=1).status_code == 202
    assert set(states(hook).values()) == {"accepted"}


def test_what_a_killed_intake_ran_is_taken_up(
    organization: Organization, destination: Destination, senders: ThreadPoolExecutor, tmp_path: Path
) -> None:
    running = run_intake(tmp_path)
    hook = deploy(organization, PRICE, to(destination, response="vars"), mode="stream")
    eventually(lambda: ask(running, hook, wait_s=1).status_code == 200, within_s=60)
    before = len(destination.keys)
    destination.opened.clear()
    asked = [senders.submit(ask, running, hook) for _ in range(5)]
    eventually(lambda: len(destination.keys) == before + 5)
    family = psutil.Process(running.process.pid).children(recursive=True)
    with stream_worker():
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
        destination.opened.set()
        eventually(lambda: set(states(hook).values()) == {"done"}, within_s=60)
    assert all(isinstance(each.exception(), httpx.TransportError) for each in asked)
    again = Counter(destination.keys[before:])
    assert [again[key] for key in destination.keys[before : before + 5]] == [2] * 5
    eventually(lambda: not any(process.is_running() for process in family))
    running.client.close()


def test_a_stopping_intake_finishes_what_it_runs(
    intake: Intake, organization: Organization, destination: Destination, senders: ThreadPoolExecutor
) -> None:
    hook = deploy(organization, PRICE, to(destination, response="vars"), mode="stream")
    eventually(lambda: ask(intake, hook, wait_s=1).status_code == 200, within_s=60)
    before = len(destination.keys)
    destination.opened.clear()
    asked = [senders.submit(ask, intake, hook) for _ in range(5)]
    eventually(lambda: len(destination.keys) == before + 5)
    intake.process.terminate()
    assert {each.result().status_code for each in asked} == {202}
    destination.opened.set()
    assert intake.process.wait(30) in (0, -signal.SIGTERM), intake.log.read_text()
    assert set(states(hook).values()) == {"done"}
    assert len(destination.keys) == before + 5


def test_an_intake_without_lanes_leaves_all_to_stream_workers(organization: Organization, tmp_path: Path) -> None:
    running = run_intake(tmp_path, BRIDGE_INTAKE_LANES="0")
    try:
        hook = deploy(organization, PRICE, mode="stream")
        assert [ask(running, hook, wait_s=1).status_code for _ in range(3)] == [202] * 3
        assert set(states(hook).values()) == {"accepted"}
        with stream_worker():
            eventually(lambda: ask(running, hook).status_code == 200, within_s=60)
    finally:
        end(running)
