"""Whose messages are taken next: organizations in turns, and within an organization its flows in turns."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from uuid import UUID

from continuitybridge.inbox.batches import FlowKey

MOST_FLOWS = 32
"""So many flows are asked for in one claim; the others come next."""


class Turns:
    """The flows that are believed to have something to do."""

    def __init__(self) -> None:
        self._organizations: OrderedDict[UUID, OrderedDict[FlowKey, None]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._organizations)

    def __contains__(self, flow: FlowKey) -> bool:
        return flow in self._organizations.get(flow[0], ())

    def add(self, flow: FlowKey) -> None:
        """It has something to do; it gets its turn after those that wait already."""
        self._organizations.setdefault(flow[0], OrderedDict()).setdefault(flow)

    def discard(self, flow: FlowKey) -> None:
        """It has nothing to do any more, as far as is known."""
        flows = self._organizations.get(flow[0])
        if flows is not None:
            flows.pop(flow, None)
            if not flows:
                del self._organizations[flow[0]]

    def drop(self, organization_id: UUID) -> None:
        """Forget all of an organization's."""
        self._organizations.pop(organization_id, None)

    def choose(
        self, room: int, allowance: Callable[[UUID], int], most_flows: int = MOST_FLOWS
    ) -> dict[FlowKey, int]:
        """How many units of which flows to take: `room` in all, of an organization at most `allowance` of it.

        Dealt out one by one, so that no organization gets a second before each of the others got its first, and
        within it no flow. Who is left out this time is first the next time.
        """
        chosen: dict[FlowKey, int] = {}
        left: dict[UUID, int] = {}
        dealing: deque[UUID] = deque()
        for organization_id in self._organizations:
            most = allowance(organization_id)
            if most > 0:
                left[organization_id] = most
                dealing.append(organization_id)
        dealt: Counter[UUID] = Counter()
        while room > 0 and dealing:
            organization_id = dealing.popleft()
            flows = self._organizations[organization_id]
            flow = next(iter(flows))
            if flow not in chosen and len(chosen) >= most_flows:
                among = next((each for each in flows if each in chosen), None)
                if among is None:
                    continue
                flow = among
            chosen[flow] = chosen.get(flow, 0) + 1
            flows.move_to_end(flow)
            room -= 1
            dealt[organization_id] += 1
            if dealt[organization_id] < left[organization_id]:
                dealing.append(organization_id)
        for organization_id in dealt:
            self._organizations.move_to_end(organization_id)
        return chosen


class Room:
    """How much one worker holds, and of whom: bounded in units and bytes.

    An organization may hold as much as is still free, and no more: alone it fills half of the room, two fill a
    third each. So there is always room for one that had nothing under way, however slow the others' destinations.
    """

    def __init__(self, units: int, size: int) -> None:
        self._units = units
        self._size = size
        self._held = 0
        self._held_size = 0
        self._of: Counter[UUID] = Counter()

    @property
    def held(self) -> int:
        return self._held

    @property
    def free(self) -> int:
        """Units for which there is room."""
        return self._units - self._held if self._held_size < self._size else 0

    @property
    def free_size(self) -> int:
        """Bytes for which there is room; one unit may take more."""
        return max(1, self._size - self._held_size)

    def allowance(self, organization_id: UUID) -> int:
        """How many units more the organization may hold."""
        return max(0, (self.free - self._of[organization_id] + 1) // 2)

    def holds_of(self, organization_id: UUID) -> int:
        """How many units of the organization are held."""
        return self._of[organization_id]

    def take(self, organization_id: UUID, size: int) -> None:
        self._held += 1
        self._held_size += size
        self._of[organization_id] += 1

    def give_back(self, organization_id: UUID, size: int) -> None:
        self._held -= 1
        self._held_size -= size
        self._of[organization_id] -= 1
        if not self._of[organization_id]:
            del self._of[organization_id]
