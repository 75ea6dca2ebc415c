"""A 202 is a promise: what is killed, cut and repeated around the commit."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import psycopg
import pytest

from continuitybridge import database
from continuitybridge.database.bootstrap import DATABASE
from continuitybridge.database.embedded import EmbeddedPostgres
from continuitybridge.settings import Settings

from .conftest import Deploy, Hook, Intake, end, eventually, run_intake

BODY = b'{"po_number": "4711"}'


def message_ids(hook: Hook) -> list[str]:
    with database.tenant(hook.organization.organization_id) as tables:
        return [row[0] for row in tables.execute("SELECT message_id FROM bridge.messages ORDER BY 1").fetchall()]


class Lock:
    """Holds back every write to the messages' table, so that a commit can be stopped halfway."""

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        parts = urlsplit(postgres.admin_url)
        self._connection = psycopg.connect(urlunsplit(parts._replace(path=f"/{DATABASE}")))

    def hold(self) -> None:
        self._connection.execute("LOCK TABLE bridge.messages IN SHARE MODE")

    def held_back(self) -> bool:
        row = self._connection.execute(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'bridge.messages'::regclass"
        ).fetchone()
        return row is not None and row[0] > 0

    def release(self) -> None:
        self._connection.rollback()

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def lock(postgres: EmbeddedPostgres) -> Iterator[Lock]:
    lock = Lock(postgres)
    yield lock
    lock.close()


@pytest.fixture(scope="module")
def workers(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Intake]:
    """An intake of three processes; each connection goes to one of them."""
    running = run_intake(tmp_path_factory.mktemp("workers"), "--workers", "3")
    yield running
    end(running)


@pytest.mark.parametrize(
    ("idempotency", "body"),
    [
        (None, BODY),
        ({"json_path": "$.po_number"}, BODY),
        ({"xml_path": "/Order/@id"}, b'<Order id="7"/>'),
        ({"content": True}, BODY),
    ],
)
def test_100_concurrent_copies_over_several_processes_make_one_message_and_get_one_answer(
    workers: Intake, deploy: Deploy, idempotency: Any, body: bytes
) -> None:
    hook = deploy(idempotency=idempotency) if idempotency else deploy()
    kind = "application/xml" if body.startswith(b"<") else "application/json"
    together = threading.Barrier(100)
    # Where the body tells, each copy is signed by itself with an id of its own.
    signed = [
        {**hook.signed(body, message_id=None if idempotency else "m"), "content-type": kind} for _ in range(100)
    ]

    def send(number: int) -> tuple[int, str, bool]:
        together.wait()
        response = workers.post(hook, body, headers=signed[number], fresh=True)
        answer = response.json()
        return response.status_code, answer.get("id"), answer.get("duplicate")

    with ThreadPoolExecutor(100) as senders:
        answers = Counter(senders.map(send, range(100)))
    [message_id] = message_ids(hook)
    assert answers == {(202, message_id, False): 1, (202, message_id, True): 99}


@pytest.mark.parametrize("killed", ["after the commit", "before the commit"])
def test_a_server_killed_before_it_answered_gives_the_same_message_when_asked_again(
    deploy: Deploy, lock: Lock, tmp_path: Path, killed: str
) -> None:
    hook = deploy()
    intake = run_intake(tmp_path)
    answers: list[object] = []

    def send() -> None:
        try:
            answers.append(intake.post(hook, message_id="m"))
        except httpx.TransportError as error:
            answers.append(error)

    lock.hold()
    sender = threading.Thread(target=send)
    sender.start()
    eventually(lock.held_back)
    # The server stands still from here on: what the database commits, it cannot answer.
    intake.process.send_signal(signal.SIGSTOP)
    if killed == "before the commit":
        intake.process.kill()
        intake.process.wait()
    lock.release()
    eventually(lambda: len(message_ids(hook)) == 1)
    intake.process.kill()
    intake.process.wait()
    sender.join()
    assert isinstance(answers[0], httpx.TransportError), "there was an answer"
    again = run_intake(tmp_path)
    try:
        response = again.post(hook, message_id="m")
        assert response.status_code == 202
        assert response.json()["duplicate"] is True
        assert [response.json()["id"]] == message_ids(hook)
    finally:
        end(again)


