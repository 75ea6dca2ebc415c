"""What travels: messages, and what running them through a plan gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from continuitybridge.errors import BridgeError, Verdict

Body = Any
"""`bytes` as received, `str`, or the JSON data model (dict, list, str, int, float, bool, None)."""


@dataclass(slots=True)
class Message:
    """One message between two nodes.

    `id` is stable for the message's whole life; the children of a fan-out are `<parent>.<n>`, counted from 1
    in the order a node emitted them, so that running again gives the same ids.
    `headers` are the transport's (lower-case names); `vars` is what nodes leave for later nodes.
    `generation` changes when a replay changes input or flow version; it is part of outward idempotency keys.
    """

    id: str
    body: Body
    headers: dict[str, str] = field(default_factory=dict)
    vars: dict[str, Any] = field(default_factory=dict)
    generation: int = 1

    def derive(self, body: Body, *, id: str | None = None) -> Message:
        """The same message with another body (and id, for a child)."""
        return Message(id or self.id, body, self.headers, self.vars, self.generation)


@dataclass(frozen=True, slots=True)
class Emit:
    """What a node gives back when it names a port or emits several messages."""

    body: Body
    port: str = "out"


@dataclass(slots=True)
class NodeTrace:
    """Counts and time of one node for one input message. Durations in microseconds."""

    node_id: str
    received: int = 0
    emitted: int = 0
    failed: int = 0
    duration_us: int = 0


@dataclass(slots=True)
class Failure:
    """One failed message with the context triage needs."""

    message_id: str
    node_id: str
    node_type: str
    code: str
    detail: str
    verdict: Verdict
    facts: dict[str, Any] = field(default_factory=dict)
    body: Body = None
    traceback: str | None = None
    message: Message | None = None
    """The message as the node got it, for trying again from there; None when that is not known."""

    @classmethod
    def of(cls, message: Message, node_id: str, node_type: str, error: BridgeError) -> Failure:
        return cls(
            message.id,
            node_id,
            node_type,
            error.code,
            error.detail,
            error.verdict,
            error.facts,
            message.body,
            message=message,
        )


@dataclass(slots=True)
class Output:
    """A message that left the plan (`stage` None) or crosses into another stage (`stage` and `node_id` name
    where it goes on)."""

    message: Message
    node_id: str
    stage: str | None = None


OutcomeStatus = Literal["done", "failed", "handed_over"]


@dataclass(slots=True)
class Outcome:
    """What became of one input message of a batch.

    `failed` when any of its children failed without an error route; `handed_over` when something crosses
    into another stage; else `done` (also when a filter dropped it). `outputs` holds terminal messages and
    hand-overs alike.
    """

    message_id: str
    status: OutcomeStatus
    outputs: list[Output] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    trace: list[NodeTrace] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict | None:
        """TERMINAL if any failure is terminal, TRANSIENT if all are transient, None when nothing failed."""
        if not self.failures:
            return None
        verdicts = {failure.verdict for failure in self.failures}
        return Verdict.TERMINAL if Verdict.TERMINAL in verdicts else Verdict.TRANSIENT
