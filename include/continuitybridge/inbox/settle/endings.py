"""What an outcome makes of a unit of work: worked out before the transaction that writes it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import orjson
from uuid6 import uuid7

from continuitybridge.engine.message import Failure, Message, Outcome
from continuitybridge.errors import Verdict
from continuitybridge.flows.plan import Plan
from continuitybridge.inbox import capture, payloads
from continuitybridge.inbox.claim import Claimed
from continuitybridge.settings import get_settings
from continuitybridge.vault.keyring import Cipher

State = Literal["done", "handed_over", "accepted", "dead", "available"]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when a transient failure is tried again. The wait doubles from `base_s` up to `max_s`, and a
    random half of it is taken off, so that what failed together does not come back together. A destination that
    says when to come back (`retry_after_s` in the failure's facts) is believed, up to `max_s`."""

    max_attempts: int
    base_s: float
    max_s: float

    @classmethod
    def from_settings(cls) -> RetryPolicy:
        settings = get_settings()
        return cls(settings.max_attempts, settings.retry_base_s, settings.retry_max_s)

    def wait_s(self, attempts: int, failures: Sequence[Failure]) -> float:
        """Seconds until the try after `attempts` tries."""
        wait = min(self.max_s, self.base_s * 2.0 ** min(attempts - 1, 60))
        wait *= random.uniform(0.5, 1.0)  # noqa: S311  (spreads load, protects nothing)
        asked = [failure.facts.get("retry_after_s") for failure in failures]
        return max([wait, *(min(self.max_s, float(s)) for s in asked if isinstance(s, int | float) and s > 0)])


@dataclass(frozen=True, slots=True)
class HandOver:
    """A row of `hand_overs` to be."""

    hand_over_id: UUID
    child_id: str
    stage: str
    node_id: str
    payload: bytes
    state: Literal["available", "dead"] = "available"
    attempts: int = 0
    wait_s: float = 0.0
    in_batch: bool = True


@dataclass(frozen=True, slots=True)
class Ending:
    """What is to be written for one unit. `fate`: `closed` when it has ended, and what is left of it stands in
    `hand_overs`; `retry` or `dead` for the whole unit as it is. `trace` is JSON text; `failures` are rows."""

    claimed: Claimed
    fate: Literal["closed", "retry", "dead"]
    trace: str
    hand_overs: Sequence[HandOver] = ()
    failures: Sequence[tuple[Any, ...]] = ()
    wait_s: float = 0.0
    in_batch: bool = False

    @property
    def is_plain(self) -> bool:
        """A whole message that is done: the common case, which takes one statement whatever the number."""
        return self.fate == "closed" and not self.hand_overs and self.claimed.hand_over_id is None

    @property
    def tried_again(self) -> bool:
        return self.fate == "retry" or any(each.state == "available" and each.attempts for each in self.hand_overs)


def ending_of(
    claimed: Claimed,
    outcome: Outcome,
    keys: Cipher,
    plan: Plan | None,
    policy: RetryPolicy,
    retry_in_batch: bool = False,
) -> Ending:
    """What `outcome` makes of `claimed`; the rules stand in `settle.settle_many`."""
    trace = orjson.dumps(outcome.trace).decode()
    hand_overs: list[HandOver] = []
    failures = list(outcome.failures)
    for output in outcome.outputs:
        if output.stage is None:
            continue
        try:
            hand_overs.append(_hand_over(claimed, output.message, output.stage, output.node_id, keys))
        except (TypeError, ValueError, RecursionError) as error:
            failures.append(_not_data(output.message, output.node_id, error))
    if not failures:
        return Ending(claimed, "closed", trace, hand_overs)

    resumed = [_resumed(claimed, failure, plan, keys) for failure in failures]
    retrying = [
        failure.verdict is Verdict.TRANSIENT and claimed.attempts < policy.max_attempts for failure in failures
    ]
    whole = any(each is None for each in resumed)
    if whole:
        # One of the failures cannot be resumed at its node: the unit is one piece, and its gravest failure counts.
        retrying = [all(retrying)] * len(failures)
    records = [
        _failure_record(claimed, failure, not again, keys, plan)
        for failure, again in zip(failures, retrying, strict=True)
    ]
    if whole:
        wait_s = policy.wait_s(claimed.attempts, failures) if retrying[0] else 0.0
        fate: Literal["retry", "dead"] = "retry" if retrying[0] else "dead"
        return Ending(claimed, fate, trace, (), records, wait_s, retry_in_batch)
    for failure, again, place in zip(failures, retrying, resumed, strict=True):
        if place is not None:
            hand_overs.append(
                HandOver(
                    *place,
                    state="available" if again else "dead",
                    attempts=claimed.attempts,
                    wait_s=policy.wait_s(claimed.attempts, [failure]) if again else 0.0,
                    in_batch=retry_in_batch and again,
                )
            )
    return Ending(claimed, "closed", trace, hand_overs, records)


def _hand_over(claimed: Claimed, message: Message, stage: str, node_id: str, keys: Cipher) -> HandOver:
    hand_over_id = uuid7()
    place = payloads.hand_over_place(claimed.message_id, hand_over_id)
    payload = payloads.encrypt_message(keys, claimed.organization_id, place, message)
    return HandOver(hand_over_id, message.id, stage, node_id, payload)


def _resumed(
    claimed: Claimed, failure: Failure, plan: Plan | None, keys: Cipher
) -> tuple[UUID, str, str, str, bytes] | None:
    """The hand-over that goes on at the failed node, if that can be told."""
    node = plan.nodes.get(failure.node_id) if plan is not None else None
    if node is None or failure.message is None:
        return None
    try:
        made = _hand_over(claimed, failure.message, node.stage, node.id, keys)
    except (TypeError, ValueError, RecursionError):
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
