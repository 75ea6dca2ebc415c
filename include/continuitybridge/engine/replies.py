"""The answer for a caller who waits for a flow's result: made in the node process, after the walk, from what left
the flow. The outcome has been told by then: whatever making the answer does to its process, the message stays
done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from continuitybridge.engine.chain import Step
from continuitybridge.engine.limits import Limits
from continuitybridge.engine.message import Failure, Message, Reply
from continuitybridge.engine.walk import Walk
from continuitybridge.errors import BridgeError, ReplyFailed, Verdict
from continuitybridge.nodes.base import TriggerNode
from continuitybridge.problems import EXPLAINED


class Wanted(NamedTuple):
    """The trigger that answers, and from which message: None when no message left the flow."""

    trigger: Step
    message: Message | None


def wanted(walk: Walk) -> Wanted | None:
    """What is to be answered after this walk, once its outputs are sealed. None when nobody waits; or when nothing
    of the result is there and the rest of the message is still to come, or failed."""
    trigger = walk.chain.replier(walk.root)
    if trigger is None or not isinstance(trigger.node, TriggerNode):
        return None
    failed = {failure.message_id for failure in walk.failures}
    results = [
        message
        for message, step, _, stage, _ in walk.outputs
        if stage is None and message.id not in failed and trigger.node.reply_counts(step.id)
    ]
    if results:
        return Wanted(trigger, min(results, key=lambda message: _place(walk.root, message)))
    unfinished = walk.failures or any(stage is not None for _, _, _, stage, _ in walk.outputs)
    return None if unfinished else Wanted(trigger, None)


def make(walk: Walk, asked: Wanted, limits: Limits) -> Reply:
    """The answer; one with a code when it cannot be made, which the flow's log explains."""
    trigger, message = asked
    walk.mark(trigger, walk.root if message is None else message)
    try:
        if not isinstance(trigger.node, TriggerNode):
            raise TypeError(trigger.type)
        return trigger.node.reply(message, limits.max_reply_bytes)
    except BridgeError as error:
        reason = error.detail
    except MemoryError:
        walk.out_of_memory = True
        reason = "it needs more memory than a node may take"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    said = {"message": walk.root.id, "trigger": trigger.id}
    services = next(iter(walk.chain.steps.values())).context.services
    services.log("error", f"the answer cannot be made: {reason[:1000]}", said)
    return Reply(message_id=None if message is None else message.id, code=ReplyFailed.code)


def lost(walked: Message) -> Reply:
    """The answer when the process died while making it."""
    return Reply(message_id=walked.id, code=ReplyFailed.code)


MAX_EXPLAINED = 50
"""Violations that an answer names at most."""


def gravest(failures: Sequence[Failure]) -> Failure:
    """The failure that is answered: the first that no retry could help, else the first."""
    return next((each for each in failures if each.verdict is Verdict.TERMINAL), failures[0])


def explanation(failure: Failure) -> dict[str, Any]:
    """What its caller may be told of a failure: nothing, unless it is about his own content."""
    if failure.code not in EXPLAINED:
        return {}
    told: dict[str, Any] = {"detail": failure.detail}
    violations = failure.facts.get("violations")
    if isinstance(violations, list):
        told["violations"] = violations[:MAX_EXPLAINED]
    return told


def _place(root: Message, message: Message) -> list[int]:
    behind = message.id.removeprefix(root.id)
    return [int(number) for number in behind.split(".") if number.isdigit()]
