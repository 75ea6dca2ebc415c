"""Operators outside of a scheduler: a context as a task has it, a real HTTP server, connections by environment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace
from typing import Any

import pytest

from http_server import HttpServer


@dataclass
class Destination:
    """A real HTTP server that notes what it gets; `statuses` are its next answers, then 200."""

    url: str = ""
    requests: list[SimpleNamespace] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)


@pytest.fixture
def destination(monkeypatch: pytest.MonkeyPatch) -> Iterator[Destination]:
    """The server behind the Airflow connection `destination`, with basic credentials and a header of its own."""
    noted = Destination()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            noted.requests.append(
                SimpleNamespace(method=self.command, path=self.path, headers=self.headers, body=body)
            )
            status = noted.statuses.pop(0) if noted.statuses else 200
            if status == 0:  # cut the connection
                self.close_connection = True
                return
            content = b'{"receipt": "R-1"}'
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("location", "/elsewhere")
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_GET = answer

        def log_message(self, *args: Any) -> None:
            pass

    server = HttpServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    noted.url = f"http://127.0.0.1:{server.server_port}"
    connection = f"http://user:secret@127.0.0.1:{server.server_port}/?X-Sender=tests"
    monkeypatch.setenv("AIRFLOW_CONN_DESTINATION", connection)
    yield noted
    server.shutdown()
    server.server_close()


Execute = Callable[..., Any]


@pytest.fixture
def execute() -> Execute:
    """Run an operator as a task of run `r1` of DAG `d`, at `map_index` (default: not mapped)."""

    def run(operator: Any, *, map_index: int = -1, run_id: str = "r1") -> Any:
        ti = SimpleNamespace(dag_id="d", run_id=run_id, map_index=map_index, task_id=operator.task_id)
        run = SimpleNamespace(dag_id="d", run_id=run_id, run_after=datetime.now(UTC))
        return operator.execute({"ti": ti, "dag_run": run})

    return run
