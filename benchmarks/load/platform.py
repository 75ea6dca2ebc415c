"""The product's own processes for a benchmark: an embedded PostgreSQL with its durability on, `bridge intake`,
`bridge stream`. No Airflow: what it adds to a stream worker's life is measured elsewhere."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import psycopg

from continuitybridge import database, deployments, organizations
from continuitybridge.connections import verbs as connections
from continuitybridge.database import connections as pools
from continuitybridge.database import migrate
from continuitybridge.database.bootstrap import bootstrap
from continuitybridge.database.embedded import EmbeddedPostgres
from continuitybridge.flows.load import load_flow
from continuitybridge.organizations import Organization
from continuitybridge.settings import get_settings

ENVIRONMENT = "prod"
WAL_SEGMENTS = 64
DURABLE = ("fsync", "synchronous_commit", "full_page_writes")


@dataclass(frozen=True)
class Endpoint:
    """A deployed webhook: what `load.sender.Load` needs to know of it."""

    port: int
    path: str
    secret: str


class Platform:
    """Running processes, by name: `intake`, `stream`."""

    def __init__(self, directory: Path, intake_port: int) -> None:
        self.directory = directory
        self.intake_port = intake_port
        self.processes: dict[str, psutil.Popen] = {}

    def organization(self) -> Organization:
        slug = f"bench-{random.randrange(16**8):08x}"
        return organizations.create(slug, f"Benchmark {slug}", tier="enterprise")

    def deploy(self, organization: Organization, flow: str, sink_url: str) -> Endpoint:
        """Deploy a flow whose connection `sink` leads there; its first webhook."""
        definition = {"base_url": sink_url}
        connections.put(organization.organization_id, ENVIRONMENT, "sink", definition, "bench")
        done = deployments.deploy(organization.organization_id, ENVIRONMENT, load_flow(flow), "bench")
        [(slug, secret)] = done.new_secrets.items()
        path = f"/bridge/hooks/{organization.slug}/{ENVIRONMENT}/{slug}"
        return Endpoint(self.intake_port, path, secret)

    def start(self, name: str, *arguments: str) -> None:
        """Start `bridge <arguments>` under a name; its output goes to a log below the directory."""
        command = [str(Path(sys.executable).with_name("bridge")), *arguments]
        with (self.directory / f"{name}.log").open("wb") as log:
            self.processes[name] = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def unsettled(self) -> int:
        """Messages that are accepted and not settled yet, dead letters left out."""
        with database.relay() as connection:
            [(count,)] = connection.execute("SELECT count(*) FROM bridge.messages WHERE state <> 'dead'")
        return int(count)

    def drained(self, within_s: float) -> bool:
        """Wait until nothing is unsettled."""
        until = time.monotonic() + within_s
        while self.unsettled():
            if time.monotonic() > until:
                return False
            time.sleep(0.2)
        return True

    def durability(self) -> str:
        """The server's settings that make a commit durable, as it tells them."""
        with database.relay() as connection:
            told = {name: connection.execute("SELECT current_setting(%s)", (name,)).fetchone() for name in DURABLE}
        return ", ".join(f"{name}={value[0]}" for name, value in told.items() if value)

    def memory_bytes(self, name: str) -> int:
        """What a process and its descendants take, shared pages by their share."""
        return sum(int(each.memory_full_info().pss) for each in self._family(name))

    def cpu_s(self, name: str) -> float:
        """Processor time of a process and its living descendants so far."""
        return sum(sum(each.cpu_times()[:2]) for each in self._family(name))

    def _family(self, name: str) -> list[psutil.Process]:
        parent = psutil.Process(self.processes[name].pid)
        return [parent, *parent.children(recursive=True)]

    def stop(self) -> None:
        for process in self.processes.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(30)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def running(
    *, intake_workers: int = 1, stream_workers: int = 1, used: bool = False, **environment: str
) -> Iterator[Platform]:
    """A platform of its own, ready to take messages. `used`: on a server that has been at work for a while.
    `environment` are settings (`BRIDGE_…`)."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="bridge-bench-") as name:
        directory = Path(name)
        server = EmbeddedPostgres(directory / "postgres", free_port())
        server.initialise()
        server.start(die_with_parent=True)
        for key in [key for key in os.environ if key.startswith("BRIDGE_") and key != "BRIDGE_EGRESS_ALLOW"]:
            del os.environ[key]
        os.environ.update(environment)
        os.environ.update(BRIDGE_STATE_DIR=str(directory), BRIDGE_DATABASE_PORT=str(server.port))
        get_settings.cache_clear()
        platform = Platform(directory, free_port())
        try:
            bootstrap(server.admin_url, directory)
            migrate.upgrade(pools.owner_url())
            if used:
                _use(server.admin_url)
            platform.start(
                "intake", "intake", "--port", str(platform.intake_port), "--workers", str(intake_workers)
            )
            if stream_workers:
                platform.start("stream", "stream", "--workers", str(stream_workers))
            _wait_alive(platform)
            yield platform
        finally:
            platform.stop()
            pools.close_pools()
            server.stop()
            os.environ.clear()
            os.environ.update(before)
            get_settings.cache_clear()


def _use(admin_url: str) -> None:
    """Let a new server have log files to write over, as after its first checkpoints. Else at each 16 MB, whoever
    wrote them, commits wait for a new file to be filled: up to 160 ms were seen."""
    with psycopg.connect(admin_url, autocommit=True) as connection:
        for _ in range(WAL_SEGMENTS):
            connection.execute("SELECT pg_logical_emit_message(false, 'benchmark', ''), pg_switch_wal()")
        connection.execute("CHECKPOINT")


def _wait_alive(platform: Platform) -> None:
    until = time.monotonic() + 60
    url = f"http://127.0.0.1:{platform.intake_port}/bridge/health/live"
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=1).is_success:
                return
        for name, process in platform.processes.items():
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended: {platform.log(name)[-2000:]}")
        if time.monotonic() > until:
            raise RuntimeError(f"intake did not come up: {platform.log('intake')[-2000:]}")
        time.sleep(0.1)


def pause(seconds: float) -> None:
    """Let time pass."""
    time.sleep(seconds)


def free_port() -> int:
    """A port that nobody listens on, below those that outgoing connections take by themselves."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
