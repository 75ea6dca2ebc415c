"""What a message costs the processor on its way through a stream worker's lane: in the node process and in the
loop that feeds it, with and without a delivery over HTTP to a sink on this machine.

Processor time is what counts where intake, database, worker, nodes, sender and sink share two cores; other work on
the machine changes it less than it changes the time on the wall.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson
import psutil
from benchmarks.engine_throughput import ORDER
from benchmarks.figures import Figure
from benchmarks.load.sink import Sink

from continuitybridge.engine.lane import Lane
from continuitybridge.engine.limits import Limits
from continuitybridge.engine.message import Message, Outcome
from continuitybridge.engine.runner import Runner
from continuitybridge.flows.lint import check
from continuitybridge.flows.load import load_flow
from continuitybridge.flows.plan import compile_flow
from continuitybridge.nodes.base import ConnectionInfo

TITLE = "Cost of a delivery"

PARSED = """
flow: order
version: 1.0.0
triggers:
  - {id: order-in, type: manual_trigger}
steps:
  - {id: parse, type: json_parser}
"""
DELIVERED = (
    PARSED
    + """  - id: deliver
    type: http_request
    config: {connection: warehouse, path: '/orders/{{ body.po_number }}'}
"""
)
MESSAGES = 300


class _Services:
    def __init__(self, url: str) -> None:
        self._found = ConnectionInfo("warehouse", url, {}, {"type": "bearer", "token": "benchmark"})

    async def connection(self, name: str, *, refused: int | None = None) -> ConnectionInfo:
        return self._found

    def log(self, level: str, text: str, fields: Any) -> None:
        """Nothing is to be seen."""


class _Course:
    """Runs messages through one lane, so many at once as a stream worker gives it."""

    def __init__(self, runner: Runner, text: str, url: str) -> None:
        loaded = load_flow(text)
        check(loaded)
        self._ended = asyncio.Event()
        self._left = 0
        self._pid = 0
        self._lane = Lane(
            runner,
            compile_flow(loaded.flow),
            services=_Services(url),
            limits=Limits(),
            on_outcome=self._told,
            results=False,
        )
        self._body = orjson.dumps(ORDER)

    async def start(self) -> None:
        before = _node_processes()
        await self._lane.start()
        (self._pid,) = _node_processes() - before

    async def aclose(self) -> None:
        await self._lane.aclose()

    async def carry(self) -> tuple[float, float]:
        """Microseconds of the processor for each message: in the node process, in this one."""
        ours, nodes = time.process_time(), _taken_s(self._pid)
        self._ended.clear()
        self._left = MESSAGES
        for number in range(MESSAGES):
            self._lane.submit(Message(f"m{number}", self._body, {"content-type": "application/json"}))
        await self._ended.wait()
        return (_taken_s(self._pid) - nodes) / MESSAGES * 1e6, (time.process_time() - ours) / MESSAGES * 1e6

    def _told(self, token: Any, outcome: Outcome) -> None:
        if outcome.status != "done":
            raise SystemExit(f"a message failed: {outcome.failures}")
        self._left -= 1
        if not self._left:
            self._ended.set()


def _node_processes() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True) if child.name() == "bridge-nodes"}


def _taken_s(pid: int) -> float:
    """What the process has taken of the processors, to the nanosecond (see clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def figures(rounds: int = 30) -> list[Figure]:
    """The whole way with a delivery, and without for comparison."""
    return asyncio.run(_figures(rounds))


async def _figures(rounds: int) -> list[Figure]:
    nodes: dict[str, list[float]] = {"parsed": [], "parsed and delivered": []}
    ours: dict[str, list[float]] = {name: [] for name in nodes}
    with Runner() as runner, Sink.start() as sink:
        courses = {
            name: _Course(runner, text, sink.url) for name, text in zip(nodes, (PARSED, DELIVERED), strict=True)
        }
        for course in courses.values():
            await course.start()
            await course.carry()
        for _ in range(rounds):
            for name, course in courses.items():
                in_nodes, here = await course.carry()
                nodes[name].append(in_nodes)
                ours[name].append(here)
        for course in courses.values():
            await course.aclose()
    unit = "µs of a core a message"
    delivered = [
        both - parsed for both, parsed in zip(nodes["parsed and delivered"], nodes["parsed"], strict=True)
    ]
    return [
        Figure("delivery over HTTP, in the node process", unit, delivered, 250.0, at_most=True),
        Figure(
            "parsed and delivered, in the process that feeds it",
            unit,
            ours["parsed and delivered"],
            150.0,
            at_most=True,
        ),
        Figure("parsed, in the node process", unit, nodes["parsed"], 150.0, at_most=True),
        Figure("parsed, in the process that feeds it", unit, ours["parsed"]),
    ]
