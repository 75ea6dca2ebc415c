"""A real intake server, and endpoints of flows deployed for one test."""

from __future__ import annotations

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

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


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
    """A free port of the range that these tests use."""
    for port in range(18300, 18400):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port between 18300 and 18399")


def run_intake(directory: Path, *arguments: str, **environment: str) -> Intake:
    """Start `bridge intake` on a free port and wait until it answers."""
    import os

    port = free_port()
    log = directory / f"intake-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("bridge")), "intake", "--port", str(port), *arguments],
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    intake = Intake(process, port, log)
    deadline = time.monotonic() + 60
    while True:
        try:
            if httpx.get(f"{intake.url}/bridge/health/live", timeout=1).status_code == 200:
                return intake
        except httpx.TransportError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError(f"intake did not start: {log.read_text()}")
        time.sleep(0.05)


def end(intake: Intake) -> None:
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
def client(intake: Intake) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=intake.url, timeout=30) as client:
        yield client


def flow_text(name: str, slug: str, version: str = "1.0.0", **config: Any) -> str:
    """A flow with one webhook trigger and one step."""
    import orjson

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
