"""Messages that wait for a commit, and whose turn it is."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from uuid import UUID

from continuitybridge.inbox.accept.rows import Accepted, Row
from continuitybridge.inbox.neighbours import MOST_REST_S, SHARE, Sparing
from continuitybridge.settings import get_settings

AFTER_S = 0.005
"""So long a flood leaves the machine to what was written of the others: it is on its way to the stream workers."""
PARTS, MOST_OF_PARTS = 16, 32
"""Of what a flood has waiting, one in `PARTS` is written at once in any case, and so many at most: a queue that
grows is worked off faster, until it grows no more."""

Item = tuple[Row, asyncio.Future[Accepted]]


class Waiting:
    """A queue for each organization. They take turns message by message, each in the order that its own came in.

    Who has more than its `SHARE` waiting floods. Alone, beside other floods only, or while the others do not feel
    it (`neighbours.Sparing`), it gets all there is room for; else it gets a share of a group, and stays behind for
    a while: what comes of the others is written at once and by itself, so that it waits for a small group at most
    and is not worked on together with the flood's. Many of them hold it up for `MOST_REST_S` at most, too.
    """

    def __init__(self) -> None:
        self._of: OrderedDict[UUID, deque[Item]] = OrderedDict()
        self._since: dict[UUID, float] = {}
        """Since when an organization has something waiting."""
        self._sparing = Sparing()
        self._held_back: set[UUID] = set()
        self._behind = False
        """Whether the group taken last left out the floods, for the others' sake."""
        self._rests_until = 0.0
        self._not_behind_from = 0.0
        """The floods that are held back rest until then, and may go before others' messages from then on."""
        self._taken: list[tuple[UUID, float]] = []
        """Those with little whose messages are in the group taken last, and since when these had waited."""
        self._count = 0
        self.size = 0
        """Bytes of content."""

    def __len__(self) -> int:
        return self._count

    def put(self, row: Row, future: asyncio.Future[Accepted]) -> bool:
        """Let a message wait; whether its organization has no more than its share."""
        organization_id = row.acceptance.organization_id
        queue = self._of.get(organization_id)
        if queue is None:
            queue = self._of[organization_id] = deque()
            self._since[organization_id] = time.monotonic()
        queue.append((row, future))
        self._count += 1
        self.size += len(row.payload)
        return len(queue) <= SHARE and organization_id not in self._held_back

    def take(self, most: int, most_size: int) -> list[Item]:
        """The next group: so many messages, and bytes, at most (but always one). Those whose callers have left
        are dropped."""
        group: list[Item] = []
        size = 0
        now = time.monotonic()
        shares = self._shares(now)
        self._behind = bool(shares and self._taken) and now < self._not_behind_from
        self._held_back = set(shares) if self._behind else set()
        dealt: Counter[UUID] = Counter()
        turns = deque(each for each in self._of if each not in self._held_back)
        while turns and len(group) < most and size < most_size:
            organization_id = turns.popleft()
            queue = self._of[organization_id]
            row, future = queue.popleft()
            self._count -= 1
            self.size -= len(row.payload)
            if not future.cancelled():
                group.append((row, future))
                size += len(row.payload)
                dealt[organization_id] += 1
            if not queue:
                del self._of[organization_id]
                del self._since[organization_id]
            elif dealt[organization_id] < shares.get(organization_id, most):
                turns.append(organization_id)
            else:
                self._held_back.add(organization_id)
        # Who got something comes after those who got nothing.
        for organization_id in dealt:
            if organization_id in self._of:
                self._of.move_to_end(organization_id)
        return group

    def written(self, took_s: float) -> float:
        """The group taken last is on disk, which took so long; so long those that are held back rest, unless
        others come meanwhile."""
        now = time.monotonic()
        self._sparing.took(took_s)
        for organization_id, since in self._taken:
            self._sparing.waited(organization_id, now - since, now)
        if not self._held_back:
            return 0.0
        if self._behind:
            after_s = AFTER_S if get_settings().flood_rest else 0.0
            self._rests_until = min(max(self._rests_until, now + after_s), self._not_behind_from)
        else:
            self._rests_until = now + self._sparing.rest_s(took_s, now)
            self._not_behind_from = now + MOST_REST_S
        return max(0.0, self._rests_until - now)

    def take_all(self) -> list[Item]:
        """Everything that waits."""
        everything = [item for queue in self._of.values() for item in queue]
        self._of.clear()
        self._since.clear()
        self._count = self.size = 0
        return everything

    def _shares(self, now: float) -> dict[UUID, int]:
        """The bounds of those who are held back."""
        self._taken.clear()
        flooding = []
        for organization_id, queue in self._of.items():
            if len(queue) > SHARE or organization_id in self._held_back:
                flooding.append(organization_id)
                self._sparing.floods(organization_id, now)
            else:
                self._taken.append((organization_id, self._since[organization_id]))
        shares = {each: self._sparing.share(each, now) for each in flooding}
        return {
            each: max(share, min(len(self._of[each]) // PARTS, MOST_OF_PARTS))
            for each, share in shares.items()
            if share is not None
        }
