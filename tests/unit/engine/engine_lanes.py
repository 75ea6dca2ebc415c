"""Lanes for the tests, and what came out of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from engine_runs import messages, plan_of

from continuitybridge.engine.lane import Lane
from continuitybridge.engine.limits import Limits
from continuitybridge.engine.message import Message, Outcome
from continuitybridge.engine.runner import Runner
from continuitybridge.errors import NotFound
from continuitybridge.nodes.base import ConnectionInfo


class Services:
    def __init__(self, found: ConnectionInfo | Exception | None = None) -> None:
        self.found = found
        self.asked: list[str] = []
        self.lines: list[str] = []

    async def connection(self, name: str, *, refused: int | None = None) -> ConnectionInfo:
        self.asked.append(name)
        await asyncio.sleep(0)
        if isinstance(self.found, ConnectionInfo):
            return self.found
        raise self.found or NotFound(f"there is no connection {name!r}")

    def log(self, level: str, text: str, fields: Any) -> None:
        self.lines.append(text)


class Told:
    """A lane's outcomes by token; each token must come once."""

    def __init__(self, own: Runner, text: str, **more: Any) -> None:
        self.outcomes: dict[Any, Outcome] = {}
        more.setdefault("services", Services())
        more.setdefault("limits", Limits())
        self.lane = Lane(own, plan_of(text), on_outcome=self.take, **more)

    def take(self, token: Any, outcome: Outcome) -> None:
        assert token not in self.outcomes
        self.outcomes[token] = outcome

    def submit(self, *contents: Any, id: str | None = None) -> None:
        """Messages m1, m2, …, or all with the same id; the tokens are 1, 2, …"""
        for n, message in enumerate(messages(*contents), len(self.outcomes) + 1):
            self.lane.submit(Message(id or message.id, message.body), token=n)

    async def all(self, timeout_s: float = 60) -> dict[Any, Outcome]:
        await until(lambda: not self.lane.under_way, timeout_s)
        return self.outcomes


async def until(true: Callable[[], Any], timeout_s: float = 30) -> Any:
    ends = time.monotonic() + timeout_s
    while not (value := true()):
        assert time.monotonic() < ends, "it did not happen"
        await asyncio.sleep(0.01)
    return value
