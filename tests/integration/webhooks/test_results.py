"""`reply: result`: the request is held until the flow has dealt with its message, over real HTTP."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from continuitybridge import database
from continuitybridge.inbox.replies import Notices
from continuitybridge.organizations import Organization

from .conftest import Hook, Intake, end, eventually, run_intake
from .reply_world import Destination, deploy, start_worker_process, stream_worker, to, worker

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


def state(hook: Hook, message_id: str) -> str | None:
    with database.tenant(hook.organization.organization_id) as tables:
        row = tables.execute(
            "SELECT state FROM bridge.messages WHERE message_id = %s UNION ALL"
            " SELECT result FROM bridge.settled_messages WHERE message_id = %s",
            (message_id, message_id),
        ).fetchone()
    return None if row is None else str(row[0])


def messages(hook: Hook) -> list[str]:
    with database.tenant(hook.organization.organization_id) as tables:
        rows = tables.execute(
            "SELECT message_id FROM bridge.messages WHERE flow = %(flow)s UNION"
            " SELECT message_id FROM bridge.settled_messages WHERE flow = %(flow)s",
            {"flow": hook.flow},
        )
        return [row[0] for row in rows]


def is_accepted(response: httpx.Response) -> bool:
    return response.status_code == 202 and set(response.json()) == {"id", "status_url", "duplicate"}


def test_the_caller_gets_what_the_flow_made_as_the_templates_say(
    intake: Intake, organization: Organization, destination: Destination
) -> None:
    hook = deploy(
        organization,
        PRICE,
        to(destination, response="vars"),
        status="{{ 201 if body.total > 5 else 200 }}",
        headers={"Location": "/orders/{{ body.number }}"},
        body={"order": "{{ body.number }}", "total": "{{ body.total }}", "delivered": "{{ vars.deliver.status }}"},
    )
    with worker(organization):
        response = intake.post(hook, ORDER)
    assert response.status_code == 201, response.text
    assert response.json() == {"order": "PO-1", "total": 6, "delivered": 200}
    assert response.headers["location"] == "/orders/PO-1"
    assert response.headers["content-type"] == "application/json"
    [message_id] = messages(hook)
    assert response.headers["bridge-message-id"] == message_id
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in response.headers["content-security-policy"]


def test_without_templates_the_message_itself_is_answered_and_a_filtered_one_with_204(
    intake: Intake, organization: Organization
) -> None:
    hook = deploy(organization, {"id": "some", "type": "filter", "config": {"where": ".quantity > 1"}}, PRICE)
    with worker(organization):
        given = intake.post(hook, ORDER)
        dropped = intake.post(hook, b'{"quantity": 1}')
    assert (given.status_code, given.json()["total"]) == (200, 6)
    assert (dropped.status_code, dropped.content) == (204, b"")


def test_a_failing_flow_is_answered_at_once_with_its_code_and_no_insides(
    intake: Intake, organization: Organization, destination: Destination
) -> None:
    destination.answers = lambda _: (400, {"secret": "inside"})
    usual = deploy(organization, to(destination))
    other = deploy(organization, to(destination), errors={"delivery-failed": 504, "invalid-payload": 400})
    quiet = deploy(organization, explain=False)
    with worker(organization):
        began = time.monotonic()
        invalid = intake.post(usual, b"{")
        undelivered = intake.post(usual, ORDER)
        overridden = [intake.post(other, body).status_code for body in (b"{", ORDER)]
        unexplained = intake.post(quiet, b"{").json()
        assert time.monotonic() - began < 20, "a limit of 30 s was waited for"
    assert invalid.status_code == 422
    problem = invalid.json()
    assert problem["code"] == "invalid-payload"
    assert problem["title"]
    assert "line 1" in problem["detail"]
    assert problem["id"] == invalid.headers["bridge-message-id"]
    assert f"/bridge/messages/{problem['id']}?token=" in problem["status_url"]
    assert invalid.headers["content-type"] == "application/problem+json"
    assert undelivered.status_code == 502
    assert undelivered.json()["code"] == "delivery-failed"
    for inside in ("secret", "inside", "deliver'", "http_request", "answered"):
        assert inside not in undelivered.text
    assert overridden == [400, 504]
    assert "detail" not in unexplained


def test_the_limit_ends_the_wait_with_202_and_a_repetition_gets_the_result(
    intake: Intake, organization: Organization
) -> None:
    hook = deploy(organization, PRICE, limit_s=0.6, status=201)
    began = time.monotonic()
    late = intake.post(hook, ORDER, message_id="once")
    assert is_accepted(late)
    assert 0.5 < time.monotonic() - began < 10
    with worker(organization):
        eventually(lambda: state(hook, late.json()["id"]) == "done")
    again = intake.post(hook, ORDER, message_id="once")
    assert (again.status_code, again.json()["total"]) == (201, 6)
    assert again.headers["idempotent-replayed"] == "true"
    assert messages(hook) == [late.json()["id"]]


def test_copies_that_come_while_the_first_is_held_get_the_same_answer(
    intake: Intake, organization: Organization, senders: ThreadPoolExecutor
) -> None:
    hook = deploy(organization, PRICE, headers={"X-Id": "{{ message.id }}"})
    headers = hook.signed(ORDER)
    held = [senders.submit(intake.post, hook, ORDER, headers=headers) for _ in range(8)]
    eventually(lambda: len(messages(hook)) == 1)
    with worker(organization):
        answers = Counter((each.result().status_code, each.result().headers["x-id"]) for each in held)
    assert answers == {(200, messages(hook)[0]): 8}


def test_a_caller_says_how_long_it_prefers_to_wait(intake: Intake, organization: Organization) -> None:
    hook = deploy(organization, PRICE)
    began = time.monotonic()
    for preference in ("respond-async", "wait=0", 'foo; bar, wait="0"'):
        assert is_accepted(intake.post(hook, ORDER, headers={**hook.signed(ORDER), "prefer": preference}))
    assert time.monotonic() - began < 15


def test_a_caller_is_held_through_a_retry_or_let_go_at_it_as_the_trigger_says(
    intake: Intake, organization: Organization, destination: Destination
) -> None:
    destination.answers = lambda n: (503, {}) if n in (1, 2) else (200, {"receipt": n})
    hook = deploy(organization, to(destination, response="body"), on_retry="accept")
    with worker(organization):
        began = time.monotonic()
        released = intake.post(hook, ORDER)
        assert is_accepted(released)
        assert time.monotonic() - began < 20
    holding = deploy(organization, to(destination, response="body"))
    with worker(organization):
        held = intake.post(holding, ORDER)
    assert (held.status_code, held.json()) == (200, {"receipt": len(destination.keys)})


def test_200_are_held_at_once_and_whoever_comes_beyond_is_accepted(
    organization: Organization, tmp_path: Path
) -> None:
    hook = deploy(organization, PRICE)
    # An organization has nine tenths of either.
    intake = run_intake(tmp_path, BRIDGE_INTAKE_MAX_HELD="222", BRIDGE_INTAKE_MAX_REQUESTS="150")
    try:
        with ThreadPoolExecutor(200) as pool:
            held: list[Future[httpx.Response]] = []
            for so_many in (100, 200):  # what is held is not under way
                held += [pool.submit(intake.post, hook, ORDER) for _ in range(100)]
                eventually(lambda so_many=so_many: len(messages(hook)) == so_many, 60)
            with httpx.Client(base_url=intake.url, timeout=20) as client:
                for _ in range(3):
                    beyond = client.post(hook.path, content=ORDER, headers=hook.signed(ORDER))
                    assert is_accepted(beyond)
            assert not any(each.done() for each in held)
            with worker(organization):
                answers = [each.result() for each in held]
        assert Counter(answer.status_code for answer in answers) == {200: 200}
        assert len({answer.headers["bridge-message-id"] for answer in answers}) == 200
    finally:
        end(intake)


def test_an_organization_that_holds_all_it_may_leaves_room_for_the_others(
    make_organization: Callable[[], Organization], tmp_path: Path
) -> None:
    busy, other = deploy(make_organization(), PRICE), deploy(make_organization(), PRICE)
    intake = run_intake(tmp_path, BRIDGE_INTAKE_MAX_HELD="20")
    try:
        with ThreadPoolExecutor(40) as pool:
            flood = [pool.submit(intake.post, busy, ORDER) for _ in range(30)]
            eventually(lambda: len(messages(busy)) == 30)
            eventually(lambda: sum(each.done() for each in flood) == 12)
            assert all(is_accepted(each.result()) for each in flood if each.done())
            quiet = pool.submit(intake.post, other, ORDER)
            eventually(lambda: len(messages(other)) == 1)
            with worker(other.organization):
                assert quiet.result().status_code == 200
            with worker(busy.organization):
                assert Counter(each.result().status_code for each in flood) == {202: 12, 200: 18}
            with worker(busy.organization):
                assert intake.post(busy, ORDER).status_code == 200, "the room is not given back"
    finally:
        end(intake)


def test_a_stopping_intake_lets_all_go_at_once(
    organization: Organization, tmp_path: Path, senders: ThreadPoolExecutor
) -> None:
    hook = deploy(organization, PRICE)
    intake = run_intake(tmp_path)
    held = [senders.submit(intake.post, hook, ORDER) for _ in range(10)]
    eventually(lambda: len(messages(hook)) == 10)
    time.sleep(0.2)
    began = time.monotonic()
    intake.process.send_signal(signal.SIGTERM)
    assert all(is_accepted(each.result()) for each in held)
    assert intake.process.wait(20) in (0, -signal.SIGTERM)
    assert time.monotonic() - began < 15, "the drain's 20 s or the limit's 30 s were waited for"
    end(intake)


def test_who_hangs_up_makes_room_for_the_next(organization: Organization, tmp_path: Path) -> None:
    hook = deploy(organization, PRICE)
    intake = run_intake(tmp_path, BRIDGE_INTAKE_MAX_HELD="1")
    try:
        with pytest.raises(httpx.ReadTimeout):
            intake.post(hook, ORDER, timeout=1.0)
        answers: list[httpx.Response] = []
        waiting = threading.Thread(target=lambda: answers.append(intake.post(hook, ORDER)))
        waiting.start()
        eventually(lambda: len(messages(hook)) == 2)
        with worker(organization):
            waiting.join(30)
        assert [answer.status_code for answer in answers] == [200]
    finally:
        end(intake)


def test_an_answer_whose_notification_is_lost_is_found(
    intake: Intake, organization: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = deploy(organization, PRICE)
    monkeypatch.setattr(Notices, "send", lambda *_: None)
    with worker(organization):
        assert intake.post(hook, ORDER).json()["total"] == 6


def test_a_message_whose_worker_is_killed_while_its_caller_is_held_is_delivered_all_the_same(
    intake: Intake, organization: Organization, destination: Destination, senders: ThreadPoolExecutor
) -> None:
    hook = deploy(organization, to(destination), limit_s=4)
    destination.opened.clear()
    process = start_worker_process(organization)
    held = senders.submit(intake.post, hook, ORDER, message_id="m")
    try:
        eventually(lambda: len(destination.keys) == 1, 60)
    finally:
        process.kill()
        process.wait()
    ended = held.result()
    assert is_accepted(ended)
    destination.opened.set()
    with database.relay() as connection:  # as the sweep does, a lease later
        connection.execute("UPDATE bridge.messages SET lease_until = now() WHERE flow = %s", (hook.flow,))
        connection.execute(
            "UPDATE bridge.batches SET active_at = now() - interval '1 h' WHERE flow = %s", (hook.flow,)
        )
    from continuitybridge.inbox.sweep import sweep

    sweep(started_idle_s=1)
    with worker(organization):
        eventually(lambda: state(hook, ended.json()["id"]) == "done")
    assert len(set(destination.keys)) == 1
    assert intake.post(hook, ORDER, message_id="m").json() == {"receipt": len(destination.keys)}


def test_every_process_of_an_intake_answers_those_that_it_holds(
    organization: Organization, tmp_path: Path, senders: ThreadPoolExecutor
) -> None:
    hook = deploy(organization, PRICE)
    intake = run_intake(tmp_path, "--workers", "2")
    try:
        held = [senders.submit(intake.post, hook, ORDER, fresh=True) for _ in range(16)]
        with worker(organization):
            answers: Any = [each.result() for each in held]
        assert Counter(answer.status_code for answer in answers) == {200: 16}
    finally:
        end(intake)


def test_a_caller_waits_with_the_parts_of_a_message_but_neither_for_people_nor_for_what_is_too_late(
    intake: Intake, organization: Organization
) -> None:
    together = deploy(
        organization,
        {"id": "each", "type": "split", "config": {"items": ".lines"}},
        {"id": "price", "type": "jq", "config": {"program": ".total = .quantity * 3"}},
        {"id": "all", "type": "aggregate", "config": {}},
        body={"total": "{{ body | map(attribute='total') | sum }}"},
    )
    late = deploy(organization, {"id": "later", "type": "delay", "config": {"for_s": 3600}})
    asked = deploy(organization, {"id": "ask", "type": "approval", "next": {"approved": "end", "rejected": "end"}})
    with worker(organization):
        began = time.monotonic()
        answer = intake.post(together, b'{"lines": [{"quantity": 1}, {"quantity": 4}]}')
        assert is_accepted(intake.post(late, ORDER))
        assert is_accepted(intake.post(asked, ORDER))
        assert time.monotonic() - began < 25, "the limit of 30 s was waited for"
    assert (answer.status_code, answer.json()) == (200, {"total": 15}), answer.text


@pytest.fixture
def leaving(tmp_path: Path) -> Iterator[Intake]:
    """An intake that leaves all messages to stream workers."""
    running = run_intake(tmp_path, BRIDGE_INTAKE_LANES="0")
    yield running
    end(running)


def test_stream_workers_answer_at_once_and_take_over_from_one_that_is_killed(
    leaving: Intake, organization: Organization, destination: Destination, senders: ThreadPoolExecutor
) -> None:
    intake = leaving
    hook = deploy(organization, PRICE, to(destination), mode="stream", status=201, errors={"invalid-payload": 400})
    with stream_worker() as first:
        answer = intake.post(hook, ORDER)
        assert (answer.status_code, answer.json()) == (201, {"receipt": 1}), answer.text
        assert intake.post(hook, b"{").status_code == 400
        destination.opened.clear()
        held = senders.submit(intake.post, hook, ORDER)
        eventually(lambda: len(destination.keys) == 2)
        first.kill()
        first.wait()
    destination.opened.set()
    with stream_worker():
        assert held.result().status_code == 201
    assert destination.keys[1:] == [destination.keys[1]] * 2
