"""Orders delivered per second in stream mode, sustained: sent at a fixed rate for a minute, counted at the sink.

What is sent more than delivered stands in the queue. It is looked at every `LOOK_S` seconds; its growth is the
slope of a line through what was seen after `WARM_S` seconds, as messages per second.
"""

from __future__ import annotations

import time

from benchmarks.figures import Figure
from benchmarks.load import orders, platform
from benchmarks.load.sender import Load, finish, start
from benchmarks.load.sink import Sink

TITLE = "Stream mode: order flow end to end, 202 at once (verify → parse → validate → jq → map → HTTP), sustained"

RATE_PER_S = 1_050.0
SECONDS = 60.0
CONNECTIONS = 64
WARM_S = 10.0
LOOK_S = 2.0


def figures(rounds: int = 5) -> list[Figure]:
    delivered, growth, queued, answered = [], [], [], []
    with Sink.start() as sink, platform.running(stream_workers=1) as ours:
        print(f"PostgreSQL: {ours.durability()}; one intake, one stream worker", flush=True)
        endpoint = ours.deploy(ours.organization(), orders.ORDER_FLOW, sink.url)
        for _ in range(rounds):
            sink.reset()
            sending = start(
                Load(
                    port=endpoint.port,
                    path=endpoint.path,
                    body=orders.ORDER,
                    secret=endpoint.secret,
                    connections=CONNECTIONS,
                    rate_per_s=RATE_PER_S,
                    seconds=SECONDS + WARM_S,
                )
            )
            seen = _watch(ours, sink)
            sent = finish(sending)
            if not ours.drained(120):
                raise RuntimeError(f"{ours.unsettled()} messages are left")
            if sink.count() < sent.accepted:
                raise RuntimeError(f"{sent.accepted} were accepted, {sink.count()} delivered")
            first, last = seen[0], seen[-1]
            delivered.append((last[2] - first[2]) / (last[0] - first[0]))
            growth.append(_slope([(at, queue) for at, queue, _ in seen]))
            queued.append(float(max(queue for _, queue, _ in seen)))
            answered.append(sent.p99_ms)
    return [
        Figure("delivered, counted at the sink", "/s", delivered, 1_000.0),
        Figure("growth of the queue", "messages/s", growth, 1.0, at_most=True),
        Figure("longest queue", "messages", queued),
        Figure("answered with 202, p99", "ms", answered),
    ]


def _watch(ours: platform.Platform, sink: Sink) -> list[tuple[float, int, int]]:
    """Time, queue and deliveries, again and again."""
    platform.pause(WARM_S)
    seen: list[tuple[float, int, int]] = []
    until = time.perf_counter() + SECONDS - LOOK_S
    while time.perf_counter() < until:
        seen.append((time.perf_counter(), ours.unsettled(), sink.count()))
        platform.pause(LOOK_S)
    return seen


def _slope(points: list[tuple[float, int]]) -> float:
    """Least squares."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    above = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return above / (sum((x - mean_x) ** 2 for x, _ in points) or 1.0)
