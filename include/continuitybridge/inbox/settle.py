"""Settling: saying what became of a unit of work. The other half of a claim."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb
from uuid6 import uuid7

from continuitybridge import database
from continuitybridge.engine.message import Failure, Message, Outcome
from continuitybridge.errors import StaleLease, Verdict
from continuitybridge.flows.plan import Plan
from continuitybridge.inbox import capture, payloads, units
from continuitybridge.inbox.batches import Batch
from continuitybridge.inbox.claim import Claimed
from continuitybridge.settings import get_settings
from continuitybridge.vault.keyring import Cipher

Connection = psycopg.Connection[Any]

Became = Literal["done", "skipped", "handed_over", "retry", "dead", "stale"]
"""What became of the message: `handed_over` when another stage or another unit has yet to end; `retry` when this
unit will be tried again; `stale` when somebody else holds or has settled the unit, and nothing was changed."""


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
class _HandOver:
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
class _Ending:
    """What is to be written for one unit."""

    claimed: Claimed
    fate: Literal["closed", "retry", "dead"]
    trace: list[dict[str, Any]]
    hand_overs: Sequence[_HandOver] = ()
    failures: Sequence[tuple[Any, ...]] = ()
    wait_s: float = 0.0
    in_batch: bool = False


def settle(
    claimed: Claimed,
    outcome: Outcome,
    *,
    keys: Cipher,
    plan: Plan | None = None,
    policy: RetryPolicy | None = None,
    retry_in_batch: bool = False,
) -> Became:
    """Settle one unit; as `settle_many`, but raises `StaleLease` where that says `stale`."""
    [became] = settle_many(
        [(claimed, outcome)], keys=keys, plan=plan, policy=policy, retry_in_batch=retry_in_batch
    )
    if became == "stale":
        raise StaleLease(
            f"message {claimed.message_id} is no longer held under epoch {claimed.epoch}",
            message_id=claimed.message_id,
            epoch=claimed.epoch,
        )
    return became


def settle_many(
    settlements: Sequence[tuple[Claimed, Outcome]],
    *,
    keys: Cipher,
    plan: Plan | None = None,
    policy: RetryPolicy | None = None,
    retry_in_batch: bool = False,
) -> list[Became]:
    """Write what became of units of work, in one transaction; answers in the order given.

    Only the newest claim of a unit can settle it, and once: a unit whose lease was lost meanwhile answers `stale`
    and is left alone. (A lease that ran out but was not yet taken away still settles.) So nothing is settled
    twice. What did happen twice when a worker was killed between delivering and settling is the delivery, with
    the same Idempotency-Key: at least once.

    - Done: the message is settled once its last hand-over is. Outputs into other stages become hand-overs in the
      same transaction as the end of the unit that gave them: all or none.
    - Failed: the children that went well are kept; what failed is tried again from the node that failed, after a
      wait by `policy`, while its failures are transient and it has attempts left, else it is a dead letter with a
      captured, encrypted context. Without `plan`, or when the engine does not know the message as the failed node
      got it, the whole unit is tried again or dies, and nothing of its outputs is kept.
    - A message with a dead hand-over is a dead letter when no other hand-over of it is left to do.

    What is tried again leaves its batch, to be dispatched when its time has come, unless `retry_in_batch`.

    Raises `Unavailable` when the database does not finish: the call may be repeated, and answers `stale` for what
    the lost call did write.
    """
    policy = policy or RetryPolicy.from_settings()
    endings = [_ending(claimed, outcome, keys, plan, policy, retry_in_batch) for claimed, outcome in settlements]
    became: list[Became] = ["stale"] * len(endings)
    # Everybody locks messages in this order, so that settlements wait for each other instead of deadlocking.
    order = sorted(range(len(endings)), key=lambda n: _order(endings[n].claimed))
    plain = [n for n in order if _is_plain(endings[n])]
    with database.relay() as connection:
        settled = _close_messages(connection, [endings[n] for n in plain])
        for n in plain:
            claimed = endings[n].claimed
            if (claimed.organization_id, claimed.message_id) in settled:
                became[n] = "done"
        for n in order:
            if not _is_plain(endings[n]):
                became[n] = _write(connection, endings[n])
    return became


def skip(batch: Batch, *, stage: str | None = None, by: str = "") -> int:
    """Settle as skipped what the batch (of one stage, or altogether) has not ended, whoever holds it; returns how
    many units. A holder's settlement is refused afterwards. A message whose hand-overs are partly done is settled
    as skipped when nothing of it is left. `by` is recorded in the message's trace."""
    skipped = 0
    place = {"organization": batch.organization_id, "batch": batch.batch_id, "stage": stage}
    note = Jsonb([{"skipped_by": by, "stage": stage}])
    with database.relay() as connection:
        if stage is None or batch.first_stage is None or stage == batch.first_stage:
            rows = connection.execute(
                "SELECT message_id FROM bridge.messages WHERE organization_id = %(organization)s"
                " AND batch_id = %(batch)s AND state IN ('accepted', 'claimed') ORDER BY message_id FOR UPDATE",
                place,
            ).fetchall()
            for (message_id,) in rows:
                _append_trace(connection, batch.organization_id, message_id, note)
                units.move_to_settled(connection, batch.organization_id, message_id, "skipped")
            skipped += len(rows)
        affected = connection.execute(
            "SELECT DISTINCT message_id FROM bridge.hand_overs WHERE organization_id = %(organization)s"
            " AND batch_id = %(batch)s AND state IN ('available', 'claimed')"
            " AND (%(stage)s::text IS NULL OR stage = %(stage)s) ORDER BY message_id",
            place,
        ).fetchall()
        for (message_id,) in affected:
            if not units.lock(connection, batch.organization_id, message_id):
                continue
            skipped += connection.execute(
                "UPDATE bridge.hand_overs SET state = 'skipped', epoch = epoch + 1, lease_owner = NULL,"
                " lease_until = NULL WHERE organization_id = %(organization)s AND batch_id = %(batch)s"
                " AND message_id = %(message)s AND state IN ('available', 'claimed')"
                " AND (%(stage)s::text IS NULL OR stage = %(stage)s)",
                {**place, "message": message_id},
            ).rowcount
            _append_trace(connection, batch.organization_id, message_id, note)
            units.conclude(connection, batch.organization_id, message_id)
    return skipped


