"""Outside calls of walks: bounded, overlapping, and in time."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable, Generator
from time import monotonic_ns
from typing import Any, Protocol

from continuitybridge.engine.chain import Chain, Step
from continuitybridge.engine.message import Emit, Message, Park
from continuitybridge.engine.progress import Progress
from continuitybridge.errors import DeliveryFailed, DestinationClosed, NodeError

CHECKED_EVERY_S = 0.5
"""How exact a node's time limit for an outside call is; the node's own is exact and comes first."""


class Caller(Protocol):
    """What a call needs of the walk that it is part of."""

    chain: Chain
    progress: Progress

    def mark(self, step: Step, message: Message) -> None:
        """The step is busy with the message from now on."""

    def collect(self, step: Step, result: Any) -> list[Emit]:
        """What a node emitted; raises `NodeError`."""


class Calls:
    """The outside calls that are under way in one event loop, at most `most` at once.

    One timer looks after all of them, and only while there are any: a timer for each call would cost more than
    all else that is done here.
    """

    def __init__(self, most: int) -> None:
        self._room = asyncio.Semaphore(most)
        self._ends: dict[asyncio.Future[None], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def call(self, walk: Caller, step: Step, message: Message) -> tuple[Any, BaseException | None, int]:
        """What the node gave or raised, and how many microseconds it took."""
        gate = walk.chain.gate if step.destination else None
        if gate is not None:
            try:
                await gate.enter(step.destination)
            except DestinationClosed as closed:
                return None, closed, 0
        error: BaseException | None = asyncio.CancelledError()
        started = monotonic_ns()
        try:
            async with self._room:
                started = monotonic_ns()
                result, error = await self._answer(walk, step, message)
        finally:
            if gate is not None:
                gate.leave(step.destination, error)
        return result, error, (monotonic_ns() - started) // 1000

    async def _answer(self, walk: Caller, step: Step, message: Message) -> tuple[Any, BaseException | None]:
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()
        task = loop.create_task(_outside(walk, step, message))

        def answered(_: object) -> None:
            if not over.done():
                over.set_result(None)

        task.add_done_callback(answered)
        self._ends[over] = loop.time() + step.timeout_s
        if self._timer is None:
            self._timer = loop.call_later(CHECKED_EVERY_S, self._look, loop)
        try:
            await over
        finally:
            del self._ends[over]
        if not task.done():
            # Not awaited any longer: a call that ignores its cancellation must not hold the message.
            task.cancel()
            return None, _timed_out(step)
        if task.cancelled():
            return None, NodeError("the node's call was cancelled")
        error = task.exception()
        return (None, error) if error is not None else (task.result(), None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for over, ends in self._ends.items():
            if now >= ends and not over.done():
                over.set_result(None)
        self._timer = loop.call_later(CHECKED_EVERY_S, self._look, loop) if self._ends else None


async def _outside(walk: Caller, step: Step, message: Message) -> Any:
    return await marked(_awaited(walk, step, message), walk, step, message)


async def _awaited(walk: Caller, step: Step, message: Message) -> Any:
    try:
        result = await step.process(message, step.context)
    except SystemExit as error:  # asyncio would end the loop for it
        raise NodeError("the node asked the process to end") from error
    if result is None or isinstance(result, (Message, Emit, Park)):
        return result
    return walk.collect(step, result)


@types.coroutine
def marked(awaitable: Awaitable[Any], walk: Caller, step: Step, message: Message) -> Generator[Any, Any, Any]:
    """Await, with the node marked as busy while its own code runs and as idle while it waits: a program that
    blocks the loop is found by the watchdog, a slow destination is not."""
    progress = walk.progress
    steps = awaitable.__await__()
    send: Callable[[Any], Any] = steps.send
    argument: Any = None
    while True:
        walk.mark(step, message)
        try:
            waits_for = send(argument)
        except StopIteration as stop:
            return stop.value
        finally:
            progress.leave()
        send, argument = steps.send, None
        try:
            argument = yield waits_for
        except BaseException as error:
            send, argument = steps.throw, error


def _timed_out(step: Step) -> DeliveryFailed:
    return DeliveryFailed(f"the node did not end within its {step.timeout_s:g} s", timeout_s=step.timeout_s)
