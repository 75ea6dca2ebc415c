"""A stop answers each request that was sent before it, wherever the request is by then."""

from __future__ import annotations

import http.client
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from .conftest import Deploy, Hook, Intake, end, eventually, run_intake

BODY = b'{"po_number": "4711"}'


@pytest.fixture(params=[1, 2], ids=["one process", "two processes"])
def stopping(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Intake]:
    intake = run_intake(tmp_path, "--workers", str(request.param))
    yield intake
    end(intake)


def servers(intake: Intake) -> list[psutil.Process]:
    """The processes that take connections."""
    above = psutil.Process(intake.process.pid)
    workers = [each for each in above.children() if "spawn_main" in " ".join(each.cmdline())]
    return workers or [above]


def send(intake: Intake, hook: Hook) -> http.client.HTTPConnection:
    """A request on a connection of its own, sent and not answered yet."""
    connection = http.client.HTTPConnection("127.0.0.1", intake.port, timeout=15)
    connection.request("POST", hook.path, BODY, hook.signed(BODY))
    return connection


def test_a_request_on_a_connection_that_nobody_has_taken_yet_is_answered(stopping: Intake, deploy: Deploy) -> None:
    hook = deploy()
    assert stopping.post(hook, fresh=True).status_code == 202
    above, taking = psutil.Process(stopping.process.pid), servers(stopping)
    # As on a machine that is too busy to let the server run between the request and the stop. The one above as
    # well: it would take the others for dead.
    for each in {above, *taking}:
        each.suspend()
    sent = [send(stopping, hook) for _ in range(5)]
    for each in taking:
        each.terminate()
    # Longer than the server sleeps between two looks at whether it is to stop.
    time.sleep(0.2)
    for each in taking:
        each.resume()
    assert [each.getresponse().status for each in sent] == [202] * 5
    if above not in taking:
        above.terminate()
        above.resume()
    assert stopping.process.wait(15) is not None


def test_who_connects_to_a_stopping_server_is_refused_at_once_and_the_rest_is_answered(
    stopping: Intake, deploy: Deploy
) -> None:
    hook = deploy()
    connection = http.client.HTTPConnection("127.0.0.1", stopping.port, timeout=15)
    connection.putrequest("POST", hook.path)
    for name, value in {**hook.signed(BODY), "content-length": str(len(BODY))}.items():
        connection.putheader(name, value)
    connection.endheaders()
    assert stopping.post(hook, fresh=True).status_code == 202
    time.sleep(0.2)
    stopping.process.send_signal(signal.SIGTERM)

    def is_refused() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", stopping.port), timeout=1.0):
                return False
        except ConnectionRefusedError:
            return True

    eventually(is_refused, within_s=5)
    connection.send(BODY)
    assert connection.getresponse().status == 202
    assert stopping.process.wait(15) is not None
