"""Whoever settles or buries a message that a caller waits for leaves the answer, and says so after the commit."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from inbox_world import Deployed, done, failed, handed_over

from continuitybridge import database
from continuitybridge.database.connections import role_url
from continuitybridge.engine.message import Message, Output, Reply
from continuitybridge.errors import Verdict
from continuitybridge.inbox import holds, replay, replies, sweep, units
from continuitybridge.inbox.claim import Claimed, claim
from continuitybridge.inbox.replies import notices as notified
from continuitybridge.inbox.settle import RetryPolicy, settle, settle_many, skip
from continuitybridge.inbox.triage import discard

SOON = RetryPolicy(max_attempts=3, base_s=0.001, max_s=0.001)


class Waiting(Deployed):
    """A flow whose callers wait, and what they are told."""

    def send(self, *, limit_s: float = 60.0, **changes: Any) -> str:
        until = datetime.now(UTC) + timedelta(seconds=limit_s)
        [message_id] = self.accept(1, reply_until=until, **changes)
        return message_id

    def claimed(self, n: int = 1) -> list[Claimed]:
        units = claim(self.dispatch(), "w", 60, 100, keys=self.keyring)
        assert len(units) == n
        return units

    def answers(self, message_id: str) -> list[tuple[Any, ...]]:
        """Status, code, headers, body, explanation of every answer that is ready."""
        with database.relay() as connection:
            rows = connection.execute(
                "SELECT status, code, content FROM bridge.replies WHERE organization_id = %s AND message_id = %s"
                " AND ready ORDER BY replays DESC, written_at",
                (self.organization_id, message_id),
            ).fetchall()
        found = []
        for status, code, content in rows:
            opened = replies.open_content(self.keyring, self.organization_id, message_id, content)
            found.append((status, code, opened.headers, opened.body, opened.explanation))
        return found


@pytest.fixture
def flow(organization: Any, keyring: Any) -> Waiting:
    return Waiting(organization, keyring, "answers")


@pytest.fixture
def told() -> Iterator[Any]:
    """What is told on the channel, from now on."""
    with psycopg.connect(role_url("relay"), autocommit=True) as connection:
        connection.execute(f"LISTEN {replies.CHANNEL}")

        def so_far() -> list[notified.Notice]:
            connection.execute("SELECT 1")
            found = connection.notifies(timeout=0.2)
            return [notice for each in found for notice in notified.read(each.payload)]

        yield so_far


def answering(unit: Claimed, body: bytes = b'{"ok": true}', **reply: Any) -> Any:
    outcome = done(unit)
    outcome.reply = Reply(201, {"x-a": "1"}, body, unit.message.id)
    return outcome


def test_a_message_that_is_done_leaves_its_answer_encrypted_and_says_so(flow: Waiting, told: Any) -> None:
    message_id = flow.send()
    [unit] = flow.claimed()
    assert settle(unit, answering(unit), keys=flow.keyring) == "done"
    assert flow.answers(message_id) == [(201, None, {"x-a": "1"}, b'{"ok": true}', {})]
    [notice] = told()
    assert (notice.organization_id, notice.message_id, notice.known) == (flow.organization_id, message_id, True)
    opened = replies.open_content(flow.keyring, flow.organization_id, message_id, notice.content)
    assert (notice.status, opened.body) == (201, b'{"ok": true}')
    with database.relay() as connection:
        [(content,)] = connection.execute(
            "SELECT content FROM bridge.replies WHERE message_id = %s", (message_id,)
        ).fetchall()
    assert b"ok" not in content


def test_nothing_is_written_for_messages_that_nobody_waits_for(flow: Waiting, told: Any) -> None:
    [message_id] = flow.accept(1)
    [unit] = flow.claimed()
    settle(unit, answering(unit), keys=flow.keyring)
    assert flow.answers(message_id) == []
    assert told() == []


def test_many_answers_are_told_by_their_ids_in_few_notifications(flow: Waiting, told: Any) -> None:
    ids = {flow.send() for _ in range(150)}
    units = []
    batch = flow.dispatch()
    while more := claim(batch, "w", 60, 100, keys=flow.keyring):
        units += more
    settle_many([(unit, answering(unit, b"x" * 200)) for unit in units], keys=flow.keyring)
    found = told()
    assert {notice.message_id for notice in found} == ids
    assert not any(notice.known for notice in found)


def test_the_first_of_several_parts_is_the_answer_whichever_ends_last(flow: Waiting, told: Any) -> None:
    for order in ((0, 1), (1, 0)):
        message_id = flow.send()
        batch = flow.dispatch()
        [unit] = claim(batch, "w", 60, 10, keys=flow.keyring)
        children = [f"{message_id}.1", f"{message_id}.2"]
        settle(unit, handed_over(unit, "deliver", children=children), keys=flow.keyring, plan=flow.plan)
        parts = sorted(claim(batch, "w", 60, 10, keys=flow.keyring), key=lambda part: part.message.id)
        for n in order:
            assert flow.answers(message_id) == []
            settle(parts[n], answering(parts[n], b"%d" % n), keys=flow.keyring, plan=flow.plan)
        assert [answer[3] for answer in flow.answers(message_id)] == [b"0"]
    assert [notice.known for notice in told()] == [False, False]


def test_a_part_that_gave_nothing_leaves_the_answer_to_those_that_did(flow: Waiting) -> None:
    message_id = flow.send()
    batch = flow.dispatch()
    [unit] = claim(batch, "w", 60, 10, keys=flow.keyring)
    outcome = handed_over(unit, "deliver")
    outcome.outputs.append(Output(Message(f"{message_id}.2", {}), "archive"))
    outcome.reply = Reply(200, {}, b"whole", f"{message_id}.2")
    settle(unit, outcome, keys=flow.keyring, plan=flow.plan)
    [part] = claim(batch, "w", 60, 10, keys=flow.keyring)
    filtered = done(part)
    filtered.outputs.clear()
    filtered.reply = Reply(204)
    settle(part, filtered, keys=flow.keyring, plan=flow.plan)
    assert flow.answers(message_id) == [(200, None, {}, b"whole", {})]


def test_a_failure_is_answered_at_once_though_other_parts_are_under_way(flow: Waiting, told: Any) -> None:
    message_id = flow.send()
    [unit] = flow.claimed()
    other = Output(Message(f"{message_id}.2", {}), "archive", "archive")
    outcome = failed(unit, child=f"{message_id}.1", outputs=[other])
    settle(unit, outcome, keys=flow.keyring, plan=flow.plan)
    assert flow.answers(message_id) == [(None, "delivery-failed", {}, b"", {})]
    [notice] = told()
    assert (notice.known, notice.code) == (True, "delivery-failed")


def test_the_answer_says_what_is_wrong_with_the_callers_content_and_of_nothing_else(flow: Waiting) -> None:
    message_id = flow.send()
    [unit] = flow.claimed()
    outcome = failed(unit, violations=[{"path": "/n", "message": "is not a text"}])
    outcome.failures[0].code, outcome.failures[0].detail = "validation-failed", "/n: is not a text"
    settle(unit, outcome, keys=flow.keyring, plan=flow.plan)
    [(_, code, _, _, explanation)] = flow.answers(message_id)
    assert code == "validation-failed"
    assert explanation == {
        "detail": "/n: is not a text",
        "violations": [{"path": "/n", "message": "is not a text"}],
    }


def test_what_is_tried_again_within_the_limit_is_waited_for_and_what_is_not_lets_the_caller_go(
    flow: Waiting, told: Any
) -> None:
    soon = flow.send()
    [unit] = flow.claimed()
    settle(unit, failed(unit, verdict=Verdict.TRANSIENT), keys=flow.keyring, plan=flow.plan, policy=SOON)
    assert told() == []
    late = flow.send(limit_s=5)
    [unit] = [each for each in claim(flow.dispatch(), "w", 60, 9, keys=flow.keyring) if each.message_id == late]
    policy = RetryPolicy(max_attempts=3, base_s=60, max_s=60)
    settle(unit, failed(unit, verdict=Verdict.TRANSIENT), keys=flow.keyring, plan=flow.plan, policy=policy)
    [notice] = told()
    assert (notice.message_id, notice.status, notice.content) == (late, 202, None)
    assert flow.answers(soon) == flow.answers(late) == []


def test_on_retry_accept_lets_the_caller_go_at_the_first_failure(flow: Waiting, told: Any) -> None:
    message_id = flow.send()
    [unit] = flow.claimed()
    flow.plan.nodes["in"].config["result"] = {"on_retry": "accept"}
    settle(unit, failed(unit, verdict=Verdict.TRANSIENT), keys=flow.keyring, plan=flow.plan, policy=SOON)
    assert [notice.message_id for notice in told()] == [message_id]


def test_who_is_skipped_is_told_so(flow: Waiting, told: Any) -> None:
    message_id = flow.send()
    skip(flow.dispatch(), by="anna")
    assert flow.answers(message_id) == [(None, "skipped", {}, b"", {})]
    assert [notice.message_id for notice in told()] == [message_id]


def test_who_is_cancelled_is_told_so(flow: Waiting, told: Any) -> None:
    message_id = flow.send()
    holds.cancel(flow.organization_id, flow.environment, flow.flow, by="anna")
    assert flow.answers(message_id) == [(None, "skipped", {}, b"", {})]
    assert [notice.message_id for notice in told()] == [message_id]


def test_who_is_buried_or_out_of_attempts_is_answered_with_the_reason(flow: Waiting, told: Any) -> None:
    buried, expired = flow.send(), flow.send()
    unit = next(unit for unit in flow.claimed(2) if unit.message_id == buried)
    with database.relay() as connection:
        units.bury(connection, flow.organization_id, buried, None, unit.owner, unit.epoch, "decryption-failed")
        connection.execute(
            "UPDATE bridge.messages SET attempts = 100, lease_until = now() WHERE message_id = %s", (expired,)
        )
    assert flow.answers(buried) == [(None, "decryption-failed", {}, b"", {})]
    sweep.sweep()
    assert flow.answers(expired) == [(None, "lease-expired", {}, b"", {})]
    assert [notice.message_id for notice in told()] == [expired]


def test_a_part_whose_lease_ran_out_for_good_is_answered_when_the_message_is_dead(flow: Waiting) -> None:
    message_id = flow.send()
    batch = flow.dispatch()
    [unit] = claim(batch, "w", 60, 10, keys=flow.keyring)
    settle(unit, handed_over(unit, "deliver", "archive"), keys=flow.keyring, plan=flow.plan)
    first, second = claim(batch, "w", 60, 10, keys=flow.keyring)
    with database.relay() as connection:
        connection.execute(
            "UPDATE bridge.hand_overs SET attempts = 100, lease_until = now() WHERE hand_over_id = %s",
            (first.hand_over_id,),
        )
    sweep.sweep()
    settle(second, answering(second), keys=flow.keyring, plan=flow.plan)
    assert [answer[1] for answer in flow.answers(message_id)] == ["lease-expired"]


def test_a_replay_gives_the_answer_of_its_own(flow: Waiting) -> None:
    message_id = flow.send()
    [unit] = flow.claimed()
    settle(unit, failed(unit), keys=flow.keyring, plan=flow.plan)
    replay.replay(flow.organization_id, [message_id], by="anna")
    [unit] = flow.claimed()
    settle(unit, answering(unit), keys=flow.keyring, plan=flow.plan)
    assert [answer[:2] for answer in flow.answers(message_id)] == [(201, None), (None, "delivery-failed")]


def test_a_dead_letter_that_is_discarded_keeps_the_answer_it_had(flow: Waiting) -> None:
    message_id = flow.send()
    [unit] = flow.claimed()
    settle(unit, failed(unit), keys=flow.keyring, plan=flow.plan)
    assert discard(flow.organization_id, [message_id], by="anna") == [message_id]
    assert [answer[1] for answer in flow.answers(message_id)] == ["delivery-failed"]


def test_an_answer_that_the_flow_does_not_have_is_that_the_message_was_accepted(flow: Waiting) -> None:
    message_id = flow.send()
    [unit] = flow.claimed()
    settle(unit, done(unit), keys=flow.keyring)
    assert flow.answers(message_id) == [(202, None, {}, b"", {})]


def test_notifications_of_others_and_garbage_are_passed_over() -> None:
    organization = UUID(int=7)
    lines = ["nonsense", f"{organization} a b", "", f"{organization} m1", f"{organization} m2 - skipped -"]
    found = list(notified.read("\n".join([*lines, f"{organization} m3 200 - !"])))
    assert [(notice.message_id, notice.known) for notice in found] == [("m1", False), ("m2", True)]