def test_everything_answered_with_202_is_stored_when_the_server_is_killed_under_load(
    deploy: Deploy, tmp_path: Path
) -> None:
    hook = deploy()
    intake = run_intake(tmp_path)
    accepted: list[tuple[str, str]] = []
    unanswered: list[str] = []

    def send(sender: int) -> None:
        for number in range(1000):
            key = f"{sender}-{number}"
            try:
                accepted.append((key, intake.post(hook, message_id=key).json()["id"]))
            except httpx.TransportError:
                unanswered.append(key)
                return

    senders = [threading.Thread(target=send, args=(n,)) for n in range(8)]
    for sender in senders:
        sender.start()
    eventually(lambda: len(accepted) > 100)
    intake.process.kill()
    for sender in senders:
        sender.join()
    intake.process.wait()
    assert unanswered
    stored = set(message_ids(hook))
    assert {message_id for _, message_id in accepted} <= stored
    again = run_intake(tmp_path)
    try:
        for key, message_id in accepted[-20:]:
            response = again.post(hook, message_id=key)
            assert response.json()["id"] == message_id
        for key in unanswered:
            response = again.post(hook, message_id=key)
            assert response.status_code == 202
    finally:
        end(again)
    assert len(message_ids(hook)) == len(accepted) + len(unanswered), "none is lost and none is double"


def test_a_stopping_server_answers_what_is_under_way_and_takes_no_more(
    deploy: Deploy, lock: Lock, tmp_path: Path
) -> None:
    hook = deploy()
    intake = run_intake(tmp_path)
    lock.hold()
    with ThreadPoolExecutor(10) as senders:
        answers = [senders.submit(intake.post, hook) for _ in range(10)]
        eventually(lock.held_back)
        intake.process.terminate()
        eventually(lambda: not listens(intake.port))
        lock.release()
        assert [answer.result().status_code for answer in answers] == [202] * 10
    assert intake.process.wait(30) in (0, -signal.SIGTERM)
    assert len(message_ids(hook)) == 10


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_sender_that_hangs_up_while_the_commit_runs_harms_nobody(
    intake: Intake, deploy: Deploy, lock: Lock
) -> None:
    hook = deploy()
    lock.hold()
    with pytest.raises(httpx.ReadTimeout):
        intake.post(hook, message_id="m", timeout=0.5)
    eventually(lock.held_back)
    lock.release()
    response = intake.post(hook, message_id="m")
    assert response.status_code == 202
    assert message_ids(hook) == [response.json()["id"]]


class Proxy:
    """Stands between a server and the database and can be cut."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open = True
        self._pairs: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not self._open:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._target))
            self._pairs += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for end_ in (source, sink):
            end_.close()

    def cut(self) -> None:
        self._open = False
        pairs, self._pairs = self._pairs, []
        for end_ in pairs:
            with contextlib.suppress(OSError):
                end_.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._open = True

    def close(self) -> None:
        self._listener.close()
        self.cut()


@pytest.fixture
def proxy(postgres: EmbeddedPostgres) -> Iterator[Proxy]:
    proxy = Proxy(postgres.port)
    yield proxy
    proxy.close()


def through(proxy: Proxy, settings: Settings) -> dict[str, str]:
    """The database's URLs by way of the proxy."""
    urls = {
        "BRIDGE_DATABASE_APP_URL": settings.database_app_url,
        "BRIDGE_DATABASE_RELAY_URL": settings.database_relay_url,
        "BRIDGE_DATABASE_PLATFORM_URL": settings.database_platform_url,
    }
    found = {}
    for name, url in urls.items():
        assert url is not None
        parts = urlsplit(url.get_secret_value())
        netloc = f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}"
        found[name] = urlunsplit(parts._replace(netloc=netloc))
    return found


