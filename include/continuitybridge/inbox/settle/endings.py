"""What an outcome makes of a unit of work: worked out before the transaction that writes it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from uuid import UUID

import orjson
from uuid6 import uuid7

from continuitybridge.engine.message import Failure, Message, Outcome, Output
from continuitybridge.errors import Unavailable, Verdict
from continuitybridge.flows.plan import Plan
from continuitybridge.inbox import capture, payloads
from continuitybridge.inbox.claim import Claimed
from continuitybridge.inbox.replies import Prepared
from continuitybridge.inbox.replies import rows as replies
from continuitybridge.inbox.retry import RetryPolicy, turned_back_by
from continuitybridge.inbox.waits import parking
from continuitybridge.inbox.waits.parking import Parked, Result
from continuitybridge.vault.keyring import Cipher

State = Literal["done", "handed_over", "accepted", "dead", "available"]


@dataclass(frozen=True, slots=True)
class HandOver:
    """A row of `hand_overs` to be."""

    hand_over_id: UUID
    child_id: str
    stage: str
    node_id: str
    payload: bytes
    state: Literal["available", "waiting", "dead"] = "available"
    attempts: int = 0
    wait_s: float = 0.0
    in_batch: bool = True
    waits_for: str | None = None
    until: float | None = None
    """When it is available, in seconds since the epoch, where that is not `wait_s` from now."""
    resume: str | None = None
    """JSON text of how it goes on after a wait."""
    parked: Parked | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """What is to be written for one unit. `fate`: `closed` when it has ended, and what is left of it stands in
    `hand_overs`; `retry` or `dead` for the whole unit as it is. `trace` is JSON; `failures` are rows.
    `waits_for` is the destination that turned the whole unit back: then the try does not count. For a caller
    who waits for the message's result: `reply` is what the unit gave, `refusal` why it failed for good;
    `releases` says that he is let go when it is tried again. `keys` are the search keys found: they are added to
    those that the message has."""

    claimed: Claimed
    fate: Literal["closed", "retry", "dead"]
    trace: bytes
    hand_overs: Sequence[HandOver] = ()
    failures: Sequence[tuple[Any, ...]] = ()
    wait_s: float = 0.0
    in_batch: bool = False
    waits_for: str | None = None
    reply: Prepared | None = None
    refusal: Prepared | None = None
    releases: bool = False
    keys: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[Result] = ()
    """What left the flow, of a message that another flow called."""

    @property
    def is_plain(self) -> bool:
        """A whole message that is done: the common case, which takes one statement whatever the number."""
        return self.fate == "closed" and not (self.hand_overs or self.results or self.claimed.hand_over_id)

    @property
    def tried_again(self) -> bool:
        return self.fate == "retry" or any(
            each.state == "available" and (each.attempts or each.waits_for) for each in self.hand_overs
        )

    @property
    def longest_wait_s(self) -> float:
        """Before so many seconds the message cannot end; infinite where a person decides. 0: nothing is known."""
        return max([self.wait_s, *(_waits_s(each) for each in self.hand_overs)])


def _waits_s(hand_over: HandOver) -> float:
    if hand_over.state == "available":
        return hand_over.wait_s if hand_over.until is None else max(0.0, hand_over.until - time.time())
    parked = hand_over.parked
    return float("inf") if parked is not None and parked.wait.kind == "person" else 0.0


def ending_of(
    claimed: Claimed,
    outcome: Outcome,
    keys: Cipher,
    plan: Plan | None,
    policy: RetryPolicy,
    retry_in_batch: bool = False,
) -> Ending:
    """What `outcome` makes of `claimed`; the rules stand in `settle.settle_many`."""
    ending = _ending_of(claimed, outcome, keys, plan, policy, retry_in_batch)
    return replace(ending, keys=outcome.keys) if outcome.keys else ending


def _ending_of(
    claimed: Claimed,
    outcome: Outcome,
    keys: Cipher,
    plan: Plan | None,
    policy: RetryPolicy,
    retry_in_batch: bool,
) -> Ending:
    trace = orjson.dumps(outcome.trace)
    hand_overs: list[HandOver] = []
    failures = list(outcome.failures)
    results: list[Result] = []
    for output in outcome.outputs:
        if output.stage is None and not claimed.message.called:
            continue
        try:
            if output.stage is None:
                results.append(_result(claimed, output.message, keys))
            else:
                hand_overs.append(_of_output(claimed, output, output.stage, keys, plan))
        except (TypeError, ValueError, RecursionError) as error:
            failures.append(_not_data(output.message, output.node_id, error))
        except Unavailable as error:
            failures.append(_not_stored(output.message, output.node_id, error))
    reply: Prepared | None = None
    if outcome.reply is not None:
        reply = replies.prepared(keys, claimed.organization_id, claimed.message_id, outcome.reply)
    if not failures:
        return Ending(claimed, "closed", trace, hand_overs, reply=reply, results=results)

    turned_back = [turned_back_by(failure) for failure in failures]
    releases = replies.releases_on_retry(plan, claimed.message)
    if turned_back[0] is not None and _stays(claimed, outcome, failures):
        wait_s = policy.turned_back_s(failures)
        return Ending(claimed, "retry", b"[]", (), (), wait_s, retry_in_batch, turned_back[0], releases=releases)
    resumed = [_resumed(claimed, failure, plan, keys) for failure in failures]
    retrying = [
        back is not None or (failure.verdict is Verdict.TRANSIENT and claimed.attempts < policy.max_attempts)
        for failure, back in zip(failures, turned_back, strict=True)
    ]
    whole = any(each is None for each in resumed)
    if whole:
        # One of the failures cannot be resumed at its node: the unit is one piece, and its gravest failure counts.
        retrying = [all(retrying)] * len(failures)
    records = [
        _failure_record(claimed, failure, not again, keys, plan)
        for failure, again, back in zip(failures, retrying, turned_back, strict=True)
        if back is None or not again
    ]
    final = [failure for failure, again in zip(failures, retrying, strict=True) if not again]
    refusal = replies.failed(keys, claimed.organization_id, claimed.message_id, final)
    if whole:
        if not retrying[0]:
            return Ending(claimed, "dead", trace, (), records, refusal=refusal)
        waits_for = turned_back[0] if all(turned_back) else None
        wait_s = policy.turned_back_s(failures) if waits_for else policy.wait_s(claimed.attempts, failures)
        return Ending(claimed, "retry", trace, (), records, wait_s, retry_in_batch, waits_for, releases=releases)
    for failure, again, back, place in zip(failures, retrying, turned_back, resumed, strict=True):
        if place is None:
            continue
        wait_s = policy.turned_back_s([failure]) if back else policy.wait_s(claimed.attempts, [failure])
        hand_overs.append(
            HandOver(
                *place,
                state="available" if again else "dead",
                attempts=claimed.attempts - 1 if back else claimed.attempts,
                wait_s=wait_s if again else 0.0,
                in_batch=retry_in_batch and again,
                waits_for=back,
            )
        )
    return Ending(
        *(claimed, "closed", trace, hand_overs, records),
        reply=reply,
        refusal=refusal,
        releases=releases,
        results=results,
    )


def _stays(claimed: Claimed, outcome: Outcome, failures: Sequence[Failure]) -> bool:
    """Whether a hand-over failed where it began and left nothing: it can stay the row that it is."""
    return (
        claimed.hand_over_id is not None
        and not outcome.outputs
        and len(failures) == 1
        and failures[0].node_id == claimed.entry
        and failures[0].message_id == claimed.message.id
    )


def _hand_over(claimed: Claimed, message: Message, stage: str, node_id: str, keys: Cipher) -> HandOver:
    hand_over_id = uuid7()
    place = payloads.hand_over_place(claimed.message_id, hand_over_id)
    payload = payloads.encrypt_message(keys, claimed.organization_id, place, message)
    return HandOver(hand_over_id, message.id, stage, node_id, payload)


def _of_output(claimed: Claimed, output: Output, stage: str, keys: Cipher, plan: Plan | None) -> HandOver:
    made = _hand_over(claimed, output.message, stage, output.node_id, keys)
    wait = output.wait
    if wait is None:
        return made
    if wait.kind == "time":
        # All there is to it: it leaves its batch and is claimed when its time has come.
        due = orjson.dumps({"how": "due"}).decode()
        return replace(made, wait_s=wait.within_s or 0.0, until=wait.until, in_batch=False, resume=due)
    organization_id, message_id = claimed.organization_id, claimed.message_id
    waiting = parking.parked(
        keys, organization_id, message_id, made.hand_over_id, output.message, output.node_id, wait, plan
    )
    return replace(made, state="waiting", parked=waiting)


def _result(claimed: Claimed, message: Message, keys: Cipher) -> Result:
    return parking.result(keys, claimed.organization_id, claimed.message_id, uuid7(), message)


def _resumed(
    claimed: Claimed, failure: Failure, plan: Plan | None, keys: Cipher
) -> tuple[UUID, str, str, str, bytes] | None:
    """The hand-over that goes on at the failed node, if that can be told."""
    node = plan.nodes.get(failure.node_id) if plan is not None else None
    if node is None or failure.message is None:
        return None
    try:
        made = _hand_over(claimed, failure.message, node.stage, node.id, keys)
    except (TypeError, ValueError, RecursionError, Unavailable):
        return None
    return made.hand_over_id, made.child_id, made.stage, made.node_id, made.payload


def _not_data(message: Message, node_id: str, error: Exception) -> Failure:
    return Failure(
        message.id,
        node_id,
        "",
        "invalid-payload",
        f"what goes to node {node_id!r} is neither bytes nor JSON data: {error}"[: capture.TEXT_LIMIT],
        Verdict.TERMINAL,
    )


def _not_stored(message: Message, node_id: str, error: Unavailable) -> Failure:
    """Nothing that could be resumed: the unit is tried again as a whole."""
    detail = f"what goes to node {node_id!r} is large and could not be stored: {error.detail}"
    return Failure(message.id, node_id, "", error.code, detail, Verdict.TRANSIENT)


def _failure_record(
    claimed: Claimed, failure: Failure, final: bool, keys: Cipher, plan: Plan | None
) -> tuple[Any, ...]:
    failure_id = uuid7()
    context = capture.encrypt_context(
        keys,
        claimed.organization_id,
        failure_id,
        failure,
        snapshot=final,
        flow_version=claimed.version,
        owner=claimed.owner,
        plan=plan,
    )
    return (
        claimed.organization_id,
        failure_id,
        claimed.message_id,
        failure.message_id,
        claimed.environment,
        claimed.flow,
        claimed.version,
        failure.node_id or None,
        failure.node_type or None,
        failure.code,
        str(failure.verdict),
        final,
        claimed.attempts,
        context,
    )
