"""The HTTP client behind `http_request`: what answers may look like, which connections are kept, and proxies."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from scripted_server import ScriptedServer, answer

from certificates import self_signed
from continuitybridge.nodes.http import client as clients
from continuitybridge.nodes.http.address import parse
from continuitybridge.nodes.http.client import Client, tls_context
from continuitybridge.nodes.http.wire import ExchangeFailed, RawAnswer

LINES = "x-test: 1\r\n"


@pytest_asyncio.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer()
    await scripted.start()
    yield scripted
    await scripted.stop()


@pytest_asyncio.fixture
async def client() -> AsyncIterator[Client]:
    own = Client(verify=False)
    yield own
    await own.aclose()


def whole(status: int, headers: dict[str, str]) -> tuple[int, bool]:
    return 1_000_000, True


async def ask(
    client: Client, origin: str, method: str = "POST", content: bytes | None = b"{}", reading: Any = whole
) -> RawAnswer:
    return await asyncio.wait_for(client.send(method, parse(f"{origin}/x"), LINES, content, reading), 10)


def raw(data: bytes, *, piece: int = 0, then_close: bool = False) -> Any:
    """Exactly these bytes, in pieces of so many."""

    async def write(writer: asyncio.StreamWriter) -> None:
        for at in range(0, len(data), piece or len(data)):
            writer.write(data[at : at + (piece or len(data))])
            await writer.drain()
            if piece:
                await asyncio.sleep(0)
        if then_close:
            writer.close()

    return write


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\nx-a: 2\r\n\r\n"
    b"4;ext=1\r\nwork\r\n3\r\ned\n\r\n0\r\nTrailer: t\r\n\r\n"
)


@pytest.mark.parametrize("piece", [0, 1, 7])
@pytest.mark.parametrize(
    ("data", "status", "content"),
    [
        (CHUNKED, 200, b"worked\n"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + CHUNKED, 200, b"worked\n"),
        (b"HTTP/1.1 204 No\r\n\r\n", 204, b""),
        (b"HTTP/1.1 304 Same\r\ncontent-length: 50\r\n\r\n", 304, b""),
        (b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok", 200, b"ok"),
    ],
)
async def test_an_answer_is_read_however_it_is_cut_and_the_connection_kept(
    server: ScriptedServer, client: Client, data: bytes, status: int, content: bytes, piece: int
) -> None:
    server.answers = [raw(data, piece=piece), raw(data, piece=piece)]
    for _ in range(2):
        found = await ask(client, server.origin)
        assert (found.status, found.content, found.cut) == (status, content, False)
    assert server.connections == 1
    if data is CHUNKED:
        assert found.headers["x-a"] == "1, 2"


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 200 OK\r\n\r\nto the end", b"HTTP/1.0 200 OK\r\ncontent-length: 10\r\n\r\nto the end"]
)
async def test_a_body_may_end_with_the_connection(server: ScriptedServer, client: Client, data: bytes) -> None:
    server.answers = [raw(data, then_close=True)]
    assert (await ask(client, server.origin)).content == b"to the end"
    await ask(client, server.origin)
    assert server.connections == 2


async def test_an_answer_to_head_has_no_body_whatever_its_length_says(
    server: ScriptedServer, client: Client
) -> None:
    server.answers = [raw(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")]
    found = await ask(client, server.origin, "HEAD", None)
    assert (found.status, found.headers["content-length"], found.content) == (200, "1000", b"")
    assert "content-length" not in server.received[0].headers


async def test_what_follows_an_answer_is_not_taken_for_the_next_one(
    server: ScriptedServer, client: Client
) -> None:
    smuggled = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwrong"
    server.answers = [raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok" + smuggled), answer(201)]
    assert (await ask(client, server.origin)).content == b"ok"
    assert (await ask(client, server.origin)).status == 201
    assert server.connections == 2

    async def later(writer: asyncio.StreamWriter) -> None:
        await answer(200)(writer)
        writer.write(smuggled)
        await writer.drain()

    server.answers = [later, answer(202)]
    await ask(client, server.origin)
    await asyncio.sleep(0.05)
    assert (await ask(client, server.origin)).status == 202


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx:" + b" y" * 100_000,
    ],
)
async def test_an_answer_of_two_meanings_is_none(server: ScriptedServer, client: Client, data: bytes) -> None:
    server.answers = [raw(data)]
    with pytest.raises(ExchangeFailed):
        await ask(client, server.origin)


async def test_no_more_of_a_body_is_read_than_asked_for(server: ScriptedServer, client: Client) -> None:
    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
            await writer.drain()

    server.answers = [endless, endless]
    found = await ask(client, server.origin, reading=lambda status, headers: (5_000, True))
    assert found.cut
    assert 5_000 < len(found.content) < 400_000
    found = await ask(client, server.origin, reading=lambda status, headers: (5_000, False))
    assert (found.cut, found.content) == (True, b"")


async def test_an_answer_that_comes_before_the_request_was_taken_counts(client: Client) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(5)

    # `async with` would wait for the connection's end too, from Python 3.12 on.
    with closing(await asyncio.start_server(refuse, "127.0.0.1", 0)) as refusing:
        port = refusing.sockets[0].getsockname()[1]
        content = b"x" * 30_000_000
        assert (await ask(client, f"http://127.0.0.1:{port}", content=content)).status == 413
        assert not any(client._idle.values())


async def test_connections_at_once_are_kept_up_to_a_bound_and_ended_when_nobody_uses_them(
    server: ScriptedServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "KEPT_PER_ORIGIN", 3)
    monkeypatch.setattr(clients, "KEPT_S", 0.3)
    await asyncio.gather(*(ask(client, server.origin) for _ in range(8)))
    assert server.connections == 8
    await asyncio.gather(*(ask(client, server.origin) for _ in range(3)))
    assert server.connections == 8
    await until(lambda: not server.open_connections)
    assert client._sweep is None
    await ask(client, server.origin)
    assert server.connections == 9


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# ---------------------------------------------------------------- proxies
class Proxy:
    """A forward proxy: passes requests with whole addresses on by hand, and bytes after CONNECT."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.answer = b""
        self.url = ""

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            if self.answer:
                writer.write(self.answer)
                return
            method, target, _ = head.split(" ", 2)
            if method == "CONNECT":
                host, _, port = target.rpartition(":")
                out_reader, out_writer = await asyncio.open_connection(host, int(port))
                writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
                await asyncio.gather(passed(reader, out_writer), passed(out_reader, writer))
            else:
                writer.write(b"HTTP/1.1 202 By proxy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        finally:
            writer.close()


async def passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


@asynccontextmanager
async def running_proxy(tls: ssl.SSLContext | None = None) -> AsyncIterator[Proxy]:
    proxy = Proxy()
    with closing(await asyncio.start_server(proxy.connected, "127.0.0.1", 0, ssl=tls)) as listening:
        port = listening.sockets[0].getsockname()[1]
        proxy.url = f"{'https' if tls else 'http'}://us%40er:pa%3Ass@127.0.0.1:{port}"
        yield proxy


CREDENTIALS = "proxy-authorization: Basic dXNAZXI6cGE6c3M=\r\n"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def server_context(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(folder))
    return context


async def test_a_plain_request_goes_to_the_proxy_with_its_whole_address(environment: pytest.MonkeyPatch) -> None:
    async with running_proxy() as proxy:
        environment.setenv("HTTP_PROXY", proxy.url)
        client = Client(verify=True)
        found = await ask(client, "http://destination.invalid:8080")
        assert found.status == 202
        (head,) = proxy.heads
        assert head.startswith(
            "POST http://destination.invalid:8080/x HTTP/1.1\r\nhost: destination.invalid:8080\r\n"
        )
        assert CREDENTIALS in head
        await client.aclose()


@pytest.mark.parametrize("secure", [False, True])
async def test_a_request_over_tls_goes_through_the_proxy_unread(
    environment: pytest.MonkeyPatch, tmp_path: Path, secure: bool
) -> None:
    context = server_context(tmp_path)
    destination = ScriptedServer()
    await destination.start(context)
    async with running_proxy(context if secure else None) as proxy:
        environment.setenv("ALL_PROXY", proxy.url)
        client = Client(verify=False)
        for _ in range(2):
            assert (await ask(client, destination.origin)).status == 200
        (head,) = proxy.heads
        assert head.startswith(f"CONNECT {destination.origin.removeprefix('https://')} HTTP/1.1\r\n")
        assert CREDENTIALS in head
        assert "x-test" not in head
        assert [request.target for request in destination.received] == ["/x", "/x"]
        assert "proxy-authorization" not in destination.received[0].headers
        await client.aclose()
    await destination.stop()


@pytest.mark.parametrize("said", [b"HTTP/1.1 407 Who\r\n\r\n", b"hello\r\n\r\n", b"HTTP/1.1 200", b"\0" * 100_000])
async def test_a_proxy_that_does_not_connect_is_a_failure(environment: pytest.MonkeyPatch, said: bytes) -> None:
    async with running_proxy() as proxy:
        environment.setenv("HTTPS_PROXY", proxy.url)
        proxy.answer = said
        with pytest.raises((ExchangeFailed, OSError)) as failed:
            await ask(Client(verify=True), "https://destination.invalid")
        assert "pa:ss" not in str(failed.value)


async def test_hosts_that_need_no_proxy_are_called_directly(
    environment: pytest.MonkeyPatch, server: ScriptedServer
) -> None:
    environment.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    environment.setenv("NO_PROXY", "example.org, 127.0.0.1")
    client = Client(verify=True)
    assert (await ask(client, server.origin)).status == 200
    await client.aclose()


async def test_a_proxy_that_cannot_be_used_is_a_failure_that_tells_no_password(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("ALL_PROXY", "socks5://user:canary@127.0.0.1:1080")
    with pytest.raises(ExchangeFailed) as failed:
        await ask(Client(verify=True), "http://destination.invalid")
    assert "canary" not in str(failed.value)


async def test_the_authorities_are_those_of_the_environment(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    destination = ScriptedServer()
    await destination.start(server_context(tmp_path))
    for trusted in (False, True):
        if trusted:
            environment.setenv("SSL_CERT_FILE", str(tmp_path / "server.pem"))
        tls_context.cache_clear()
        client = Client(verify=True)
        try:
            if trusted:
                assert (await ask(client, destination.origin)).status == 200
            else:
                with pytest.raises(ssl.SSLCertVerificationError):
                    await ask(client, destination.origin)
        finally:
            await client.aclose()
            tls_context.cache_clear()
    await destination.stop()
