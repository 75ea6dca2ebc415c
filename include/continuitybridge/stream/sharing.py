"""How much of a flood one claim takes: others' messages wait for that claim, and for what it takes to begin it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from uuid import UUID

from continuitybridge.inbox.neighbours import SHARE, Sparing
from continuitybridge.inbox.stream import Sealed, Wanted


class Sharing:
    """Of one worker's claims."""

    def __init__(self) -> None:
        # Smaller ones cost more than they spare: what is under way is let pass anyhow (see `precedence`).
        self._sparing = Sparing(SHARE)
        self._since: dict[UUID, float] = {}
        """Since when organizations have something to do that no claim asked for."""
        self._waited: dict[UUID, float] = {}
        """The same of those that the claim under way asks for."""
        self._asked_at = 0.0
        self._bounded: set[UUID] = set()
        """Organizations of which the next claim takes no more than their share."""
        self._held_back: set[UUID] = set()
        """Those of them that had all of it in the last claim: there may be more of them."""

    @property
    def holds_back(self) -> bool:
        return bool(self._held_back)

    def noticed(self, organization_id: UUID) -> bool:
        """It got something to do; whether a rest ends with it."""
        self._since.setdefault(organization_id, time.monotonic())
        return self.holds_back and organization_id not in self._held_back

    def begin(self) -> None:
        """What the next claim takes is chosen from here on."""
        self._bounded.clear()

    def most(self, organization_id: UUID, allowed: int) -> int:
        """How many units of the organization the next claim may take, where so many are allowed."""
        share = self._sparing.share(organization_id, time.monotonic())
        if share is None or share >= allowed:
            return allowed
        self._bounded.add(organization_id)
        return share

    def asking(self, wanted: Iterable[Wanted]) -> None:
        """A claim begins."""
        now = self._asked_at = time.monotonic()
        self._waited = {each.organization_id: self._since.pop(each.organization_id, now) for each in wanted}

    def claimed(self, wanted: Sequence[Wanted], sealed: Iterable[Sealed]) -> None:
        """Learn from it who floods and what those with little waited."""
        now = time.monotonic()
        self._sparing.took(now - self._asked_at)
        asked: Counter[UUID] = Counter()
        got: Counter[UUID] = Counter()
        for each in wanted:
            asked[each.organization_id] += each.most
        # Of what may not begin all at once little comes, though there is much.
        unclear = {each.organization_id for each in wanted if each.concurrency is not None}
        for unit in sealed:
            got[unit.organization_id] += 1
            if unit.ordered:
                unclear.add(unit.organization_id)
        self._held_back = {each for each in self._bounded if got[each] and got[each] == asked[each]}
        for organization_id, count in got.items():
            if count > SHARE or organization_id in self._held_back:
                self._sparing.floods(organization_id, now)
            elif count < asked[organization_id] and organization_id not in unclear:
                self._sparing.waited(organization_id, now - self._waited[organization_id], now)

    def rest_s(self, took_s: float) -> float:
        """How long to rest after a claim that held somebody back, with what it took to begin what came."""
        return self._sparing.rest_s(took_s, time.monotonic())
