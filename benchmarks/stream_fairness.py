"""What one organization's flood does to another's deliveries in stream mode.

A quiet organization sends `QUIET_PER_S` orders a second, alone and beside another one's flood; a message's time
counts from when its request was written to when its destination got it. Two floods, in interleaved pairs:

- *backlog*: the other has more messages waiting than it can get rid of, because its destination takes
  `SLOW_MS` for each. What it takes from others are places in the worker, not processor time.
- *burst*: the other sends as fast as it is answered over `BURST_CONNECTIONS` connections, its deliveries included.
  Then both also share two cores with the database, and with the quiet one's sender and destination. The flood's
  stand for other machines: they get what is left of the processors.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks.figures import Figure, interleaved
from benchmarks.load import orders, platform
from benchmarks.load.sender import Load, finish, send, start
from benchmarks.load.sink import Sink

TITLE = "Stream mode: one organization's deliveries beside another's flood"

QUIET_PER_S = 40.0
SECONDS = 10.0
QUIET_CONNECTIONS = 8
BACKLOG = 8_000
SLOW_MS = 400
BURST_CONNECTIONS = 50
ELSEWHERE = 10


def figures(rounds: int = 7) -> list[Figure]:
    found: list[Figure] = []
    for flood in ("backlog", "burst"):
        alone, beside = _pairs(flood, rounds)
        ratios = [with_flood / still for still, with_flood in zip(alone, beside, strict=True)]
        found += [
            Figure(f"{flood}: the quiet one's p99 beside it, of that alone", "x", ratios, 1.5, at_most=True),
            Figure(f"{flood}: p99 alone", "ms", alone),
            Figure(f"{flood}: p99 beside it", "ms", beside),
        ]
    return found


def _pairs(flood: str, rounds: int) -> tuple[list[float], list[float]]:
    with Sink.start() as sink, Sink.start(niceness=ELSEWHERE) as slow, platform.running(used=True) as ours:
        quiet = ours.deploy(ours.organization(), orders.ORDER_FLOW, sink.url)
        loud = ours.deploy(ours.organization(), orders.ORDER_FLOW, slow.url)
        if flood == "backlog":
            slow.behave(delay_ms=SLOW_MS)

        def still() -> float:
            return _p99_ms(sink, quiet)

        def beside() -> float:
            if flood == "backlog":
                send(_load(loud, 100, count=BACKLOG))
                taken = _p99_ms(sink, quiet)
                if not ours.unsettled():
                    raise RuntimeError("the backlog was gone before the round was over")
                slow.behave(delay_ms=0)
            else:
                noise = start(_load(loud, BURST_CONNECTIONS, seconds=SECONDS + 2), niceness=ELSEWHERE)
                platform.pause(1.0)
                taken = _p99_ms(sink, quiet)
                finish(noise)
            if not ours.drained(120):
                raise RuntimeError("the flood did not drain")
            if flood == "backlog":
                slow.behave(delay_ms=SLOW_MS)
            return taken

        alone, with_flood = interleaved(rounds, [still, beside])
    return alone, with_flood


def _load(to: platform.Endpoint, connections: int, *, count: int = 0, seconds: float = 60.0) -> Load:
    return Load(
        port=to.port,
        path=to.path,
        body=orders.ORDER,
        secret=to.secret,
        connections=connections,
        count=count,
        seconds=seconds,
    )


def _p99_ms(sink: Sink, quiet: platform.Endpoint) -> float:
    """Of one round, from webhook to delivery."""
    sink.reset()
    wanted = int(QUIET_PER_S * SECONDS)
    with tempfile.NamedTemporaryFile(suffix=".ledger") as file:
        load = Load(
            port=quiet.port,
            path=quiet.path,
            body=orders.ORDER,
            secret=quiet.secret,
            connections=QUIET_CONNECTIONS,
            rate_per_s=QUIET_PER_S,
            count=wanted,
            seconds=SECONDS + 60,
            ledger=file.name,
        )
        sent = send(load)
        began = {message_id: at for message_id, at, _ in map(json.loads, Path(file.name).read_text().splitlines())}
    if sent.accepted != wanted:
        raise RuntimeError(f"the quiet one was refused: {sent.statuses}, {sent.errors} errors")
    for _ in range(300):
        arrived = {key.partition(":")[0]: at for key, at in reversed(sink.ledger())}
        if arrived.keys() >= began.keys():
            break
        platform.pause(0.1)
    times = sorted(arrived[message_id] - at for message_id, at in began.items())
    return times[len(times) * 99 // 100] * 1000
