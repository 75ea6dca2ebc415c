"""Runs plans in the caller's own process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping

from continuitybridge.engine import frames, replies
from continuitybridge.engine.calls import Calls
from continuitybridge.engine.chain import Chain
from continuitybridge.engine.copies import copy_of
from continuitybridge.engine.limits import Limits
from continuitybridge.engine.message import Message, Outcome
from continuitybridge.engine.progress import Progress
from continuitybridge.engine.session import refusal, refused
from continuitybridge.engine.walk import Walk
from continuitybridge.flows.plan import Plan
from continuitybridge.nodes.base import Services


def run_inline(
    plan: Plan,
    messages: Iterable[Message],
    *,
    services: Services,
    limits: Limits,
    stage: str | None = None,
    entry: Mapping[str, str] | None = None,
    emulate: bool = False,
    organization: str = "",
    environment: str = "",
    concurrency: int = 8,
) -> Iterator[Outcome]:
    """As `run`, in this process: limits on time and memory do not hold, and a crash is a crash. With outside calls
    in the plan it runs an event loop of its own, so not from within one."""
    chain = Chain(plan, stage=stage, emulate=emulate, limits=limits)
    chain.begin(services, now=time.time(), organization=organization, environment=environment)
    inline = _Inline(chain, entry or {}, limits)
    if chain.is_async:
        yield from inline.run_async(iter(messages), max(1, concurrency))
    else:
        for message in messages:
            yield inline.run(message)


class _Inline:
    def __init__(self, chain: Chain, entry: Mapping[str, str], limits: Limits) -> None:
        self._chain = chain
        self._entry = entry
        self._limits = limits
        self._nodes = list(chain.plan.nodes)
        self._progress = Progress()

    def run(self, message: Message) -> Outcome:
        walk = self._begin(message)
        if isinstance(walk, Outcome):
            return walk
        walk.run(self._entry.get(message.id))
        return self._outcome(message, walk)

    def run_async(self, messages: Iterator[Message], concurrency: int) -> Iterator[Outcome]:
        with asyncio.Runner() as loop_runner:
            loop = loop_runner.get_loop()
            calls = Calls(concurrency)
            tasks: set[asyncio.Task[Outcome]] = set()
            try:
                more = True
                while more or tasks:
                    while more and len(tasks) < concurrency:
                        message = next(messages, None)
                        if message is None:
                            more = False
                            break
                        tasks.add(loop.create_task(self._walk(message, calls)))
                    if tasks:
                        first = asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                        done, tasks = loop.run_until_complete(first)
                        for task in done:
                            yield task.result()
            finally:
                loop.run_until_complete(self._chain.aclose())

    async def _walk(self, message: Message, calls: Calls) -> Outcome:
        walk = self._begin(message)
        if isinstance(walk, Outcome):
            return walk
        await walk.run_async(self._entry.get(message.id), calls)
        return self._outcome(message, walk)

    def _begin(self, message: Message) -> Walk | Outcome:
        problem = refusal(message, self._limits)
        if problem is not None:
            return refused(self._chain.plan, message, problem, self._entry.get(message.id))
        return Walk(self._chain, 0, copy_of(message), self._progress)

    def _outcome(self, message: Message, walk: Walk) -> Outcome:
        outputs = frames.unpack_outputs(frames.seal(walk, self._limits))
        outcome = frames.outcome_of(message.id, self._nodes, outputs, walk.failures, walk.trace(), walk.keys)
        asked = replies.wanted(walk)
        if asked is not None:
            outcome.reply = replies.make(walk, asked, self._limits)
        return outcome
