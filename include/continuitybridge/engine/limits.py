"""What one message may cost. Exceeding a limit fails that message with `LimitExceeded` and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from continuitybridge.errors import LimitExceeded

_MIB = 1024 * 1024


class HasLimits(Protocol):
    """The settings the limits are read from; see `settings.Settings` for each key's meaning."""

    max_message_bytes: int
    max_emitted_messages: int
    max_nesting_depth: int
    node_time_limit_s: float
    node_memory_limit_bytes: int
    reply_max_bytes: int


@dataclass(frozen=True, slots=True)
class Limits:
    """The engine's limits, named as the settings they come from (`BRIDGE_MAX_MESSAGE_BYTES`, …).

    `max_message_bytes` holds for each input and each output; what one input gives altogether may be
    `max_outcome_bytes`. `max_emitted_messages` counts, per node and input message, what the node emits beyond
    one message for each it received, so that splits that follow each other cannot multiply.
    `node_time_limit_s` is the time of one computing node for one message (an outside call has its own
    time-out): wall time, of which the node must have worked half, so that a machine that stands still fails
    nobody; four times the limit ends it in any case. `node_memory_limit_bytes` is what the process may take
    above its start. `max_reply_bytes` (`BRIDGE_REPLY_MAX_BYTES`) holds for the body of a flow's answer.
    """

    max_message_bytes: int = 10 * _MIB
    max_emitted_messages: int = 10_000
    max_nesting_depth: int = 200
    node_time_limit_s: float = 10.0
    node_memory_limit_bytes: int = 1024 * _MIB
    max_reply_bytes: int = _MIB

    @classmethod
    def from_settings(cls, settings: HasLimits) -> Limits:
        return cls(
            settings.max_message_bytes,
            settings.max_emitted_messages,
            settings.max_nesting_depth,
            settings.node_time_limit_s,
            settings.node_memory_limit_bytes,
            settings.reply_max_bytes,
        )

    @property
    def max_outcome_bytes(self) -> int:
        """Most bytes all outputs of one input may have together: eight of the largest messages."""
        return 8 * self.max_message_bytes


def too_large(found: int, allowed: int, *, at_least: bool = False) -> LimitExceeded:
    """The failure of a message of `found` bytes (or more, with `at_least`: nobody read the rest)."""
    more = "more than " if at_least else ""
    return LimitExceeded(
        f"the message has {more}{found} bytes, allowed are {allowed} (BRIDGE_MAX_MESSAGE_BYTES)",
        limit="max_message_bytes",
        allowed=allowed,
        found=found,
    )


def too_deep(allowed: int) -> LimitExceeded:
    return LimitExceeded(
        f"the content is nested deeper than {allowed} levels (BRIDGE_MAX_NESTING_DEPTH)",
        limit="max_nesting_depth",
        allowed=allowed,
        found=f"more than {allowed}",
    )


def too_many(allowed: int) -> LimitExceeded:
    return LimitExceeded(
        f"the node emitted more than {allowed} messages for one (BRIDGE_MAX_EMITTED_MESSAGES)",
        limit="max_emitted_messages",
        allowed=allowed,
        found=f"more than {allowed}",
    )


def too_long(found_s: float, allowed_s: float) -> LimitExceeded:
    return LimitExceeded(
        f"the node worked longer than {allowed_s:g} s on one message and was stopped (BRIDGE_NODE_TIME_LIMIT_S)",
        limit="node_time_limit_s",
        allowed=allowed_s,
        found=round(found_s, 3),
    )


def too_much_memory(allowed: int) -> LimitExceeded:
    return LimitExceeded(
        f"the node needed more than {allowed} bytes of memory (BRIDGE_NODE_MEMORY_LIMIT_BYTES)",
        limit="node_memory_limit_bytes",
        allowed=allowed,
        found=f"more than {allowed}",
    )


def too_large_together(limits: Limits) -> LimitExceeded:
    """The failure of a message whose wait brought more together than a process may hold."""
    return LimitExceeded(
        f"what was gathered for the message has more than {limits.max_outcome_bytes} bytes altogether "
        "(eight times BRIDGE_MAX_MESSAGE_BYTES)",
        limit="max_message_bytes",
        allowed=limits.max_outcome_bytes,
        found=f"more than {limits.max_outcome_bytes}",
    )


def nests_deeper(body: Any, limit: int) -> bool:
    """Whether containers stand in each other more than `limit` deep. Walks level by level: no recursion, no
    level is read beyond the limit, and a container that stands in several places is read once per level."""
    if type(body) is not dict and type(body) is not list:
        return False
    level: list[Any] = [body]
    for _ in range(limit):
        below: dict[int, Any] = {}
        for container in level:
            for value in container.values() if type(container) is dict else container:
                if type(value) is dict or type(value) is list:
                    below[id(value)] = value
        if not below:
            return False
        level = list(below.values())
    return True


def outgrows(body: Any, items: int) -> bool:
    """Whether `body` has more than `items` values when written out. A container that stands in many places is
    small in memory and may be endless in writing."""
    waiting = [body]
    while waiting:
        value = waiting.pop()
        if type(value) is dict:
            inside: Any = value.values()
        elif type(value) is list or type(value) is tuple:
            inside = value
        else:
            continue
        items -= len(inside)
        if items < 0:
            return True
        waiting.extend(inside)
    return False
