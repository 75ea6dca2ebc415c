"""Durable accepts per second at 100 connections, with HMAC (Standard Webhooks) and endpoint lookup: each is
answered when its row is on disk. One process of `bridge intake`, and Airflow's api-server with intake mounted; the
sender, that process and PostgreSQL share the machine, and nobody takes the messages.

Beside it in each round: the same route whose commit writes nothing, which is what HTTP, lookup, verification and
encryption leave room for; and the same statement committed one message at a time, `SINGLE` at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
from benchmarks.figures import Figure, interleaved
from benchmarks.load import orders, platform
from benchmarks.load.sender import Load, Sent, send

from continuitybridge.inbox.accept import Acceptance
from continuitybridge.inbox.accept.aio import GroupCommit
from continuitybridge.organizations import Organization
from continuitybridge.vault.keyring import Keyring

TITLE = "Intake: durable accepts, 100 connections, HMAC and endpoint lookup"

CONNECTIONS = 100
SECONDS = 6.0
SINGLE = 16
START_S = 300.0

FLOW = """
flow: accept
version: 1.0.0
triggers:
  - {id: in, type: webhook_trigger, config: {slug: accept}}
steps:
  - {id: note, type: logger, config: {message: got it}}
"""


def figures(rounds: int = 5) -> list[Figure]:
    alone: list[Sent] = []
    mounted: list[Sent] = []
    empty: list[Sent] = []
    with (
        platform.running(stream_workers=0) as ours,
        _api_server(ours) as api_port,
        _without_database() as empty_port,
    ):
        print(f"PostgreSQL: {ours.durability()}; one intake process, one api-server process", flush=True)
        organization = ours.organization()
        endpoint = ours.deploy(organization, FLOW, "http://127.0.0.1:9")
        measures: list[Callable[[], float]] = [
            lambda: _sent(endpoint, endpoint.port, alone),
            lambda: _sent(endpoint, api_port, mounted),
            lambda: _sent(endpoint, empty_port, empty),
            lambda: asyncio.run(_single_commits(organization)),
        ]
        alone_s, mounted_s, empty_s, single_s = interleaved(rounds, measures)
        intake_us = ours.cpu_s("intake") * 1e6 / sum(each.accepted for each in alone)
    return [
        Figure("bridge intake, one process", "accepts/s", alone_s, 5_000.0),
        Figure("bridge intake: p99", "ms", [each.p99_ms for each in alone[1:]], 50.0, at_most=True),
        Figure("bridge intake: p50", "ms", [each.p50_ms for each in alone[1:]]),
        Figure("bridge intake: its processor time, start included", "µs/accept", [intake_us]),
        Figure("mounted in Airflow's api-server, one process", "accepts/s", mounted_s, 2_000.0),
        Figure("mounted: p99", "ms", [each.p99_ms for each in mounted[1:]]),
        Figure("the same route without a database", "accepts/s", empty_s),
        Figure(f"PostgreSQL, one message a commit, {SINGLE} at once", "commits/s", single_s),
    ]


def _sent(endpoint: platform.Endpoint, port: int, into: list[Sent]) -> float:
    sent = send(
        Load(
            port=port,
            path=endpoint.path,
            body=orders.ORDER,
            secret=endpoint.secret,
            connections=CONNECTIONS,
            seconds=SECONDS,
        )
    )
    if sent.errors or set(sent.statuses) != {"202"}:
        raise RuntimeError(f"port {port}: {sent.statuses}, {sent.errors} errors")
    into.append(sent)
    return sent.per_s


async def _single_commits(organization: Organization) -> float:
    """Messages per second where each has a commit of its own."""
    keys = Keyring.open()
    keys.export(organization.organization_id)
    body = orders.ORDER.encode()
    committed = 0
    async with contextlib.AsyncExitStack() as stack:
        writers = [await stack.enter_async_context(GroupCommit(keys, max_group=1)) for _ in range(SINGLE)]

        async def write(number: int, writer: GroupCommit) -> None:
            nonlocal committed
            while time.perf_counter() < until:
                await writer.submit(
                    Acceptance(
                        organization_id=organization.organization_id,
                        environment=platform.ENVIRONMENT,
                        flow="accept",
                        version="1.0.0",
                        source="webhook",
                        body=body,
                        endpoint="accept",
                        idempotency_key=f"{number}-{time.perf_counter_ns()}",
                        mode="stream",
                    )
                )
                committed += 1

        began = time.perf_counter()
        until = began + SECONDS
        await asyncio.gather(*(write(number, writer) for number, writer in enumerate(writers)))
        return committed / (time.perf_counter() - began)


@contextlib.contextmanager
def _api_server(ours: platform.Platform) -> Iterator[int]:
    """Airflow's api-server with our plugin, on the same database."""
    command = [str(Path(sys.executable).with_name("bridge")), "airflow", "db", "migrate"]
    subprocess.run(command, check=True, capture_output=True)
    port = platform.free_port()
    ours.start("api-server", "airflow", "api-server", "--port", str(port), "--workers", "1")
    _await(f"http://127.0.0.1:{port}/bridge/health/live", lambda: ours.log("api-server"))
    yield port


@contextlib.contextmanager
def _without_database() -> Iterator[int]:
    """Intake whose commits write nothing."""
    port = platform.free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.load.without_database", str(port)])
    try:
        _await(f"http://127.0.0.1:{port}/bridge/health/live", lambda: "")
        yield port
    finally:
        process.terminate()
        process.wait()


def _await(url: str, log: Callable[[], str]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=5).is_success:
                return
        time.sleep(0.2)
    raise RuntimeError(f"{url} does not answer: {log()[-2000:]}")
