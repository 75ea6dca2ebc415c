"""Groups that complete within one walk: what a split made and an aggregation gathers again, before anything of it
was written. Whatever cannot be told from the walk alone (a sibling crossed into another stage, waits, or failed
and will be tried again) leaves the walk as a wait, and the tables decide.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from continuitybridge.engine.message import Message, Resume, Wait

if TYPE_CHECKING:
    from continuitybridge.engine.chain import Step

COMPLETE = "complete"
ENDED = "ended"

_NUMBER = re.compile(r"\d+")


class Member(NamedTuple):
    """A message that waits for others."""

    step: Step
    message: Message
    wait: Wait


_Key = tuple[int, str | None, str]
"""Index of the gathering step, scope, key."""


class Groups:
    """The groups of one walk. `whole`: the walk has the whole accepted message, from its trigger on."""

    def __init__(self, *, whole: bool, emulate: bool) -> None:
        self._whole = whole
        self._emulate = emulate
        self._parents: set[str] = set()
        self._open: dict[_Key, list[Member]] = {}

    def branched(self, parent_id: str) -> None:
        """Children of this message were made here: all of them begin in this walk."""
        self._parents.add(parent_id)

    def hold(self, step: Step, message: Message, wait: Wait) -> bool:
        """Keep a message that waits for a group which may complete here; false when it cannot."""
        if wait.kind != "group" or (wait.scope is None and not self._emulate):
            return False
        self._open.setdefault((step.index, wait.scope, wait.key), []).append(Member(step, message, wait))
        return True

    def ready(self, live: Iterable[str], failed: Iterable[str]) -> list[tuple[Step, Message, Resume]]:
        """The groups to which nothing can come any more, each as its step, the message that goes on, and how.
        `live` are the ids of what goes on elsewhere, `failed` of what failed here."""
        if not self._open:
            return []
        failures = list(failed)
        below: Counter[str] = Counter()
        of_scope: Counter[str | None] = Counter()
        everywhere = 0
        for message_id in (*live, *(() if self._emulate else failures)):
            below.update(_ancestors(message_id))
            everywhere += 1
        for (_, scope, _), members in self._open.items():
            for member in members:
                below.update(_ancestors(member.message.id))
                everywhere += 1
                of_scope[scope] += scope in ("", None) or member.message.id.startswith(f"{scope}.")

        def may_grow(scope: str | None) -> bool:
            if scope is None:
                return False
            if scope == "":
                return not self._whole or everywhere > of_scope[scope]
            return scope not in self._parents or below[scope] > of_scope[scope]

        found = [key for key in self._open if not may_grow(key[1])]
        if not found and self._emulate:
            # Nothing waits under emulation: the group that stands first in the plan makes do with what it has.
            found = [min(self._open, key=lambda key: key[0])]
        return [self._close(key, failures) for key in found]

    def _close(self, key: _Key, failures: list[str]) -> tuple[Step, Message, Resume]:
        members = sorted(self._open.pop(key), key=lambda member: order(member.wait.position, member.message.id))
        first = members[0]
        scope = key[1]
        message = first.message
        lost = sum(scope == "" or each.startswith(f"{scope}.") for each in failures) if scope is not None else 0
        arrived = len({member.wait.member for member in members})
        facts: dict[str, Any] = {
            "members": [{"id": member.message.id, "member": member.wait.member} for member in members],
            "failed": lost,
        }
        message.id = first.wait.becomes or message.id
        message.body = [member.message.body for member in members]
        full = 0 < first.wait.need <= arrived
        return first.step, message, Resume(COMPLETE if full else ENDED, facts)

    def leave(self) -> Iterator[Member]:
        """What waits on in the tables."""
        for members in self._open.values():
            yield from members
        self._open.clear()


def order(position: int, message_id: str) -> tuple[Any, ...]:
    """Sorts members: by position, then by id, children in the order of their numbers."""
    return position, [(int(part), "") if _NUMBER.fullmatch(part) else (-1, part) for part in message_id.split(".")]


def _ancestors(message_id: str) -> Iterator[str]:
    """Every id of which this one is a descendant (and what looks like one)."""
    at = message_id.find(".")
    while at >= 0:
        yield message_id[:at]
        at = message_id.find(".", at + 1)
