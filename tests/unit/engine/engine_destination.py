"""An HTTP server to deliver to."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler
from typing import Any

from continuitybridge.engine.services import LocalServices
from continuitybridge.nodes.base import ConnectionInfo
from http_server import HttpServer


class Destination:
    """A server that keeps what it got and answers when `answer` lets it."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.peers: set[Any] = set()
        self.waiting = 0
        self.most_waiting = 0
        self.status = 200
        self.open = threading.Event()
        self.open.set()
        lock = threading.Lock()
        told = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                with lock:
                    told.keys.append(self.headers["idempotency-key"])
                    told.paths.append(self.path)
                    told.headers.append({k.lower(): v for k, v in self.headers.items()})
                    told.peers.add(self.client_address)
                    told.waiting += 1
                    told.most_waiting = max(told.most_waiting, told.waiting)
                told.open.wait(30)
                with lock:
                    told.waiting -= 1
                self.send_response(404 if self.path == "/missing" else told.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.server = HttpServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def services(self, **auth: str) -> LocalServices:
        info = ConnectionInfo("warehouse", self.url, auth=auth or {"type": "none"})
        return LocalServices({"warehouse": info}, log=lambda *_: None)
