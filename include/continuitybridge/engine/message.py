"""What travels: messages, and what running them through a plan gives."""

from __future__ import annotations

from collections.abc import Mapping
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
    resume: Resume | None = None
    """Set on a message that goes on where it waited: its entry node is asked by `resume`, not by `process`."""
    called: bool = False
    """Set on a message that another flow called this one with: its outcome tells what left the plan, always."""

    def derive(self, body: Body, *, id: str | None = None) -> Message:
        """The same message with another body (and id, for a child)."""
        return Message(id or self.id, body, self.headers, self.vars, self.generation)


@dataclass(frozen=True, slots=True)
class Emit:
    """What a node gives back when it names a port or emits several messages. `vars` are set on that message
    beside those it has. `child` makes it a child (`<parent>.<n>`) even where it is the only one."""

    body: Body
    port: str = "out"
    vars: Mapping[str, Any] | None = None
    child: bool = False


WaitKind = Literal["time", "group", "person", "flow"]


@dataclass(frozen=True, slots=True)
class Wait:
    """What a parked message waits for.

    `until` (seconds since the epoch), or `within_s` from when the wait is written, ends it whatever happened; of a
    group, counted from its first member. A `group` completes when `need` different `member`s (0: no number) have
    arrived under one `key`, or, where there is a `scope`, when nothing else can arrive. `scope` confines the group
    to one accepted message: the id whose descendants it gathers, or "" for everything that the message became;
    None gathers across messages. Members are given to the node in the order of their `position`; what goes on
    bears the id `becomes` (else the first member's). `payload` goes to whoever is waited for: what a person
    decides on, the message for a flow. `options` is JSON data (small: texts up to 4,000 characters, lists up to
    100 items) for those who release the wait.
    """

    kind: WaitKind
    until: float | None = None
    within_s: float | None = None
    key: str = ""
    scope: str | None = None
    member: str = ""
    position: int = 0
    need: int = 0
    becomes: str = ""
    payload: Body = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Park:
    """What a node gives back to let its message wait, as a state in the tables: no process sleeps meanwhile. When
    the wait is over, the node is asked to `resume` the message with this body."""

    body: Body
    wait: Wait


TOO_LARGE = "too-large"
"""How a wait ends whose parts together are more than a process may hold: its node is not asked."""


@dataclass(frozen=True, slots=True)
class Resume:
    """How a wait ended, and what is to be known of it (JSON data; bodies may be bytes).

    `how`: `due` (a time has come), `timeout` (it came before what was waited for); of a group `complete`, `ended`
    (nothing else can arrive) or `late` (it was closed when this message came); of a person `approved` or
    `rejected`; of a flow `done` or `failed`.
    """

    how: str
    facts: Mapping[str, Any] = field(default_factory=dict)


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
    hidden: tuple[str, ...] = field(default=(), repr=False)
    """What of credentials its run was given, and may have been sent back: not to be told of the message."""

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
    """A message that left the plan (`stage` None), crosses into another stage (`stage` and `node_id` name where
    it goes on), or waits (`wait` too: at `node_id`, which resumes it)."""

    message: Message
    node_id: str
    stage: str | None = None
    wait: Wait | None = None


@dataclass(slots=True)
class Reply:
    """What a caller who waits for the flow's result is answered. `message_id` is the output that it was made of
    (None: no message left the flow). With `code` set there is no answer to be had: the templates could not be
    applied, or something went wrong while they were."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    message_id: str | None = None
    code: str | None = None


OutcomeStatus = Literal["done", "failed", "handed_over"]


@dataclass(slots=True)
class Outcome:
    """What became of one input message of a batch.

    `failed` when any of its children failed without an error route; `handed_over` when something crosses
    into another stage or waits; else `done` (also when a filter dropped it). `outputs` holds terminal messages and
    hand-overs alike. `reply` is there when a caller waits for the result and something of it is in `outputs`,
    or nothing failed. `keys` are the search keys that its flow declares, as far as they were found.
    """

    message_id: str
    status: OutcomeStatus
    outputs: list[Output] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    trace: list[NodeTrace] = field(default_factory=list)
    reply: Reply | None = None
    keys: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict | None:
        """TERMINAL if any failure is terminal, TRANSIENT if all are transient, None when nothing failed."""
        if not self.failures:
            return None
        verdicts = {failure.verdict for failure in self.failures}
        return Verdict.TERMINAL if Verdict.TERMINAL in verdicts else Verdict.TRANSIENT
