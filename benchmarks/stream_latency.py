"""From webhook to delivery in stream mode at 50 messages a second, beside a bare no-op DAG run of Airflow's.

Each round sends `MESSAGES` orders at a fixed rate over `CONNECTIONS` connections. A message's time counts from the
moment its request was written to the moment the destination got it: both are written down outside of the platform,
by the sender and by the sink, and matched by the message's id. The no-op is a DAG of one Python task that does
nothing, timed from the request that triggers it to its run's end, on a platform of its own just before.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.load import orders, platform
from benchmarks.load.sender import Load, send
from benchmarks.load.sink import Sink

TITLE = "Stream mode: webhook → delivered at 50 messages/s (verify → parse → validate → jq → map → HTTP)"

RATE_PER_S = 50.0
MESSAGES = 1_000
CONNECTIONS = 8
NOOPS = 5


def figures(rounds: int = 5) -> list[Figure]:
    noop_ms = _noops_ms()
    p50s, p99s = [], []
    with Sink.start() as sink, platform.running() as ours:
        print(f"PostgreSQL: {ours.durability()}", flush=True)
        endpoint = ours.deploy(ours.organization(), orders.ORDER_FLOW, sink.url)
        for number in range(rounds + 1):
            times = sorted(_delivery_ms(sink, endpoint))
            if number:  # the first warms things up
                p50s.append(times[len(times) // 2])
                p99s.append(times[len(times) * 99 // 100])
    noop = statistics.median(noop_ms)
    return [
        Figure("webhook → delivered, p50", "ms", p50s, 10.0, at_most=True),
        Figure("webhook → delivered, p99", "ms", p99s, 50.0, at_most=True),
        Figure("bare Airflow no-op run", "ms", noop_ms),
        Figure("no-op run / webhook → delivered (p50)", "times", [noop / p50 for p50 in p50s], 50.0),
    ]


def _delivery_ms(sink: Sink, endpoint: platform.Endpoint) -> list[float]:
    sink.reset()
    with tempfile.NamedTemporaryFile(suffix=".ledger") as file:
        sent = send(
            Load(
                port=endpoint.port,
                path=endpoint.path,
                body=orders.ORDER,
                secret=endpoint.secret,
                connections=CONNECTIONS,
                rate_per_s=RATE_PER_S,
                count=MESSAGES,
                seconds=MESSAGES / RATE_PER_S + 30,
                ledger=file.name,
            )
        )
        began = {message_id: at for message_id, at, _ in map(json.loads, Path(file.name).read_text().splitlines())}
    if sent.accepted != MESSAGES:
        raise RuntimeError(f"{sent.statuses} of {MESSAGES}, {sent.errors} errors")
    arrived: dict[str, float] = {}
    for _ in range(100):
        arrived = {key.partition(":")[0]: at for key, at in reversed(sink.ledger())}
        if len(arrived) >= MESSAGES:
            break
        platform.pause(0.1)
    return [(arrived[message_id] - at) * 1000 for message_id, at in began.items()]


def _noops_ms() -> list[float]:
    from benchmarks import batch_latency

    return [seconds * 1000 for seconds in batch_latency.noops(NOOPS)]
