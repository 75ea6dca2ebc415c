"""A key management service that says what a test wants, and what is made of that."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from uuid import UUID

import pytest

from continuitybridge.errors import Unavailable, Verdict
from continuitybridge.vault.kms import KeyServiceRefused
from continuitybridge.vault.wrapping import Place
from http_server import HttpServer

PLACE = Place(UUID("0190d3c4-7b6a-7def-8123-456789abcdef"), 3)
CONTEXT = {
    "organization": str(PLACE.organization_id),
    "purpose": "continuitybridge-data-key",
    "version": "3",
}
BOUND = json.dumps(CONTEXT, separators=(",", ":"), sort_keys=True).encode()
KEY = bytes(range(32))


class Says:
    """A server that answers what it was told to; `asked` is what it heard: path, headers, the JSON of the body."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.status, self.body = 200, b"{}"
        says = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                given = json.loads(self.rfile.read(int(self.headers["content-length"])))
                says.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}, given))
                self.send_response(says.status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(says.body)))
                self.end_headers()
                self.wfile.write(says.body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HttpServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, status: int, body: object) -> None:
        self.status, self.body = status, body if isinstance(body, bytes) else json.dumps(body).encode()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def says() -> Iterator[Says]:
    server = Says()
    yield server
    server.close()


@contextmanager
def silent() -> Iterator[str]:
    """Takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def full() -> Iterator[str]:
    """Has no room for another connection: whoever tries waits."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def failed(call: Callable[[], object]) -> tuple[Unavailable, float]:
    """What was raised, and within how many seconds."""
    began = time.monotonic()
    with pytest.raises(Unavailable) as raised:
        call()
    return raised.value, time.monotonic() - began


def is_away(error: Unavailable, *told: str) -> bool:
    assert not isinstance(error, KeyServiceRefused)
    assert error.verdict is Verdict.TRANSIENT
    assert error.facts["retry_after_s"] == 5
    assert all(each in str(error) for each in told), str(error)
    return True


def is_refused(error: Unavailable, *told: str, **facts: object) -> bool:
    assert isinstance(error, KeyServiceRefused)
    assert {name: error.facts.get(name) for name in facts} == facts
    assert all(each in str(error) for each in told), str(error)
    return True
