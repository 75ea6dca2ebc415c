"""Flows that answer, a destination that does as it is told, and workers that run what is accepted."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson

from continuitybridge import database, deployments
from continuitybridge.airflow.work import StageWork
from continuitybridge.engine.runner import Runner
from continuitybridge.engine.services import LocalServices
from continuitybridge.flows.load import load_flow
from continuitybridge.flows.plan import Plan
from continuitybridge.inbox import batches
from continuitybridge.organizations import Organization
from continuitybridge.vault.keyring import Keyring
from http_server import HttpServer

from .conftest import Hook

ENVIRONMENT = "dev"


class Destination:
    """A destination over HTTP. `answers` says what it gives; while `closed` is clear it lets nobody through."""

    def __init__(self) -> None:
        self.answers: Callable[[int], tuple[int, Any]] = lambda n: (200, {"receipt": n})
        self.opened = threading.Event()
        self.opened.set()
        self.keys: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                outer.keys.append(self.headers["idempotency-key"])
                outer.opened.wait(30)
                status, body = outer.answers(len(outer.keys))
                content = orjson.dumps(body)
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HttpServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.opened.set()
        self._server.shutdown()
        self._server.server_close()


def deploy(
    organization: Organization,
    *steps: dict[str, Any],
    mode: str = "batch",
    flow: Mapping[str, Any] | None = None,
    **result: Any,
) -> Hook:
    """Deploy a flow that parses JSON, then does `steps`, and answers with the result. `flow`: keys of the flow's
    own."""
    slug = f"ask-{uuid4().hex[:8]}"
    config = {"slug": slug, "reply": "result", **({"result": result} if result else {})}
    content = {
        **(flow or {}),
        "flow": slug,
        "version": "1.0.0",
        "mode": mode,
        "triggers": [{"id": "in", "type": "webhook_trigger", "config": config}],
        "steps": [{"id": "parse", "type": "json_parser"}, *steps],
    }
    done = deployments.deploy(
        organization.organization_id, ENVIRONMENT, load_flow(orjson.dumps(content).decode()), "tester"
    )
    path = f"/bridge/hooks/{organization.slug}/{ENVIRONMENT}/{slug}"
    return Hook(organization, ENVIRONMENT, slug, slug, done.new_secrets.get(slug, ""), path)


def to(destination: Destination, **config: Any) -> dict[str, Any]:
    """The step that delivers."""
    return {
        "id": "deliver",
        "type": "http_request",
        "config": {"url": destination.url, "retries": 0, "response": "body", **config},
    }


def work_off(organization_id: UUID, organization: str, runner: Runner) -> int:
    """Run what is ready of an organization, as the tasks of batch runs do; how many units."""
    with database.relay() as connection:
        others = connection.execute(
            "SELECT organization_id, environment, flow FROM bridge.deployments WHERE organization_id <> %s",
            (organization_id,),
        ).fetchall()
    taken = 0
    for batch in batches.dispatch_ready(paused=others):
        with database.tenant(organization_id) as connection:
            [(text,)] = connection.execute(
                "SELECT plan::text FROM bridge.flow_versions WHERE flow = %s AND version = %s",
                (batch.flow, batch.version),
            ).fetchall()
        work = StageWork(
            batch=batch,
            plan=Plan.from_json(text),
            stage=None,
            owner=f"tests/{uuid4()}",
            organization=organization,
            keys=Keyring.open(),
            services=LocalServices(log=lambda *_: None),
            runner=runner,
        )
        taken += work.run(fence=False)["claimed"]
        batches.finish(batch)
    return taken


@contextlib.contextmanager
def worker(organization: Organization) -> Iterator[None]:
    """A worker in a thread."""
    over = threading.Event()

    def work() -> None:
        with Runner() as runner:
            while not over.is_set():
                if not work_off(organization.organization_id, organization.slug, runner):
                    over.wait(0.02)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def start_worker_process(organization: Organization) -> subprocess.Popen[bytes]:
    """A worker that can be killed."""
    code = f"from {__name__} import main; main()"
    tests = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{tests / 'integration'}{os.pathsep}{tests}"}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(organization.organization_id), organization.slug], env=environment
    )


@contextlib.contextmanager
def stream_worker(**settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """A stream worker as a process; it may be dead by the end."""
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("bridge")), "stream"], env={**os.environ, **settings}
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def main() -> None:
    organization_id, slug = sys.argv[1:]
    with Runner() as runner:
        while True:
            if not work_off(UUID(organization_id), slug, runner):
                time.sleep(0.02)
