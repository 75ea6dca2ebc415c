"""Who is to be spared an organization's flood."""

from __future__ import annotations

from uuid import UUID

from continuitybridge.settings import get_settings

SHARE = 4
"""So many messages an organization may have in one transaction without being held back for its neighbours."""
NEIGHBOUR_S = 5.0
"""How long an organization that had no more than its share is a neighbour of the others."""
MOST_REST_S = 0.02
"""How long at most whoever works off what is beyond shares rests after a transaction."""


def rest_s(took_s: float) -> float:
    """How long to rest after a transaction that took so long: processors and disk are the neighbours' meanwhile. A
    busy machine takes longer and is left alone longer."""
    return min(get_settings().flood_rest * took_s, MOST_REST_S)


class Neighbours:
    """Organizations that lately had work and no more than their share of it.

    Where one floods and has none, nobody is served by holding it back. So the two seen last are all that needs to
    be known: whoever asks is one of them at most. Times are of `time.monotonic`.
    """

    def __init__(self) -> None:
        self._last: tuple[UUID | None, float] = (None, 0.0)
        self._other: tuple[UUID | None, float] = (None, 0.0)

    def note(self, organization_id: UUID, now: float) -> None:
        """It had no more than its share."""
        if organization_id != self._last[0]:
            self._other = self._last
        self._last = (organization_id, now)

    def has(self, organization_id: UUID, now: float) -> bool:
        """Whether there is another one beside it."""
        found, at = self._other if self._last[0] == organization_id else self._last
        return found is not None and now - at < NEIGHBOUR_S
