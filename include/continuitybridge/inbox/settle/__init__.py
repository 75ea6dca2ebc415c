"""Settling: saying what became of a unit of work. The other half of a claim.

Modules: `endings` works out what an outcome makes of a unit, `writing` writes it, `answering` writes what callers
who wait are answered, `skipping` settles what is not run.
"""

from __future__ import annotations

from collections.abc import Sequence

from continuitybridge import database
from continuitybridge.engine.message import Outcome
from continuitybridge.errors import StaleLease
from continuitybridge.flows.plan import Plan
from continuitybridge.inbox.claim import Claimed
from continuitybridge.inbox.replies import Notices
from continuitybridge.inbox.retry import RetryPolicy
from continuitybridge.inbox.settle.endings import ending_of
from continuitybridge.inbox.settle.skipping import skip
from continuitybridge.inbox.settle.writing import Became, write
from continuitybridge.inbox.statements import run
from continuitybridge.vault.keyring import Cipher

__all__ = ["Became", "RetryPolicy", "settle", "settle_many", "skip"]


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
    - Turned back by a destination that is paused or whose circuit is open (`DestinationClosed`): no failure is
      recorded, the attempt does not count, and the unit waits as long as the destination asks, or until it is
      resumed.
    - A message with a dead hand-over is a dead letter when no other hand-over of it is left to do.
    - A caller who waits for the message's result (`reply_until`) is answered in the same transaction: once the
      message is settled, and at once when something of it failed for good. He is told after the commit; and if
      what is tried again cannot end within his limit, that it goes on without him.

    - Parked: the message waits, as `inbox.waits` says; a group that is complete by it goes on in the same
      transaction, and the messages that it gathered are settled with it.

    What is tried again leaves its batch, to be dispatched when its time has come, unless `retry_in_batch`.

    Raises `Unavailable` when the database does not finish: the call may be repeated, and answers `stale` for what
    the lost call did write.
    """
    policy = policy or RetryPolicy.from_settings()
    notices = Notices()
    writing = write(
        [ending_of(claimed, outcome, keys, plan, policy, retry_in_batch) for claimed, outcome in settlements],
        notices,
    )
    with database.relay(after=notices) as connection:
        became: list[Became] = run(connection, writing)
    return became
