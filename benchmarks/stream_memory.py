"""What a stream worker and an intake take after a million messages, against after ten thousand; and what a stream
worker costs that has nothing to do.

Requests wait for their flow's result over `CONNECTIONS` connections, so that the load is what is delivered and no
queue stands between. They are sent twice: to an intake that leaves all messages to the stream worker, and to one
that runs them itself. Memory is that of a process and its descendants, shared pages by their share, taken when all
is quiet. `BENCH_MESSAGES` sends fewer than a million.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from benchmarks.figures import Figure
from benchmarks.load import orders, platform
from benchmarks.load.sender import Load, send
from benchmarks.load.sink import Sink

TITLE = "Stream mode: memory after a million messages, and idle cost"

CONNECTIONS = 64
FEW = 10_000
MANY = int(os.environ.get("BENCH_MESSAGES", "1000000"))
QUIET_S = 5.0
IDLE_S = 20.0
MIB = 1024.0 * 1024.0


def figures(rounds: int = 5) -> list[Figure]:
    idle: list[float] = []
    found = _grown(("stream", "intake"), rounds, idle, BRIDGE_INTAKE_LANES="0")
    found += _grown(("intake",), 0, idle)
    return [Figure("one stream worker with nothing to do", "% of a core", idle, 1.0, at_most=True), *found]


def _grown(names: Sequence[str], rounds: int, idle: list[float], **environment: str) -> list[Figure]:
    """What these processes have grown by, and so many samples of an idle stream worker."""
    alone = "" if environment else " that runs messages itself"
    with Sink.start() as sink, platform.running(**environment) as ours:
        endpoint = ours.deploy(ours.organization(), orders.REPLY_FLOW, sink.url)
        _send(endpoint, FEW)
        few = _memory(ours)
        platform.pause(QUIET_S)
        for _ in range(rounds):
            before, began = ours.cpu_s("stream"), time.perf_counter()
            platform.pause(IDLE_S)
            idle.append((ours.cpu_s("stream") - before) / (time.perf_counter() - began) * 100)
        _send(endpoint, MANY - FEW)
        many = _memory(ours)
    found = []
    for name in names:
        found += [
            Figure(f"{name}{alone}: after {FEW:,} messages", "MiB", [few[name] / MIB]),
            Figure(f"{name}{alone}: after {MANY:,} messages", "MiB", [many[name] / MIB]),
            Figure(f"{name}{alone}: the one by the other", "times", [many[name] / few[name]], 1.1, at_most=True),
        ]
    return found


def _send(endpoint: platform.Endpoint, count: int) -> None:
    load = Load(
        port=endpoint.port,
        path=endpoint.path,
        body=orders.ORDER,
        secret=endpoint.secret,
        connections=CONNECTIONS,
        seconds=6 * 3600.0,
        count=count,
    )
    sent = send(load)
    if sent.accepted != count:
        raise RuntimeError(f"{sent.statuses} of {count}, {sent.errors} errors")


def _memory(ours: platform.Platform) -> dict[str, int]:
    if not ours.drained(60):
        raise RuntimeError(f"{ours.unsettled()} messages are left")
    platform.pause(QUIET_S)
    return {name: ours.memory_bytes(name) for name in ("stream", "intake")}
