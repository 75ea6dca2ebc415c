"""Messages that wait for a commit, and whose turn it is."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from uuid import UUID

from continuitybridge.inbox.accept.rows import Accepted, Row
from continuitybridge.inbox.neighbours import SHARE, Sparing

Item = tuple[Row, asyncio.Future[Accepted]]


class Waiting:
    """A queue for each organization. They take turns message by message, each in the order that its own came in.

    Who has more than its `SHARE` waiting floods. Alone, beside other floods only, or while the others do not feel
    it (`neighbours.Sparing`), it gets all there is room for; else a share of each group, so that theirs come with
    the next one, and it is a small one that they wait for.
    """

    def __init__(self) -> None:
        self._of: OrderedDict[UUID, deque[Item]] = OrderedDict()
        self._since: dict[UUID, float] = {}
        """Since when an organization has something waiting."""
        self._sparing = Sparing()
        self._held_back: set[UUID] = set()
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
        shares = self._shares()
        self._held_back.clear()
        dealt: Counter[UUID] = Counter()
        turns = deque(self._of)
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
        """The group taken last is on disk, which took so long; so long a flood in it rests before the next one."""
        now = time.monotonic()
        self._sparing.took(took_s)
        for organization_id, since in self._taken:
            self._sparing.waited(organization_id, now - since, now)
        return self._sparing.rest_s(took_s, now) if self._held_back else 0.0

    def take_all(self) -> list[Item]:
        """Everything that waits."""
        everything = [item for queue in self._of.values() for item in queue]
        self._of.clear()
        self._since.clear()
        self._count = self.size = 0
        return everything

    def _shares(self) -> dict[UUID, int]:
        """The bounds of those who are held back."""
        now = time.monotonic()
        self._taken.clear()
        flooding = []
        for organization_id, queue in self._of.items():
            if len(queue) > SHARE or organization_id in self._held_back:
                flooding.append(organization_id)
                self._sparing.floods(organization_id)
            else:
                self._taken.append((organization_id, self._since[organization_id]))
        shares = {each: self._sparing.share(each, now) for each in flooding}
        return {each: share for each, share in shares.items() if share is not None}
