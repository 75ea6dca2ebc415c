"""A real intake server, and endpoints of flows deployed for one test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import orjson
import psutil
import pytest
from standardwebhooks.webhooks import Webhook

from continuitybridge import deployments
from continuitybridge.flows.load import load_flow
from continuitybridge.organizations import Organization
from continuitybridge.settings import Settings


@dataclass
class Intake:
    """A running `bridge intake`."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    client: httpx.Client

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, hook: Hook, body: bytes = b'{"po_number": "4711"}', **given: Any) -> httpx.Response:
        """Send a body to a hook, signed unless `headers` are given; on a new connection with `fresh=True`."""
        headers = given.pop("headers", None) or hook.signed(body, message_id=given.pop("message_id", None))
        if given.pop("fresh", False):
            headers = {**headers, "connection": "close"}
        path = given.pop("path", hook.path)
        return self.client.post(path, content=body, headers=headers, **given)


@dataclass
class Hook:
    """A deployed endpoint."""

    organization: Organization
    environment: str
    slug: str
    flow: str
    secret: str
    path: str

    def signed(self, body: bytes, *, message_id: str | None = None, at: float | None = None) -> dict[str, str]:
        """The headers of a valid request (Standard Webhooks, by the reference library)."""
        message_id = message_id or f"msg_{uuid4().hex}"
        at = time.time() if at is None else at
        return {
            "content-type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(at)),
            "webhook-signature": Webhook(self.secret).sign(
                message_id, datetime.fromtimestamp(int(at), UTC), body.decode()
            ),
        }


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def owns(process: psutil.Process, port: int) -> bool:
    """Whether the process or one of its children listens there: another test run may have been quicker."""
    family = [process, *process.children(recursive=True)]
    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        for member in family
        for connection in member.net_connections("tcp")
    )


def run_intake(directory: Path, *arguments: str, **environment: str) -> Intake:
    """Start `bridge intake` on a free port and wait until it answers."""
    port = free_port()
    log = directory / f"intake-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("bridge")), "intake", "--port", str(port), *arguments],
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    # One client for all threads: making one costs more than a hundred requests.
    client = httpx.Client(
        base_url=f"http://127.0.0.1:{port}", timeout=60, limits=httpx.Limits(max_connections=200)
    )
    intake = Intake(process, port, log, client)
    deadline = time.monotonic() + 60
    while True:
        try:
            if client.get("/bridge/health/live", timeout=1).status_code == 200:
                assert owns(psutil.Process(process.pid), port)
                return intake
        except (httpx.TransportError, psutil.Error):
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError(f"intake did not start: {log.read_text()}")
        time.sleep(0.05)


def end(intake: Intake) -> None:
    intake.client.close()
    intake.process.terminate()
    try:
        intake.process.wait(30)
    except subprocess.TimeoutExpired:
        intake.process.kill()
        intake.process.wait()


@pytest.fixture(scope="session")
def intake(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Intake]:
    """The intake that most tests share."""
    running = run_intake(tmp_path_factory.mktemp("intake"))
    yield running
    end(running)


@pytest.fixture
def client(intake: Intake) -> httpx.Client:
    return intake.client


def flow_text(name: str, slug: str, version: str = "1.0.0", **config: Any) -> str:
    """A flow with one webhook trigger and one step."""
    return orjson.dumps(
        {
            "flow": name,
            "version": version,
            "triggers": [{"id": "in", "type": "webhook_trigger", "config": {"slug": slug, **config}}],
            "steps": [{"id": "note", "type": "logger", "config": {"message": "got {{ message.id }}"}}],
        }
    ).decode()


Deploy = Callable[..., Hook]


@pytest.fixture
def deploy(organization: Organization) -> Deploy:
    """Deploys a flow with a webhook and gives its endpoint."""

    def deploy(
        slug: str | None = None,
        *,
        flow: str | None = None,
        version: str = "1.0.0",
        environment: str = "dev",
        of: Organization | None = None,
        **config: Any,
    ) -> Hook:
        owner = of or organization
        slug = slug or f"orders-{uuid4().hex[:8]}"
        flow = flow or f"flow-{slug}"
        text = flow_text(flow, slug, version, **config)
        done = deployments.deploy(owner.organization_id, environment, load_flow(text), "tester")
        path = f"/bridge/hooks/{owner.slug}/{environment}/{slug}"
        return Hook(owner, environment, slug, flow, done.new_secrets.get(slug, ""), path)

    return deploy


def eventually(true: Callable[[], bool], within_s: float = 10.0) -> None:
    """Wait until something is so; fail when it is not within the time, which is a bound and no target."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not become so"
        time.sleep(0.02)
