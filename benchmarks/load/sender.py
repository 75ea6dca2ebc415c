"""Sends HTTP requests over a fixed number of connections: as fast as they are answered, or at a fixed rate.

`send(Load(...))` runs it in a process of its own and gives a `Sent`. Requests are written and answers read on raw
asyncio transports, some 40 µs of processor time each, signing included. A body may hold the text `{n}`, which
becomes the running number of the request.

At a fixed rate the latency counts from the moment a request was due, not from when a connection was free for it
(else a stalled server hides its own delay: coordinated omission).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Load:
    """`secret`: sign as Standard Webhooks 1.0 (`whsec_…`). `rate_per_s` 0: as fast as answered. Ends after
    `count` requests (0: no bound) or `seconds`. `ledger`: file that gets a JSON line `[id, sent, answered]` per
    2xx answer, times in seconds since the epoch; `id` is what the answer's JSON names so."""

    port: int
    path: str
    body: str
    connections: int = 1
    seconds: float = 10.0
    count: int = 0
    rate_per_s: float = 0.0
    host: str = "127.0.0.1"
    content_type: str = "application/json"
    secret: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    ledger: str = ""
    timeout_s: float = 30.0


@dataclass(frozen=True)
class Sent:
    """What came of it. `statuses` counts answers by status; `errors` connections lost without an answer.
    Latencies in milliseconds, of 2xx answers."""

    sent: int
    statuses: dict[str, int]
    errors: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_s: float

    @property
    def accepted(self) -> int:
        return sum(count for status, count in self.statuses.items() if status.startswith("2"))

    @property
    def per_s(self) -> float:
        return self.accepted / self.seconds if self.seconds else 0.0


