"""Webhooks in Airflow's api-server with several workers: each knows every endpoint, a repetition is one whichever
takes it, and a stop cuts nobody."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from trial import BRIDGE, ROOT, Tenant, Trial, wait_until

from continuitybridge.runtime.ports import free_port

FLOW = """\
flow: keyed
version: 1.0.0
triggers:
  - {id: in, type: webhook_trigger, config: {slug: keyed, verification: api_key}}
steps:
  - {id: note, type: logger, config: {message: got it}}
"""


class ApiServer:
    """An api-server beside the trial's own, with two workers."""

    def __init__(self, trial: Trial, directory: Path) -> None:
        self.port = free_port()
        self.log = directory / "api-server.log"
        with self.log.open("wb") as output:
            self.process = psutil.Popen(
                [str(BRIDGE), "airflow", "api-server", "--port", str(self.port), "--workers", "2"],
                env=trial.environment,
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        wait_until(lambda: len(self.workers()) == 2 and self._answers(), within_s=240, what="two workers")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _answers(self) -> bool:
        assert self.process.is_running(), self.said()
        # Both: a connection goes to whichever worker is quicker.
        return self.log.read_text(errors="replace").count("Application startup complete") >= 2

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-6000:]

    def workers(self) -> list[psutil.Process]:
        """The processes that accept connections there, beside the one that watches over them."""
        children = self.process.children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]

    def end(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for member in [*self.process.children(recursive=True), self.process]:
                member.kill()


@pytest.fixture(scope="module")
def server(trial: Trial, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    running = ApiServer(trial, tmp_path_factory.mktemp("api-server"))
    yield running
    running.end()


@pytest.fixture(scope="module")
def sender(trial: Trial) -> Tenant:
    """An organization with a webhook that takes a key."""
    tenant = trial.organization()
    tenant.deploy("keyed", FLOW, visible=False)
    return tenant


def test_every_worker_knows_a_new_endpoint_at_once_and_100_copies_are_one_message(
    server: ApiServer, sender: Tenant
) -> None:
    url = f"{server.url}/bridge/hooks/{sender.slug}/prod/keyed"
    headers = {"x-api-key": sender.secrets["keyed"], "idempotency-key": "one", "connection": "close"}

    client = httpx.Client(timeout=60)

    def send(_: int) -> tuple[int, str]:
        answer = client.post(url, json={"po": 1}, headers=headers)
        return answer.status_code, answer.json().get("id", "")

    with ThreadPoolExecutor(20) as senders:
        answers = Counter(senders.map(send, range(100)))
    [(answer, count)] = answers.items()
    assert (answer[0], count) == (202, 100), answers
    refused = client.post(url, json={"po": 1}, headers={"x-api-key": "wrong"})
    assert (refused.status_code, refused.headers["x-content-type-options"]) == (401, "nosniff")
    assert client.get(url).status_code == 405
    old = client.post(f"{server.url}/api/webhook/keyed", json={})
    assert (old.status_code, old.json()["code"]) == (404, "not-found")
    client.get(f"{server.url}/api/v2/version")
    # They go around what Airflow does for each request, of which one thing can be seen: a line in its access log.
    wait_until(lambda: "/api/v2/version" in server.said(), within_s=20, what="a line for another address")
    assert "/hooks/" not in server.said()


class KeptConnection:
    """A sender that keeps its connection and sends the next message as soon as the last one is answered."""

    def __init__(self, server: ApiServer, tenant: Tenant, number: int) -> None:
        self.statuses: list[int] = []
        self.cut: Exception | None = None
        self._number = number
        self._path = f"/bridge/hooks/{tenant.slug}/prod/keyed"
        self._key = tenant.secrets["keyed"]
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        self._connection.auto_open = 0
        self._connection.connect()

    def send_until_told_to_stop(self) -> None:
        while True:
            body = json.dumps({"po": f"{self._number}-{len(self.statuses)}"})
            headers = {"x-api-key": self._key, "content-type": "application/json"}
            try:
                self._connection.request("POST", self._path, body, headers)
                answer = self._connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.cut = error
                return
            self.statuses.append(answer.status)
            if answer.getheader("connection", "").lower() == "close":
                return


def test_a_stop_answers_every_request_that_was_sent(server: ApiServer, sender: Tenant) -> None:
    senders = [KeptConnection(server, sender, number) for number in range(12)]
    threads = [threading.Thread(target=each.send_until_told_to_stop) for each in senders]
    for thread in threads:
        thread.start()
    wait_until(
        lambda: all(each.statuses or each.cut for each in senders),
        within_s=60,
        what=lambda: f"answers {[len(each.statuses) for each in senders]}\n{server.said()}",
    )
    assert not any(each.cut for each in senders), ([each.cut for each in senders], server.said())
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    server.process.wait(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not any(each.cut for each in senders), "a request that was sent has no answer"
    assert {status for each in senders for status in each.statuses} == {202}