def test_without_the_database_everything_is_503_and_afterwards_it_goes_on(
    deploy: Deploy, proxy: Proxy, settings: Settings, tmp_path: Path
) -> None:
    hook = deploy()
    intake = run_intake(tmp_path, **through(proxy, settings))
    try:
        assert intake.post(hook).status_code == 202
        proxy.cut()
        refused = intake.post(hook, message_id="m")
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "detail" not in refused.json(), "outsiders see an id and a title"
        eventually(lambda: intake.post(hook, path=hook.path + "x").status_code == 503)
        assert intake.client.get("/bridge/health/live").status_code == 200
        proxy.mend()
        answers: list[httpx.Response] = []

        def taken() -> bool:
            answers.append(intake.post(hook, message_id="m"))
            return answers[-1].status_code == 202

        eventually(taken)
        eventually(lambda: intake.post(hook, path=hook.path + "x").status_code == 404)
    finally:
        end(intake)
    assert answers[-1].json()["id"] in message_ids(hook)
    assert len(message_ids(hook)) == 2


def test_an_intake_started_without_the_database_takes_messages_once_it_is_there(
    deploy: Deploy, proxy: Proxy, settings: Settings, tmp_path: Path
) -> None:
    hook = deploy()
    proxy.cut()
    intake = run_intake(tmp_path, **through(proxy, settings))
    try:
        assert intake.post(hook).status_code == 503
        proxy.mend()
        eventually(lambda: intake.post(hook).status_code == 202)
    finally:
        end(intake)


def test_a_change_whose_notification_was_lost_is_found_all_the_same(intake: Intake, deploy: Deploy) -> None:
    hook = deploy()
    assert intake.post(hook).status_code == 202
    with database.tenant(hook.organization.organization_id) as tables:
        tables.execute(
            "UPDATE bridge.endpoints SET status = 'disabled', revision = nextval('bridge.deployment_revision')"
        )
    eventually(
        lambda: intake.post(hook).status_code == 410,
        within_s=20,
    )


def test_whoever_deploys_and_sends_at_once_is_not_refused(intake: Intake, deploy: Deploy) -> None:
    for _ in range(10):
        hook = deploy()
        assert intake.post(hook).status_code == 202


def test_several_workers_know_every_deployment_and_end_together(deploy: Deploy, tmp_path: Path) -> None:
    hook = deploy()
    intake = run_intake(tmp_path, "--workers", "2")
    try:
        later = deploy()
        for each in (hook, later):
            for _ in range(20):
                response = intake.post(each, fresh=True)
                assert response.status_code == 202
        intake.process.kill()
        intake.process.wait()
        eventually(lambda: not listens(intake.port))
    finally:
        end(intake)


def test_the_old_address_answers_for_the_configured_organization(deploy: Deploy, tmp_path: Path) -> None:
    hook = deploy("orders")
    intake = run_intake(
        tmp_path, BRIDGE_LEGACY_ORGANIZATION=hook.organization.slug, BRIDGE_LEGACY_ENVIRONMENT="dev"
    )
    try:
        response = intake.post(hook, path="/api/webhook/orders")
        assert response.status_code == 202
        assert message_ids(hook) == [response.json()["id"]]
        assert intake.post(hook, path="/api/webhook/other").status_code == 404
    finally:
        end(intake)


def test_a_busy_port_is_named_with_the_setting_that_changes_it(tmp_path: Path) -> None:
    import subprocess
    import sys

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [str(Path(sys.executable).with_name("bridge")), "intake", "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ.copy(),
        )
    assert done.returncode == 2
    assert str(port) in done.stderr
    assert "BRIDGE_INTAKE_PORT" in done.stderr


def test_the_idle_server_waits_without_work(intake: Intake) -> None:
    def cpu_s() -> float:
        fields = Path(f"/proc/{intake.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = cpu_s()
    time.sleep(2)
    assert cpu_s() - before < 0.5, "it spins"
