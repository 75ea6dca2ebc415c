"""What keeps one sender from harming the others: time, memory, rate; and senders that do not speak HTTP well."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import httpx
import psutil
import pytest

from continuitybridge import database
from continuitybridge.inbox.accept import Acceptance, Accepted, Lease
from continuitybridge.inbox.accept.aio import GroupCommit
from continuitybridge.organizations import Organization
from continuitybridge.settings import Settings
from continuitybridge.webhooks import intake as intake_module
from continuitybridge.webhooks.intake import IntakeApp

from .conftest import Deploy, Hook, Intake, end, eventually, run_intake

BODY = b'{"po_number": "4711"}'


@pytest.fixture(scope="module")
def strict(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Intake]:
    """An intake with tight bounds."""
    running = run_intake(
        tmp_path_factory.mktemp("strict"),
        BRIDGE_INTAKE_BODY_TIMEOUT_S="1",
        BRIDGE_INTAKE_MAX_REQUESTS="10",
        BRIDGE_INTAKE_MAX_BUFFER_BYTES="320000",
    )
    yield running
    end(running)


def connect(intake: Intake) -> socket.socket:
    return socket.create_connection(("127.0.0.1", intake.port), timeout=15)


def head(hook: Hook, *lines: str, signed: bytes = BODY) -> bytes:
    """A request's head, with these further header lines."""
    headers = [f"{name}: {value}" for name, value in hook.signed(signed).items()]
    return "\r\n".join([f"POST {hook.path} HTTP/1.1", "host: x", *headers, *lines, "", ""]).encode()


