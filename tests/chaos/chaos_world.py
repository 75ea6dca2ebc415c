"""Chaos over real processes, and the proof that nothing was lost.

A sender and a destination, processes of their own, keep ledgers of what was promised and what came. Meanwhile
processes are killed with -9 and the destination misbehaves, at random (by a seed that is printed). When it is
over and nothing is under way, `bridge inbox reconcile` must agree with both ledgers.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import chaos_sink
import psutil

ROOT = Path(__file__).resolve().parents[2]
BRIDGE = ROOT / ".venv" / "bin" / "bridge"
ORGANIZATION = "chaos"
ENVIRONMENT = "prod"
AWAY = ("the database does not answer", "no database connection within", "the database did not finish")
"""What the command says while the database is just killed."""
POISON = 50
"""Every so many messages one that its flow refuses: it is to stand in triage."""

SETTINGS = {
    "BRIDGE_EGRESS_ALLOW": "127.0.0.1",
    "BRIDGE_LEASE_S": "6",
    "BRIDGE_SWEEP_INTERVAL_S": "1",
    "BRIDGE_MAX_ATTEMPTS": "30",
    "BRIDGE_RETRY_BASE_S": "0.2",
    "BRIDGE_RETRY_MAX_S": "2",
    "BRIDGE_CIRCUIT_WAIT_S": "0.5",
    "BRIDGE_CIRCUIT_MAX_WAIT_S": "2",
}

FLOW = """
flow: {name}
version: 1.0.0
mode: {mode}
triggers:
  - {{id: in, type: webhook_trigger, config: {{slug: {name}, verification: api_key}}}}
steps:
  - {{id: parse, type: json_parser}}
  - id: check
    type: validation
    config: {{schema: {{type: object, required: [po_number], properties: {{po_number: {{type: string}}}}}}}}
  - {{id: shape, type: jq, config: {{program: "{{po: .po_number, total: ([.lines[].quantity] | add)}}"}}}}
  - {{id: map, type: object_mapper, config: {{mapping: {{order: $.po, quantity: $.total}}}}}}
  - id: deliver
    type: http_request
    config: {{connection: sink, path: /in, retries: 1, attempt_timeout_s: 5, timeout_s: 12}}
