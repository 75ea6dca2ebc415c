"""A destination, flows that deliver to it, and stream workers in this process or of their own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from uuid import UUID

from continuitybridge import connections, database, deployments
from continuitybridge.engine.runner import Runner
from continuitybridge.flows.load import load_flow
from continuitybridge.inbox.accept import Acceptance, accept
from continuitybridge.organizations import Organization
from continuitybridge.settings import Settings
from continuitybridge.stream.access import Access, DirectAccess
from continuitybridge.stream.process import owner_here
from continuitybridge.stream.worker import StreamWorker
from continuitybridge.vault.keyring import Keyring
from http_server import HttpServer


def wait_until(condition: Callable[[], Any], *, within_s: float = 90.0, what: str = "") -> None:
    until = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"not within {within_s:g} s: {what or condition}")
        time.sleep(0.02)


@dataclass
class Delivery:
    """What came: `path`, the message it is of by its key, its body's `n`, and when it came."""

    path: str
    key: str
    n: Any
    at: float = field(default_factory=time.monotonic)

    @property
    def message_id(self) -> str:
        return self.key.split(":")[0]


class Destination:
    """An HTTP server in a thread. `answer` gives the status for a delivery; it may take its time."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.begun = 0
        self.answer: Callable[[Delivery], int] = lambda delivery: 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                delivery = Delivery(self.path, self.headers["idempotency-key"], body.get("n"))
                outer.begun += 1
                status = outer.answer(delivery)
                outer.deliveries.append(delivery)
                with suppress(OSError):
                    self.send_response(status)
                    self.send_header("content-length", "0")
                    self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = HttpServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def numbers(self, path: str | None = None) -> list[Any]:
        return [each.n for each in list(self.deliveries) if path in (None, each.path)]


DELIVER = "  - {id: deliver, type: http_request, config: {connection: sink, path: %s, retries: 0}, next: end}\n"


class Flow:
    """A deployed flow: reads JSON, runs `steps`, delivers to the destination's path `/<flow>`."""

    def __init__(self, organization: Organization, keyring: Keyring, name: str, destination: Destination) -> None:
        self.organization = organization
        self.id: UUID = organization.organization_id
        self.keyring = keyring
        self.name = name
        self.version = ""
        connections.put(self.id, "prod", "sink", {"base_url": destination.url}, "test")
        self.deploy()

    def deploy(self, version: str = "1.0.0", *, steps: str = "", more: str = "", path: str = "") -> None:
        text = (
            f"flow: {self.name}\nversion: {version}\nmode: stream\n{more}\n"
            "triggers: [{id: in, type: manual_trigger}]\nsteps:\n  - {id: read, type: json_parser}\n"
            + steps
            + DELIVER % (path or f"/{self.name}")
        )
        loaded = load_flow(text)
        deployments.deploy(self.id, "prod", loaded, "test")
        self.version = version
        self.ordering = loaded.flow.ordering

    def send(self, *numbers: Any, **fields: Any) -> list[str]:
        """Accept a message `{"n": …}` for each number."""
        return [
            accept(
                Acceptance(
                    self.id,
                    "prod",
                    self.name,
                    self.version,
                    "api",
                    json.dumps({"n": n, **fields}).encode(),
                    "application/json",
                    mode="stream",
                    ordering=self.ordering,
                ),
                self.keyring,
            ).message_id
            for n in numbers
        ]

    def states(self) -> Counter[str]:
        """How many of its messages are in which state, or settled with which result."""
        with database.tenant(self.id) as connection:
            rows = connection.execute(
                "SELECT state FROM bridge.messages WHERE flow = %s"
                " UNION ALL SELECT result FROM bridge.settled_messages WHERE flow = %s",
                (self.name, self.name),
            ).fetchall()
        return Counter(row[0] for row in rows)

    def await_done(self, count: int, within_s: float = 90.0) -> None:
        wait_until(lambda: self.states()["done"] >= count, within_s=within_s, what=f"{count} done")
        assert self.states() == {"done": count}


class Working:
    """A stream worker in a thread of this process."""

    def __init__(self, runner: Runner, settings: Settings, access: Callable[[], Access] = DirectAccess) -> None:
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self.worker: StreamWorker

        async def work() -> None:
            self._loop = asyncio.get_running_loop()
            self.worker = StreamWorker(owner_here(), access(), runner, settings)
            self._started.set()
            await self.worker.run()

        self._thread = threading.Thread(target=lambda: asyncio.run(work()), daemon=True)

    def __enter__(self) -> StreamWorker:
        self._thread.start()
        self._started.wait(30)
        return self.worker

    def stop(self, within_s: float = 90.0) -> None:
        self._loop.call_soon_threadsafe(self.worker.stop)
        self._thread.join(within_s)
        assert not self._thread.is_alive()

    def __exit__(self, *exc: object) -> None:
        if self._thread.is_alive():
            self.stop()


def start_stream(log: Path, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    """`bridge stream` as a process of its own."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [str(Path(sys.executable).with_name("bridge")), "stream", *arguments],
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