def everything(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def status(received: bytes) -> int:
    return int(received.split(b" ", 2)[1])


def still_takes_messages(intake: Intake, hook: Hook) -> None:
    response = intake.post(hook)
    assert response.status_code == 202, response.text


def test_a_body_that_does_not_arrive_is_408_and_the_connection_ends(strict: Intake, deploy: Deploy) -> None:
    hook = deploy()
    with closing(connect(strict)) as connection:
        connection.sendall(head(hook, f"content-length: {len(BODY)}") + BODY[:5])
        received = everything(connection)
    assert status(received) == 408
    assert b"application/problem+json" in received
    still_takes_messages(strict, hook)


def test_a_body_that_arrives_byte_by_byte_is_ended_by_the_time_allowed_for_all_of_it(
    strict: Intake, deploy: Deploy
) -> None:
    hook = deploy()
    with closing(connect(strict)) as connection:
        connection.sendall(head(hook, "content-length: 1000"))
        connection.settimeout(0.05)
        received = b""
        for _ in range(200):
            try:
                connection.sendall(b"x")
                received += connection.recv(4096)
            except TimeoutError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                break
            if received:
                break
    assert status(received) == 408


def test_a_head_that_does_not_arrive_ends_the_connection(strict: Intake, deploy: Deploy) -> None:
    with closing(connect(strict)) as silent, closing(connect(strict)) as slow:
        slow.sendall(b"POST /bridge/hooks/a/dev/b HTTP/1.1\r\nhost: x\r\nx-a: ")
        assert status(everything(slow)) == 408
        assert status(everything(silent)) == 408
    with closing(connect(strict)) as reused:
        hook = deploy()
        reused.sendall(head(hook, f"content-length: {len(BODY)}") + BODY)
        assert status(reused.recv(65536)) == 202
        reused.sendall(b"POST /bridge")
        ended = everything(reused)
        assert status(ended) == 408
        assert b"\r\nx-content-type-options: nosniff\r\n" in ended


def test_a_head_without_end_is_refused(strict: Intake, deploy: Deploy) -> None:
    with closing(connect(strict)) as connection:
        try:
            connection.sendall(b"POST / HTTP/1.1\r\n")
            for number in range(3000):
                connection.sendall(f"x-{number}: {'v' * 100}\r\n".encode())
        except (ConnectionResetError, BrokenPipeError):
            pass
        received = everything(connection)
    assert not received or status(received) == 431
    still_takes_messages(strict, deploy())


def test_an_endless_chunked_body_is_413_and_cut(strict: Intake, deploy: Deploy) -> None:
    hook = deploy(max_body_bytes=10_000)
    with closing(connect(strict)) as connection:
        connection.sendall(head(hook, "transfer-encoding: chunked"))
        sent = 0
        try:
            for _ in range(5000):
                connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent += 65536
        except (ConnectionResetError, BrokenPipeError):
            pass
        received = everything(connection)
    assert sent < 5000 * 65536, "it was read without end"
    assert not received or status(received) == 413
    still_takes_messages(strict, hook)


def test_a_sender_that_waits_for_100_continue_is_refused_before_it_sends(strict: Intake, deploy: Deploy) -> None:
    hook = deploy(max_body_bytes=1000)
    with closing(connect(strict)) as connection:
        connection.sendall(head(hook, "content-length: 100000", "expect: 100-continue"))
        assert status(everything(connection)) == 413
    with closing(connect(strict)) as connection:
        connection.sendall(head(hook, f"content-length: {len(BODY)}", "expect: 100-continue"))
        assert status(connection.recv(65536)) == 100
        connection.sendall(BODY)
        assert status(connection.recv(65536)) == 202


@pytest.mark.parametrize(
    "lines",
    [
        ("content-length: 21", "content-length: 22"),
        ("content-length: -1",),
        ("content-length: +21",),
        ("content-length: 99999999999999999999999",),
        ("content-length: 21", "transfer-encoding: chunked"),
        ("transfer-encoding: gzip, chunked, identity",),
        ("transfer-encoding: chunked", "no colon here"),
        ("content-length: 21", "x-\x01: y"),
    ],
)
def test_ambiguous_or_broken_framing_is_never_accepted(
    strict: Intake, deploy: Deploy, lines: tuple[str, ...]
) -> None:
    hook = deploy()
    with closing(connect(strict)) as connection:
        connection.sendall(head(hook, *lines) + BODY)
        received = everything(connection)
    assert 400 <= status(received) < 500
    with database.tenant(hook.organization.organization_id) as tables:
        assert tables.execute("SELECT count(*) FROM bridge.messages").fetchone() == (0,)
    still_takes_messages(strict, hook)


def test_garbage_is_refused_and_harms_nobody(strict: Intake, deploy: Deploy) -> None:
    hook = deploy()
    chance = random.Random(4711)
    for size in (1, 10, 1000, 100_000):
        with closing(connect(strict)) as connection:
            try:
                connection.sendall(chance.randbytes(size) + b"\r\n\r\n")
            except (ConnectionResetError, BrokenPipeError):
                continue
            received = everything(connection)
        assert not received or 400 <= status(received) < 500
    for name in (b"webhook-signature", b"content-type", b"idempotency-key", b"content-length", b"x-a"):
        with closing(connect(strict)) as connection:
            value = bytes(byte for byte in chance.randbytes(300) if byte not in b"\r\n\0")
            connection.sendall(b"POST " + hook.path.encode() + b" HTTP/1.1\r\nhost: x\r\n" + name + b": " + value)
            with contextlib.suppress(OSError):
                connection.sendall(b"\r\ncontent-length: 0\r\n\r\n")
                connection.shutdown(socket.SHUT_WR)
            received = everything(connection)
        assert not received or 400 <= status(received) < 500
    still_takes_messages(strict, hook)


def test_a_sender_that_leaves_in_the_middle_leaves_no_message(strict: Intake, deploy: Deploy) -> None:
    hook = deploy()
    for _ in range(20):
        with closing(connect(strict)) as connection:
            connection.sendall(head(hook, f"content-length: {len(BODY)}") + BODY[:5])
    eventually(lambda: strict.post(hook).status_code == 202)
    with database.tenant(hook.organization.organization_id) as tables:
        assert tables.execute("SELECT count(*) FROM bridge.messages").fetchone() == (1,)


def test_pipelined_requests_are_answered_in_their_order(strict: Intake, deploy: Deploy) -> None:
    hook = deploy()
    with closing(connect(strict)) as connection:
        one = head(hook, f"content-length: {len(BODY)}") + BODY
        missing = one.replace(hook.path.encode(), hook.path.encode() + b"x")
        connection.sendall(one + missing + one)
        received = b""
        while received.count(b"HTTP/1.1 ") < 3 and (piece := connection.recv(65536)):
            received += piece
    assert [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]] == [202, 404, 202]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_a_request_that_offers_another_protocol_is_read_with_its_body_and_what_comes_behind_it(
    strict: Intake, deploy: Deploy, apart: bool, chunked: bool
) -> None:
    hook = deploy()
    # A body that would pass for a request of its own.
    body = b'{"of": 1}GET /bridge/health/live HTTP/1.1\r\nhost: x\r\n\r\n'
    offer = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAoAAAAAIAAAAA")
    framing = "transfer-encoding: chunked" if chunked else f"content-length: {len(body)}"
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    usual = head(hook, f"content-length: {len(BODY)}") + BODY
    with closing(connect(strict)) as connection:
        connection.sendall(head(hook, *offer, framing, signed=body))
        if apart:
            time.sleep(0.05)
            connection.sendall(sent[:9])
            time.sleep(0.05)
            sent = sent[9:]
        connection.sendall(sent + usual)
        received = b""
        while received.count(b"HTTP/1.1 ") < 2 and (piece := connection.recv(65536)):
            received += piece
    assert [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]] == [202, 202], received
    with database.tenant(hook.organization.organization_id) as tables:
        sizes = {row[0] for row in tables.execute("SELECT size_bytes FROM bridge.messages")}
    assert sizes == {len(body), len(BODY)}


