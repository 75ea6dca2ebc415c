"""`reply: result`: from the request to the flow's answer, and requests per second counted at the sink at 1, 10 and
100 connections, beside Node-RED and n8n with the same flow (webhook → map → HTTP → reply).

Ours verifies an HMAC, stores each message durably before it runs, and its outcome before it answers; the peers do
neither (Node-RED stores nothing, n8n writes executions to SQLite). Beside it stands the same flow with
`when: ended`, which answers while the outcome is being stored. A peer that cannot be installed is left out,
loudly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from benchmarks.figures import Figure
from benchmarks.load import orders, platform
from benchmarks.load.sender import Load, send
from benchmarks.load.sink import Sink
from benchmarks.peers import n8n, node_red
from benchmarks.peers.npm import Missing

TITLE = "reply: result, like for like (webhook → map → HTTP → reply), counted at the sink"

CONNECTIONS = (1, 10, 100)
SECONDS = 5.0
WARM_S = 3.0
ROUND_TRIP = 500

Place = tuple[int, str, str]
"""Port, path, secret (empty: none)."""
Samples = dict[int, list[float]]

OURS = {"ours": orders.REPLY_FLOW, "ours, answered when ended": orders.REPLY_WHEN_ENDED_FLOW}
PEERS = {"Node-RED": node_red.running, "n8n": n8n.running}


def figures(rounds: int = 5) -> list[Figure]:
    round_trips: dict[str, list[float]] = {name: [] for name in OURS}
    measured = {name: _measure(_ours(flow), rounds, round_trips[name]) for name, flow in OURS.items()}
    for name, running in PEERS.items():
        try:
            measured[name] = _measure(_peer(running), rounds)
        except Missing as missing:
            print(f"SKIPPED {name}: {missing}", flush=True)
    found = [
        Figure(f"{name}: round trip, one connection, p50", "ms", samples, 8.0 if name == "ours" else None, True)
        for name, samples in round_trips.items()
    ]
    for connections in CONNECTIONS:
        found += [
            Figure(f"{name}, {connections} connections", "/s", samples[connections])
            for name, samples in measured.items()
        ]
        for ours in OURS:
            found += _ratios(measured, ours, connections)
    return found


def _ratios(measured: Mapping[str, Samples], ours: str, connections: int) -> list[Figure]:
    """Ours beside each peer's, round by round. What the default is to reach: half of Node-RED at one connection,
    ahead of it at more; fifteen times n8n at more than one."""
    reach: dict[str, float | None] = {"Node-RED": 0.5, "n8n": None}
    if connections > 1:
        reach = {"Node-RED": 1.0, "n8n": 15.0}
    return [
        Figure(
            f"{ours} / {peer}, {connections} connections",
            "times",
            [
                mine / theirs
                for mine, theirs in zip(measured[ours][connections], measured[peer][connections], strict=True)
            ],
            reach[peer] if ours == "ours" else None,
        )
        for peer in PEERS
        if peer in measured
    ]


def _measure(
    running: Callable[[Sink], AbstractContextManager[Place]], rounds: int, round_trips: list[float] | None = None
) -> Samples:
    samples: Samples = {connections: [] for connections in CONNECTIONS}
    with Sink.start() as sink, running(sink) as place:
        for connections in CONNECTIONS:
            _requests_per_s(sink, place, connections, WARM_S)
        for _ in range(rounds):
            if round_trips is not None:
                round_trips.append(send(_load(place, 1, 60.0, count=ROUND_TRIP)).p50_ms)
            for connections in CONNECTIONS:
                samples[connections].append(_requests_per_s(sink, place, connections, SECONDS))
    return samples


def _requests_per_s(sink: Sink, place: Place, connections: int, seconds: float) -> float:
    sink.reset()
    sent = send(_load(place, connections, seconds))
    wrong = {status: count for status, count in sent.statuses.items() if status != "200"}
    if wrong or sent.errors:
        raise RuntimeError(f"answers other than 200: {wrong}, {sent.errors} errors")
    return sink.count() / sent.seconds


def _load(place: Place, connections: int, seconds: float, count: int = 0) -> Load:
    port, path, secret = place
    return Load(
        port=port,
        path=path,
        body=orders.ORDER,
        secret=secret,
        connections=connections,
        seconds=seconds,
        count=count,
    )


def _ours(flow: str) -> Callable[[Sink], AbstractContextManager[Place]]:
    @contextmanager
    def place(sink: Sink) -> Iterator[Place]:
        with platform.running() as ours:
            print(f"PostgreSQL: {ours.durability()}; one intake, one stream worker", flush=True)
            endpoint = ours.deploy(ours.organization(), flow, sink.url)
            yield endpoint.port, endpoint.path, endpoint.secret

    return place


def _peer(
    running: Callable[[str], AbstractContextManager[tuple[int, str]]],
) -> Callable[[Sink], AbstractContextManager[Place]]:
    @contextmanager
    def place(sink: Sink) -> Iterator[Place]:
        with running(sink.url) as (port, path):
            yield port, path, ""

    return place