def start(load: Load, *, niceness: int = 0) -> subprocess.Popen[str]:
    """Begin to send, in a process of its own; `finish` waits for it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load.sender", json.dumps(asdict(load))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    os.setpriority(os.PRIO_PROCESS, process.pid, niceness)
    return process


def finish(process: subprocess.Popen[str]) -> Sent:
    said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the sender ended with {process.returncode}")
    return Sent(**json.loads(said))


def send(load: Load) -> Sent:
    """Send all of it, in a process of its own."""
    return finish(start(load))


class _Run:
    def __init__(self, load: Load) -> None:
        self.load = load
        self.number = 0
        self.statuses: dict[str, int] = {}
        self.errors = 0
        self.latencies: list[float] = []
        self.ledger = open(load.ledger, "a") if load.ledger else None  # noqa: SIM115
        self.until = time.perf_counter() + load.seconds
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.open = 0
        self.idle: deque[_Connection] = deque()
        self.due: deque[float] = deque()
        self._key = base64.b64decode(load.secret.removeprefix("whsec_")) if load.secret else b""
        fixed = {"host": f"{load.host}:{load.port}", "content-type": load.content_type, **load.headers}
        self._head = f"POST {load.path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fixed.items())
        self._numbered = "{n}" in load.body
        self._body = load.body.encode()
        self._mark = f"{time.time_ns():x}"

    def wants_more(self) -> bool:
        if self.load.count and self.number >= self.load.count:
            return False
        return time.perf_counter() < self.until

    def request(self) -> bytes:
        self.number += 1
        body = self._body
        if self._numbered:
            body = self.load.body.replace("{n}", str(self.number)).encode()
        head = f"{self._head}content-length: {len(body)}\r\n"
        if self._key:
            message_id, at = f"msg_{self._mark}_{self.number}", int(time.time())
            signed = hmac.digest(self._key, f"{message_id}.{at}.".encode() + body, hashlib.sha256)
            head += (
                f"webhook-id: {message_id}\r\nwebhook-timestamp: {at}\r\n"
                f"webhook-signature: v1,{base64.b64encode(signed).decode()}\r\n"
            )
        return head.encode() + b"\r\n" + body

    def answered(self, status: str, body: bytes, due: float, began: float) -> None:
        now = time.perf_counter()
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status[0] == "2":
            self.latencies.append(now - due)
            if self.ledger is not None:
                wall = time.time()
                message_id = json.loads(body).get("id") if body[:1] == b"{" else None
                self.ledger.write(json.dumps([message_id, wall - (now - began), wall]) + "\n")

    def left(self) -> None:
        self.open -= 1
        if self.open == 0 and not self.finished.done():
            self.finished.set_result(None)

    async def pace(self) -> None:
        """Hand out requests as they fall due."""
        interval, started = 1.0 / self.load.rate_per_s, time.perf_counter()
        handed = 0
        while self.wants_more():
            now = time.perf_counter()
            while handed * interval <= now - started and not (self.load.count and handed >= self.load.count):
                self.due.append(started + handed * interval)
                handed += 1
            while self.due and self.idle:
                self.idle.popleft().send(self.due.popleft())
            if self.load.count and handed >= self.load.count and not self.due:
                break
            await asyncio.sleep(max(0.0005, min(interval, started + handed * interval - time.perf_counter())))
        self.due.clear()
        for connection in list(self.idle):
            connection.close()


class _Connection(asyncio.Protocol):
    def __init__(self, run: _Run) -> None:
        self.run = run
        self.buffer = bytearray()
        self.due = self.began = 0.0
        self.busy = False
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.next()

    def next(self) -> None:
        run = self.run
        if run.load.rate_per_s:
            if run.due:
                self.send(run.due.popleft())
            elif run.wants_more():
                run.idle.append(self)
            else:
                self.close()
        elif run.wants_more():
            self.send(time.perf_counter())
        else:
            self.close()

    def send(self, due: float) -> None:
        self.due, self.began, self.busy = due, time.perf_counter(), True
        self.transport.write(self.run.request())

    def close(self) -> None:
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer
        buffer += data
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(buffer[:end]).lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(buffer) < end + 4 + length:
            return
        body = bytes(buffer[end + 4 : end + 4 + length])
        del buffer[: end + 4 + length]
        self.busy = False
        self.run.answered(head[9:12].decode(), body, self.due, self.began)
        if b"connection: close" in head:
            self.transport.close()
        else:
            self.next()

    def connection_lost(self, error: Exception | None) -> None:
        run = self.run
        if self in run.idle:
            run.idle.remove(self)
        if self.busy:
            run.errors += 1
        if run.wants_more():
            _again(run)
        run.left()


def _again(run: _Run) -> None:
    """Open a connection in place of one that was lost."""
    run.open += 1

    async def connect() -> None:
        while run.wants_more():
            try:
                await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(run), run.load.host, run.load.port
                )
            except OSError:
                await asyncio.sleep(0.05)
            else:
                return
        run.left()

    task = asyncio.get_running_loop().create_task(connect())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


_tasks: set[asyncio.Task[None]] = set()


async def _main(load: Load) -> Sent:
    began = time.perf_counter()
    run = _Run(load)
    for _ in range(load.connections):
        _again(run)
    pace = asyncio.create_task(run.pace()) if load.rate_per_s else None
    try:
        async with asyncio.timeout(load.seconds + load.timeout_s):
            await run.finished
    except TimeoutError:
        run.errors += run.open
    if pace is not None:
        pace.cancel()
    seconds = time.perf_counter() - began
    if run.ledger is not None:
        run.ledger.close()
    ordered = sorted(run.latencies) or [0.0]
    return Sent(
        sent=run.number,
        statuses=run.statuses,
        errors=run.errors,
        seconds=seconds,
        p50_ms=ordered[len(ordered) // 2] * 1000,
        p99_ms=ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] * 1000,
        max_ms=ordered[-1] * 1000,
        cpu_s=time.process_time(),
    )


if __name__ == "__main__":
    import uvloop

    print(json.dumps(asdict(uvloop.run(_main(Load(**json.loads(sys.argv[1])))))))