def test_an_offer_with_an_empty_body_is_answered_however_its_length_is_written(
    strict: Intake, deploy: Deploy
) -> None:
    hook = deploy()
    offer = ("connection: Upgrade", "upgrade: h2c")
    with closing(connect(strict)) as connection:
        connection.sendall(head(hook, *offer, "content-length: 0 ", signed=b""))
        began = time.monotonic()
        received = connection.recv(65536)
    assert received.startswith(b"HTTP/1.1 422 ")
    assert time.monotonic() - began < 0.9, "it waited for a body"


def ask_for_much(intake: Intake, hook: Hook, room_bytes: int) -> socket.socket:
    """Ask for more than the buffers of both ends hold, on one connection that has so much room for answers."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room_bytes)
    connection.connect(("127.0.0.1", intake.port))
    connection.settimeout(0.2)
    lines = (f"POST {hook.path} HTTP/1.1", "host: x", "content-type: application/json", "content-length: 2", "")
    asked = "\r\n".join([*lines, "{}"]).encode() * 20_000
    with contextlib.suppress(TimeoutError):
        # What the server does not take while its answers wait stays unsent.
        connection.sendall(asked)
    return connection


def keeps(intake: Intake, connection: socket.socket) -> bool:
    """Whether the server has its end of a connection still; the other end learns of it when it reads."""
    port = connection.getsockname()[1]
    return any(
        each.raddr and each.raddr.port == port for each in psutil.Process(intake.process.pid).net_connections()
    )


def test_who_never_reads_his_answers_is_cut_off_and_who_reads_them_slowly_is_not(
    strict: Intake, deploy: Deploy
) -> None:
    hook = deploy()
    with closing(ask_for_much(strict, hook, 4096)) as silent, closing(ask_for_much(strict, hook, 65_536)) as slow:
        assert keeps(strict, silent)
        until = time.monotonic() + 15
        while keeps(strict, silent):
            assert time.monotonic() < until, "who reads nothing keeps his connection"
            with contextlib.suppress(TimeoutError):
                assert slow.recv(32 * 1024)
            time.sleep(0.1)
        assert keeps(strict, slow)


def test_more_requests_than_an_organization_may_have_under_way_are_503_with_retry_after_for_it_alone(
    strict: Intake, deploy: Deploy, make_organization: Callable[[], Organization]
) -> None:
    hook, other, third = deploy(), deploy(of=make_organization()), deploy(of=make_organization())
    with ExitStack() as stuck:

        def leave_stuck(of: Hook) -> None:
            connection = stuck.enter_context(closing(connect(strict)))
            connection.sendall(head(of, f"content-length: {len(BODY)}") + BODY[:5])

        for _ in range(9):
            leave_stuck(hook)
        time.sleep(0.2)
        response = strict.post(hook)
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        assert response.headers["content-type"] == "application/problem+json"
        still_takes_messages(strict, other)
        leave_stuck(other)
        time.sleep(0.2)
        assert strict.post(third).status_code == 503, "all places are taken"
    eventually(lambda: strict.post(hook).status_code == 202)


def test_more_bytes_of_bodies_than_an_organization_may_have_are_503_for_it_alone(
    strict: Intake, deploy: Deploy, make_organization: Callable[[], Organization]
) -> None:
    hook, other = deploy(), deploy(of=make_organization())
    body = b'"' + b"x" * 20_000 + b'"'
    with ExitStack() as stuck:
        for _ in range(2):
            connection = stuck.enter_context(closing(connect(strict)))
            connection.sendall(head(hook, "content-length: 200000") + b"x" * 140_000)
        time.sleep(0.2)
        assert strict.post(hook, body).status_code == 503
        assert strict.post(hook).status_code == 202
        assert strict.post(other, body).status_code == 202
    eventually(lambda: strict.post(hook, body).status_code == 202)


def test_a_sender_above_the_rate_is_429_and_admitted_after_retry_after(
    settings: Settings, deploy: Deploy, tmp_path_factory: pytest.TempPathFactory
) -> None:
    hook, other = deploy(), deploy()
    intake = run_intake(tmp_path_factory.mktemp("rate"), BRIDGE_INTAKE_RATE_PER_S="2")
    try:
        answers = [intake.post(hook) for _ in range(6)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert [answer.status_code for answer in answers[:2]] == [202, 202]
        assert refused
        wrong = intake.post(hook, headers={**hook.signed(BODY), "webhook-id": "other"})
        assert wrong.status_code == 401, "who is not believed uses up nobody's rate"
        assert intake.post(other).status_code == 202
        time.sleep(int(refused[-1].headers["retry-after"]))
        assert intake.post(hook).status_code == 202
    finally:
        end(intake)


def test_a_flood_of_refusals_is_one_row_a_minute(intake: Intake, deploy: Deploy) -> None:
    hook = deploy()

    def forge(_: int) -> int:
        headers = {**hook.signed(BODY), "webhook-signature": f"v1,{os.urandom(24).hex()}"}
        return intake.post(hook, headers=headers).status_code

    with ThreadPoolExecutor(8) as senders:
        assert set(senders.map(forge, range(200))) == {401}
    made_up = hook.path.removesuffix(hook.slug)
    for number in range(20):
        assert intake.post(hook, path=f"{made_up}made-up-{number}").status_code == 404

    def counted() -> dict[tuple[str, str], tuple[int, int]]:
        with database.tenant(hook.organization.organization_id) as tables:
            rows = tables.execute(
                "SELECT endpoint, code, count(*), sum(count) FROM bridge.refusals GROUP BY endpoint, code"
            ).fetchall()
        return {(row[0], row[1]): (row[2], int(row[3])) for row in rows}

    wanted = {(hook.slug, "not-authenticated"): 200, ("-", "not-found"): 20}
    eventually(lambda: {key: found[1] for key, found in counted().items()} == wanted, within_s=15)
    assert all(rows <= 2 for rows, _ in counted().values()), "a minute may have ended meanwhile"


async def test_a_message_that_is_accepted_by_nobody_is_503_in_the_end(
    settings: Settings, deploy: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NeverEnds(GroupCommit):
        async def submit(self, acceptance: Acceptance, lease: Lease | None = None) -> Accepted:
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr(intake_module, "ACCEPT_WITHIN_S", 0.3 - settings.intake_body_timeout_s)
    hook = deploy()
    app = IntakeApp(settings, commits=NeverEnds)
    await app.start()
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://bridge") as client:
            answer = await asyncio.wait_for(client.post(hook.path, content=BODY, headers=hook.signed(BODY)), 10)
    finally:
        await app.stop()
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
