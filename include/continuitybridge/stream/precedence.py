"""Whose claim waits a moment for whom: units of one that has little are not run together with a flood's."""

from __future__ import annotations

import math
import time
from collections import Counter
from uuid import UUID

from continuitybridge.inbox.neighbours import SHARE

PASS_S = 0.005
"""So long a unit of one that has little is let pass; one that takes longer waits for somebody else's answer."""
MOST_BEHIND_S = 0.01
"""So long at most an organization stays behind the others, from what it began last."""
TIMES = 2
"""Who began more than so many times as many units lately, and `SHARE`, has much."""
LATELY_S = 0.5
_MOST_KNOWN = 4_096


class Precedence:
    """Of one worker. An organization with much stays behind while another's units were begun a moment ago. No
    organization is held up for longer than `MOST_BEHIND_S`, however many the others are."""

    def __init__(self) -> None:
        self._begun: dict[UUID, tuple[float, float]] = {}
        """How many units each began lately, at its last one, and when that was."""
        self._under_way: Counter[UUID] = Counter()
        self._passes: tuple[UUID, float, float] | None = None
        """Who is let pass: what it began lately, and until when."""
        self._behind_until = math.inf

    @property
    def behind_until(self) -> float:
        """Until when somebody stays behind who was asked for since `look`; infinite when nobody does."""
        return self._behind_until

    def began(self, organization_id: UUID) -> None:
        """A unit of it is run."""
        now = time.monotonic()
        if organization_id not in self._begun and len(self._begun) >= _MOST_KNOWN:
            self._begun = {each: known for each, known in self._begun.items() if self._under_way[each]}
        self._begun[organization_id] = (self._lately(organization_id, now) + 1, now)
        self._under_way[organization_id] += 1

    def ended(self, organization_id: UUID) -> bool:
        """A unit of it was run; whether that lets those go on who stayed behind."""
        self._under_way[organization_id] -= 1
        if self._under_way[organization_id]:
            return False
        del self._under_way[organization_id]
        return self._behind_until < math.inf

    def look(self) -> None:
        """See who is let pass by the next claim: the one that began least."""
        now = time.monotonic()
        self._behind_until = math.inf
        self._passes = min(
            (
                (each, self._lately(each, now), self._begun[each][1] + PASS_S)
                for each, count in self._under_way.items()
                if count <= SHARE and now < self._begun[each][1] + PASS_S
            ),
            key=lambda passing: passing[1],
            default=None,
        )

    def stays_behind(self, organization_id: UUID) -> bool:
        """Whether the next claim takes nothing of it."""
        if self._passes is None or organization_id not in self._begun:
            return False
        now = time.monotonic()
        first, its_lately, passed_at = self._passes
        if first == organization_id or self._lately(organization_id, now) <= TIMES * its_lately + SHARE:
            return False
        until = min(passed_at, self._begun[organization_id][1] + MOST_BEHIND_S)
        if now >= until:
            return False
        self._behind_until = min(self._behind_until, until)
        return True

    def _lately(self, organization_id: UUID, now: float) -> float:
        count, at = self._begun.get(organization_id, (0.0, now))
        return count * math.exp((at - now) / LATELY_S)
