"""Where a walk stands, in memory that a node process writes and the nursery's watchdog reads: four words, and from
`CHILD_ID_AT` on the id of a child message."""

from __future__ import annotations

from time import monotonic_ns
from typing import Any

SLOT_MESSAGE, SLOT_NODE, SLOT_SINCE, SLOT_CHILD = range(4)
PROGRESS_BYTES = 4096
CHILD_ID_AT = 64
CHILD_ID_BYTES = 1024
BUILDING = 2**64 - 1
"""In place of a message: the plan is being built, none is under way."""


class Progress:
    """Where the walk stands, for the watchdog. Four unsigned words: which message (its sequence number plus
    one, 0: none), which node, since when (monotonic ns), length of the child's id that `child` holds."""

    __slots__ = ("_child", "slots")

    def __init__(self, slots: Any = None, child: memoryview | None = None) -> None:
        self.slots: Any = [0, 0, 0, 0] if slots is None else slots
        self._child = child

    def enter(self, sequence: int) -> None:
        self.slots[SLOT_CHILD] = 0
        self.slots[SLOT_SINCE] = monotonic_ns()
        self.slots[SLOT_MESSAGE] = sequence + 1

    def leave(self) -> None:
        self.slots[SLOT_MESSAGE] = 0

    def child(self, message_id: str) -> None:
        if self._child is not None:
            text = message_id.encode(errors="replace")[: len(self._child)]
            self._child[: len(text)] = text
            self.slots[SLOT_CHILD] = len(text)