# -- what to write ------------------------------------------------------------------------------------------


def _ending(
    claimed: Claimed,
    outcome: Outcome,
    keys: Cipher,
    plan: Plan | None,
    policy: RetryPolicy,
    retry_in_batch: bool,
) -> _Ending:
    trace = [asdict(entry) for entry in outcome.trace]
    hand_overs: list[_HandOver] = []
    failures = list(outcome.failures)
    for output in outcome.outputs:
        if output.stage is None:
            continue
        try:
            hand_overs.append(_hand_over(claimed, output.message, output.stage, output.node_id, keys))
        except (TypeError, ValueError, RecursionError) as error:
            failures.append(_not_data(output.message, output.node_id, error))
    if not failures:
        return _Ending(claimed, "closed", trace, hand_overs)

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
        return _Ending(claimed, fate, trace, (), records, wait_s, retry_in_batch)
    for failure, again, place in zip(failures, retrying, resumed, strict=True):
        if place is not None:
            hand_overs.append(
                _HandOver(
                    *place,
                    state="available" if again else "dead",
                    attempts=claimed.attempts,
                    wait_s=policy.wait_s(claimed.attempts, [failure]) if again else 0.0,
                    in_batch=retry_in_batch and again,
                )
            )
    return _Ending(claimed, "closed", trace, hand_overs, records)


def _hand_over(claimed: Claimed, message: Message, stage: str, node_id: str, keys: Cipher) -> _HandOver:
    hand_over_id = uuid7()
    place = payloads.hand_over_place(claimed.message_id, hand_over_id)
    payload = payloads.encrypt_message(keys, claimed.organization_id, place, message)
    return _HandOver(hand_over_id, message.id, stage, node_id, payload)


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


# -- writing it ---------------------------------------------------------------------------------------------

