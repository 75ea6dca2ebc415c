"""The gate before outside calls, in the process that makes them: `Destinations`, with a queue where there is no
room."""

from __future__ import annotations

import asyncio
from collections import deque

from continuitybridge.engine.destinations import OF_OTHERS, Destinations, DestinationState


class Gate:
    """Lets a call to a destination begin, or makes it wait while as many as may be are under way; who waits
    longest goes first. Where there is room, a call costs two look-ups."""

    __slots__ = ("_destinations", "_queues")

    def __init__(self, destinations: Destinations) -> None:
        self._destinations = destinations
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}

    def put(self, state: DestinationState) -> None:
        """What is now said of a destination: who waits for it learns what it means for him."""
        self._destinations.put(state)
        for name in [state.name] if state.name != OF_OTHERS else list(self._queues):
            self._wake(name, len(self._queues.get(name, ())))

    async def enter(self, name: str) -> None:
        """Wait for room and begin a call; `leave` must follow. Raises `DestinationPaused` or `CircuitOpen`,
        without waiting for room."""
        if not self._destinations.has_room(name) and not self._destinations.is_closed(name):
            await self._room(name)
        try:
            self._destinations.enter(name)
        except BaseException:
            self._wake(name, 1)
            raise

    def leave(self, name: str, error: BaseException | None) -> None:
        """The call ended: well, or with `error`."""
        self._destinations.leave(name, error)
        self._wake(name, 1)

    async def _room(self, name: str) -> None:
        queue = self._queues.setdefault(name, deque())
        enqueue = queue.append
        while not self._destinations.has_room(name) and not self._destinations.is_closed(name):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            enqueue(waiter)
            try:
                await waiter
            except BaseException:
                if waiter in queue:
                    queue.remove(waiter)
                else:
                    self._wake(name, 1)
                raise
            # Another came between: it keeps its place.
            enqueue = queue.appendleft

    def _wake(self, name: str, most: int) -> None:
        """Wake as many as have room; all of those who may not call at all."""
        queue = self._queues.get(name)
        if not queue:
            return
        room = len(queue) if self._destinations.is_closed(name) else min(most, self._destinations.room(name))
        for _ in range(min(room, len(queue))):
            waiter = queue.popleft()
            if not waiter.done():
                waiter.set_result(None)
