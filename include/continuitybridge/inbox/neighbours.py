"""Sparing organizations that have little another one's flood: as far as they feel it, and no further."""

from __future__ import annotations

import math
from uuid import UUID

from continuitybridge.settings import get_settings

SHARE = 8
"""So many messages an organization may have in one transaction without flooding, whatever the others feel."""
LEAST_SHARE, MOST_SHARE = 4, 128
"""The shares of a flood that the others feel fully, and hardly."""
NEIGHBOUR_S = 5.0
"""How long an organization that had little is a neighbour of the others."""
FLOODED_S = 1.0
"""So long after it had much, an organization feels nobody's flood but its own."""
WAIT_S = 0.005
FLOORS = 3.0
"""A neighbour feels a flood when its messages waited longer than `WAIT_S`, and than so many of the shortest
transactions: where each of them takes long, it is not the flood's doing."""
STEP = 0.5
FADES_S = 15.0
"""What one that felt it adds to the strain (of 0 to 1), and how long that takes to fade to a third."""
SELDOM_S = 0.05
"""Who sends less often than that adds less, as its messages are fewer: sparing one a second its wait would cost a
flood as much as sparing twenty theirs."""
SLIGHT = 0.05
"""A strain below this is none."""
MOST_REST_S = 0.02
"""How long at most a flood that is felt stays behind the others, from its transaction to its next one."""
_FLOOR_DRIFT = 1.01
_MOST_KNOWN = 4_096


class Sparing:
    """Of one queue that is worked off in transactions. It learns from what the neighbours' messages waited: while
    that is little, a flood is held back by nothing, though it fills the queue; while it is not, a flood gets a
    share of each transaction, the smaller the more they feel it, and rests after one that did not hold all it has.
    An organization that floods is nobody's neighbour. Times are of `time.monotonic`.
    """

    def __init__(self, least_share: int = LEAST_SHARE) -> None:
        self._least_share = least_share
        self._seen: dict[UUID, float] = {}
        self._flooded: dict[UUID, float] = {}
        self._strain = 0.0
        self._at = 0.0
        self._floor_s = 1.0

    def floods(self, organization_id: UUID, now: float) -> None:
        """It has more than its share."""
        self._seen.pop(organization_id, None)
        if len(self._flooded) >= _MOST_KNOWN:
            self._flooded = {each: at for each, at in self._flooded.items() if now - at < FLOODED_S}
        self._flooded[organization_id] = now

    def took(self, took_s: float) -> None:
        """So long a transaction took."""
        self._floor_s = min(took_s, self._floor_s * _FLOOR_DRIFT)

    def waited(self, organization_id: UUID, waited_s: float, now: float) -> None:
        """It had little, and that waited so long for the end of its transaction."""
        if now - self._flooded.get(organization_id, -math.inf) < FLOODED_S:
            return
        if len(self._seen) >= _MOST_KNOWN:
            self._seen = {each: at for each, at in self._seen.items() if now - at < NEIGHBOUR_S}
        before = self._seen.pop(organization_id, now)  # the last one stands last
        self._seen[organization_id] = now
        if waited_s > max(WAIT_S, FLOORS * self._floor_s):
            step = STEP * SELDOM_S / max(SELDOM_S, now - before)
            self._strain = min(1.0, self._faded(now) + step)
            self._at = now

    def share(self, organization_id: UUID, now: float) -> int | None:
        """Of how many messages of it one transaction may hold; None: of all that it has."""
        strain = self._faded(now)
        if strain < SLIGHT or not self._has_neighbours(organization_id, now):
            return None
        return round(MOST_SHARE * math.pow(self._least_share / MOST_SHARE, strain))

    def rest_s(self, took_s: float, now: float) -> float:
        """How long a flood rests after a transaction that took so long and did not hold all it has: processors and
        disk are the neighbours' meanwhile."""
        return min(get_settings().flood_rest * self._faded(now) * took_s, MOST_REST_S)

    def _faded(self, now: float) -> float:
        return self._strain * math.exp((self._at - now) / FADES_S)

    def _has_neighbours(self, organization_id: UUID, now: float) -> bool:
        last = next((each for each in reversed(self._seen) if each != organization_id), None)
        return last is not None and now - self._seen[last] < NEIGHBOUR_S