# The common case, whatever the number: each message is deleted under its epoch and settled by what the delete
# gave back, so that a message settles exactly when it leaves the hot table.
_DELETE_HELD = """
WITH closing AS (
    SELECT * FROM unnest(%b::uuid[], %b::text[], %b::int8[], %b::text[])
        AS t (organization_id, message_id, epoch, trace)
), gone AS (
    DELETE FROM bridge.messages m USING closing c
    WHERE m.organization_id = c.organization_id AND m.message_id = c.message_id AND m.epoch = c.epoch
      AND m.state = 'claimed'
    RETURNING m.*, c.trace AS added
)"""
_RETURN = "RETURNING organization_id, message_id"
_CLOSE_MESSAGES = _DELETE_HELD + units.SETTLE_GONE.format(result="'done'", trace="trace || added::jsonb") + _RETURN
_INSERT_HAND_OVER = """
INSERT INTO bridge.hand_overs (organization_id, hand_over_id, message_id, child_id, environment, flow, version,
                               stage, node_id, state, payload, attempts, available_at, batch_id, mode)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %b, %s, now() + %s, %s,
        (SELECT mode FROM bridge.messages WHERE organization_id = %s AND message_id = %s))
"""
_INSERT_FAILURE = """
INSERT INTO bridge.failures (organization_id, failure_id, message_id, child_id, environment, flow, version,
                             node_id, node_type, code, verdict, final, attempt, context)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %b)
"""
_END_MESSAGE = """
UPDATE bridge.messages
SET state = %(state)s, lease_owner = NULL, lease_until = NULL, trace = trace || %(trace)s,
    dead_at = CASE WHEN %(state)s = 'dead' THEN now() END, available_at = now() + %(wait)s,
    batch_id = CASE WHEN %(leaves)s THEN NULL ELSE batch_id END
WHERE organization_id = %(organization)s AND message_id = %(message)s AND epoch = %(epoch)s AND state = 'claimed'
"""
_END_HAND_OVER = """
UPDATE bridge.hand_overs
SET state = %(state)s, lease_owner = NULL, lease_until = NULL, available_at = now() + %(wait)s,
    batch_id = CASE WHEN %(leaves)s THEN NULL ELSE batch_id END
WHERE organization_id = %(organization)s AND hand_over_id = %(hand_over)s AND epoch = %(epoch)s
  AND state = 'claimed'
"""
_CLOSE_HAND_OVER = """
DELETE FROM bridge.hand_overs
WHERE organization_id = %(organization)s AND hand_over_id = %(hand_over)s AND epoch = %(epoch)s
  AND state = 'claimed'
"""


def _is_plain(ending: _Ending) -> bool:
    return ending.fate == "closed" and not ending.hand_overs and ending.claimed.hand_over_id is None


def _order(claimed: Claimed) -> tuple[UUID, str]:
    return claimed.organization_id, claimed.message_id


def _close_messages(connection: Connection, endings: Sequence[_Ending]) -> set[tuple[UUID, str]]:
    if not endings:
        return set()
    of = [ending.claimed for ending in endings]
    rows = connection.execute(
        _CLOSE_MESSAGES,
        (
            [claimed.organization_id for claimed in of],
            [claimed.message_id for claimed in of],
            [claimed.epoch for claimed in of],
            [json.dumps(ending.trace) for ending in endings],
        ),
    )
    return {(row[0], row[1]) for row in rows}


def _write(connection: Connection, ending: _Ending) -> Became:
    claimed = ending.claimed
    retry = ending.fate == "retry"
    place = {
        "organization": claimed.organization_id,
        "message": claimed.message_id,
        "hand_over": claimed.hand_over_id,
        "epoch": claimed.epoch,
        "wait": timedelta(seconds=ending.wait_s),
        "leaves": retry and not ending.in_batch,
        "trace": Jsonb(ending.trace),
    }
    if not units.lock(connection, claimed.organization_id, claimed.message_id):
        return "stale"
    if claimed.hand_over_id is None:
        state = {"closed": "handed_over", "retry": "accepted", "dead": "dead"}[ending.fate]
        held = connection.execute(_END_MESSAGE, {**place, "state": state}).rowcount
    elif ending.fate == "closed":
        held = connection.execute(_CLOSE_HAND_OVER, place).rowcount
    else:
        held = connection.execute(_END_HAND_OVER, {**place, "state": "available" if retry else "dead"}).rowcount
    if not held:
        return "stale"
    if claimed.hand_over_id is not None:
        _append_trace(connection, claimed.organization_id, claimed.message_id, Jsonb(ending.trace))
    with connection.cursor() as cursor:
        if ending.hand_overs:
            cursor.executemany(_INSERT_HAND_OVER, [_hand_over_row(claimed, each) for each in ending.hand_overs])
        if ending.failures:
            cursor.executemany(_INSERT_FAILURE, ending.failures)
    if claimed.hand_over_id is None and ending.fate != "closed":
        return "retry" if retry else "dead"
    became = units.conclude(connection, claimed.organization_id, claimed.message_id)
    tried_again = retry or any(each.state == "available" and each.attempts for each in ending.hand_overs)
    return "retry" if became == "handed_over" and tried_again else became


def _hand_over_row(claimed: Claimed, each: _HandOver) -> tuple[Any, ...]:
    return (
        claimed.organization_id,
        each.hand_over_id,
        claimed.message_id,
        each.child_id,
        claimed.environment,
        claimed.flow,
        claimed.version,
        each.stage,
        each.node_id,
        each.state,
        each.payload,
        each.attempts,
        timedelta(seconds=each.wait_s),
        claimed.batch_id if each.in_batch else None,
        claimed.organization_id,
        claimed.message_id,
    )


def _append_trace(connection: Connection, organization_id: UUID, message_id: str, trace: Jsonb) -> None:
    connection.execute(
        "UPDATE bridge.messages SET trace = trace || %s WHERE organization_id = %s AND message_id = %s",
        (trace, organization_id, message_id),
    )