"""


class World(Protocol):
    """The processes that chaos is about. Whatever is killed comes back."""

    environment: dict[str, str]
    urls: list[str]

    def victims(self) -> dict[str, list[psutil.Process]]:
        """What may be killed now, by kind."""

    @property
    def kinds(self) -> Sequence[str]:
        """Every kind there is."""


@dataclass
class Chaos:
    """One run of it. `deeds` counts what was done."""

    world: World
    directory: Path
    random: random.Random
    sink_port: int = 0
    deeds: Counter[str] = field(default_factory=Counter)

    @property
    def sent(self) -> Path:
        return self.directory / "sent"

    @property
    def stop(self) -> Path:
        return self.directory / "stop"

    @property
    def came(self) -> Path:
        return self.directory / "came"

    def bridge(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command; until the database answers, where it is just being killed."""
        deadline = time.monotonic() + 120
        while True:
            done = subprocess.run(
                [str(BRIDGE), *arguments], env=self.world.environment, capture_output=True, text=True, check=False
            )
            if not check or done.returncode == 0:
                return done
            said = done.stdout + done.stderr
            if not any(each in said for each in AWAY) or time.monotonic() > deadline:
                raise AssertionError(f"bridge {' '.join(arguments)}: {said[-2000:]}")
            time.sleep(0.5)

    @contextlib.contextmanager
    def destination(self) -> Iterator[None]:
        """The sink runs meanwhile."""
        self.sink_port = free_port()
        process = subprocess.Popen(
            [sys.executable, str(Path(chaos_sink.__file__)), str(self.sink_port), str(self.came)],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)
            process.stdout.close()

    def deploy(self, modes: Sequence[str]) -> dict[str, str]:
        """The organization, its connection and a flow of each mode; the flows' keys."""
        place = ("-o", ORGANIZATION, "-e", ENVIRONMENT)
        self.bridge(
            "organization", "create", ORGANIZATION, "--name", "Chaos", "-e", ENVIRONMENT, "--tier", "enterprise"
        )
        self.bridge("connection", "set", "sink", *place, "--base-url", f"http://127.0.0.1:{self.sink_port}")
        keys = {}
        for mode in modes:
            file = self.directory / f"{mode}.yaml"
            file.write_text(FLOW.format(name=mode, mode=mode))
            said = self.bridge("flow", "deploy", str(file), *place).stdout
            keys[mode] = said.split("secret ", 1)[1].split()[0]
        return keys

    def send(self, flow: str, key: str, count: int, rate_per_s: float) -> subprocess.Popen[bytes]:
        given: dict[str, Any] = {
            "urls": [f"{url}/bridge/hooks/{ORGANIZATION}/{ENVIRONMENT}/{flow}" for url in self.world.urls],
            "headers": {"x-api-key": key},
            "key_header": "idempotency-key",
            "name": flow,
            "count": count,
            "rate_per_s": rate_per_s,
            "poison": POISON,
            "stop": str(self.stop),
            "ledger": str(self.sent),
        }
        script = Path(__file__).with_name("chaos_sender.py")
        return subprocess.Popen([sys.executable, str(script), json.dumps(given)])

    def rage(self, senders: Sequence[subprocess.Popen[bytes]], within_s: float) -> None:
        """Do harm of every kind, in an order that differs each time, until the senders have ended: for
        `within_s` at most, and each kind at least once. Between two deeds deliveries go on, so that each meets
        work."""
        deadline = time.monotonic() + within_s
        try:
            deeds = self._deeds()
            waiting: list[str] = []
            while time.monotonic() < deadline and any(sender.poll() is None for sender in senders):
                waiting = waiting or self.random.sample(sorted(deeds), len(deeds))
                name = waiting.pop()
                if deeds[name]():
                    self.deeds[name] += 1
                self._await_progress()
                if all(self.deeds[each] for each in deeds):
                    # They end now if they have sent as many as they should.
                    self.stop.touch()
            for sender in senders:
                sender.wait(max(1.0, deadline + 60 - time.monotonic()))
        finally:
            chaos_sink.behave(self.sink_port, "take")
            self.bridge("destination", "resume", "sink", "-o", ORGANIZATION, "-e", ENVIRONMENT)
        failed = [sender.returncode for sender in senders if sender.returncode]
        assert not failed, f"a sender gave up: {failed}"
        assert all(self.deeds[name] for name in deeds), f"not all harm was done: {self.deeds}"

    def _await_progress(self, within_s: float = 15.0) -> None:
        """Some deliveries more than now."""
        before = chaos_sink.seen(self.sink_port)["take"]
        deadline = time.monotonic() + within_s
        while chaos_sink.seen(self.sink_port)["take"] < before + 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(self.random.uniform(0.0, 0.5))

    def _deeds(self) -> dict[str, Callable[[], bool]]:
        deeds: dict[str, Callable[[], bool]] = {
            f"kill {kind}": lambda kind=kind: self._kill(kind) for kind in self.world.kinds
        }
        for how in ("fail", "cut", "slow"):
            deeds[f"destination: {how}"] = lambda how=how: self._misbehave(how)
        deeds["destination: pause"] = self._pause
        return deeds

    def _kill(self, kind: str) -> bool:
        victims = self.world.victims().get(kind, [])
        if not victims:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            self.random.choice(victims).send_signal(signal.SIGKILL)
            return True
        return False

    def _misbehave(self, how: str) -> bool:
        """Until some requests have met it."""
        before = chaos_sink.seen(self.sink_port)[how]
        chaos_sink.behave(self.sink_port, how)
        deadline = time.monotonic() + 15
        while chaos_sink.seen(self.sink_port)[how] < before + 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        chaos_sink.behave(self.sink_port, "take")
        return chaos_sink.seen(self.sink_port)[how] > before

    def _pause(self) -> bool:
        place = ("sink", "-o", ORGANIZATION, "-e", ENVIRONMENT)
        self.bridge("destination", "pause", *place, "--reason", "chaos")
        time.sleep(self.random.uniform(0.3, 1.2))
        self.bridge("destination", "resume", *place)
        return True

    def settle(self, within_s: float) -> dict[str, Any]:
        """Wait until nothing is under way; what `bridge inbox reconcile` says of the ledgers then."""
        deadline = time.monotonic() + within_s
        while True:
            done = self.bridge(
                "inbox", "reconcile", "-o", ORGANIZATION, "--ids", str(self.sent), "--deliveries", str(self.came),
                "--json", check=False,
            )  # fmt: skip
            if done.stdout.startswith("{"):
                said: dict[str, Any] = json.loads(done.stdout)
                if not said["ledger"]["under_way"] or time.monotonic() > deadline:
                    return {**said, "exit": done.returncode}
            assert time.monotonic() < deadline + 60, done.stderr
            time.sleep(1.0)

    def prove(self, said: dict[str, Any], at_least: int) -> str:
        """Hold what was said against the files themselves; a line for the log."""
        books = said["ledger"]
        sent = self.sent.read_text().split()
        came = self.came.read_text().split()
        expected = len(sent)
        assert at_least <= expected == len(set(sent)), "each message got one id, and each one its own"
        assert said["exit"] == 0, {name: books[name] for name in ("lost", "invented", "rekeyed")}
        assert said["violations"] == []
        assert books["under_way"] == [], "all of it has come to an end"
        # Without the platform's word: what came is what was sent, under one key each.
        keys: dict[str, set[str]] = {}
        for key in came:
            keys.setdefault(key.split(":", 1)[0], set()).add(key)
        assert keys.keys() <= set(sent), "nothing was invented"
        assert all(len(each) == 1 for each in keys.values()), "a duplicate bears the key of the first"
        missing = set(sent) - keys.keys()
        assert missing <= set(books["in_triage"]), "what did not come stands in triage"
        assert len(missing) >= expected // POISON * 0.9, "what no retry can help is in triage"
        assert (books["accepted"], books["deliveries"]) == (expected, len(came))
        assert len(came) > len(keys), "connections that were cut after a delivery had it repeated"
        return (
            f"{expected} accepted, {len(keys)} delivered by {len(came)} deliveries"
            f" ({books['repeated']} repeated), {len(books['in_triage'])} in triage;"
            f" {dict(sorted(self.deeds.items()))}"
        )


def family(process: psutil.Process) -> list[psutil.Process]:
    """The living descendants of a process."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def free_port() -> int:
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def inherited() -> dict[str, str]:
    """This process's environment without what it says of another installation."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("BRIDGE_", "AIRFLOW_"))}
