"""Connections to destinations, kept for the next request; directly, or by way of the environment's proxies."""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
from collections import deque
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

import certifi

from continuitybridge.egress.connecting import judged, open_socket
from continuitybridge.nodes.http.address import Address, Origin
from continuitybridge.nodes.http.wire import Connection, ExchangeFailed, RawAnswer, Reading
from continuitybridge.settings import egress_policy

KEPT_S = 60.0
"""So long a connection that nobody uses is kept."""
KEPT_PER_ORIGIN = 64
_MAX_HEAD_BYTES = 64 * 1024


class Proxy(NamedTuple):
    """By way of whom: its origin, and what it is told of who asks ("" for nothing)."""

    origin: Origin
    authorization: str


class Client:
    """Connections of one event loop, all with the same answer to whether certificates are checked.

    Proxies are those of `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` when it is made. It keeps no
    cookies and follows no redirects. Not bounded here: who uses it bounds how many requests are under way.
    Where it may connect to, the process's egress policy says, each time that it connects.
    """

    def __init__(self, *, verify: bool) -> None:
        self._verify = verify
        self._loop = asyncio.get_running_loop()
        self._proxies = getproxies_environment()
        self._idle: dict[Origin, deque[Connection]] = {}
        self._sweep: asyncio.TimerHandle | None = None

    async def send(
        self,
        method: str,
        address: Address,
        headers: str,
        content: bytes | None,
        reading: Reading,
    ) -> RawAnswer:
        """One request and its answer. `headers` are whole lines, without Host and Content-Length.

        A connection that the destination closed while it was idle is replaced, and the request sent again: it
        had no answer, and its repetition bears the same idempotency key. Raises `ExchangeFailed`, `OSError`
        (also for TLS) when there is no connection, `EgressRefused` when there may be none.
        """
        origin, target = address
        proxy = self._proxy_of(origin)
        if proxy is not None and origin.scheme == "http":
            target = f"http://{origin.authority}{target}"
            if proxy.authorization:
                headers += f"proxy-authorization: {proxy.authorization}\r\n"
        length = (
            "" if content is None and method in _WITHOUT_LENGTH else f"content-length: {len(content or b'')}\r\n"
        )
        head = f"{method} {target} HTTP/1.1\r\nhost: {origin.authority}\r\n{headers}{length}\r\n".encode("ascii")
        kept = self._kept(origin)
        if kept is not None:
            try:
                return await self._exchange(kept, origin, method, head, content, reading)
            except ExchangeFailed as failed:
                if not failed.unheard:
                    raise
        fresh = await self._connect(origin, proxy)
        return await self._exchange(fresh, origin, method, head, content, reading)

    async def aclose(self) -> None:
        """End the idle connections."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for connections in self._idle.values():
            while connections:
                connections.pop().close()

    async def _exchange(
        self,
        connection: Connection,
        origin: Origin,
        method: str,
        head: bytes,
        content: bytes | None,
        reading: Reading,
    ) -> RawAnswer:
        answer = await connection.exchange(head, content or b"", reading, without_body=method == "HEAD")
        if connection.usable:
            self._keep(origin, connection)
        return answer

    # -- keeping ------------------------------------------------------------------------------------------

    def _kept(self, origin: Origin) -> Connection | None:
        connections = self._idle.get(origin)
        while connections:
            connection = connections.pop()  # the one used last: those that are too many grow old
            if connection.usable:
                return connection
        return None

    def _keep(self, origin: Origin, connection: Connection) -> None:
        connections = self._idle.setdefault(origin, deque())
        connection.idle_since = self._loop.time()
        connections.append(connection)
        if len(connections) > KEPT_PER_ORIGIN:
            connections.popleft().close()
        if self._sweep is None:
            self._sweep = self._loop.call_later(KEPT_S, self._swept)

    def _swept(self) -> None:
        """End what nobody used for `KEPT_S`; look again while there is anything, so that idling costs nothing."""
        old = self._loop.time() - KEPT_S + 0.1
        for origin, connections in list(self._idle.items()):
            while connections and (connections[0].idle_since <= old or not connections[0].usable):
                connections.popleft().close()
            if not connections:
                del self._idle[origin]
        self._sweep = self._loop.call_later(KEPT_S, self._swept) if self._idle else None

    # -- connecting ---------------------------------------------------------------------------------------

    async def _connect(self, origin: Origin, proxy: Proxy | None) -> Connection:
        secure = tls_context(self._verify) if origin.scheme == "https" else None
        policy = egress_policy()
        if proxy is None:
            connected = await open_socket(policy, origin.host, origin.port)
            _, connection = await self._loop.create_connection(
                Connection, sock=connected, ssl=secure, server_hostname=origin.host if secure else None
            )
            return connection
        # The proxy resolves the name once more; where nobody here knows it, the proxy alone decides.
        with suppress(OSError):
            await judged(policy, origin.host, origin.port)
        to_proxy = tls_context(self._verify) if proxy.origin.scheme == "https" else None
        if secure is None:
            _, connection = await self._loop.create_connection(
                Connection, proxy.origin.host, proxy.origin.port, ssl=to_proxy
            )
            return connection
        return await self._tunnelled(origin, proxy, to_proxy, secure)

    async def _tunnelled(
        self, origin: Origin, proxy: Proxy, to_proxy: ssl.SSLContext | None, secure: ssl.SSLContext
    ) -> Connection:
        """Through a proxy that passes bytes on (CONNECT: RFC 9110, 9.3.6)."""
        transport, tunnel = await self._loop.create_connection(
            _Tunnel, proxy.origin.host, proxy.origin.port, ssl=to_proxy
        )
        try:
            host = f"[{origin.host}]" if ":" in origin.host else origin.host
            head = f"CONNECT {host}:{origin.port} HTTP/1.1\r\nhost: {host}:{origin.port}\r\n"
            if proxy.authorization:
                head += f"proxy-authorization: {proxy.authorization}\r\n"
            transport.write(f"{head}\r\n".encode("ascii"))
            await tunnel.opened
            connection = Connection()
            inner = await self._loop.start_tls(transport, connection, secure, server_hostname=origin.host)
            if inner is None:
                raise ExchangeFailed("the proxy ended the connection")
            connection.connection_made(inner)
        except BaseException:
            transport.abort()
            raise
        return connection

    def _proxy_of(self, origin: Origin) -> Proxy | None:
        if not self._proxies:
            return None
        url = self._proxies.get(origin.scheme) or self._proxies.get("all")
        if not url or proxy_bypass_environment(f"{origin.host}:{origin.port}", self._proxies):
            return None
        return _proxy(url)


_WITHOUT_LENGTH = frozenset({"GET", "HEAD", "DELETE"})


class _Tunnel(asyncio.Protocol):
    """Waits for a proxy's answer to CONNECT."""

    def __init__(self) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._head = b""

    def data_received(self, data: bytes) -> None:
        self._head += data
        if b"\r\n\r\n" not in self._head and len(self._head) <= _MAX_HEAD_BYTES:
            return
        words = self._head.split(b"\r\n", 1)[0].split(b" ", 2)
        whole = self._head.endswith(b"\r\n\r\n") and words[0].startswith(b"HTTP/1.") and len(words) > 1
        if whole and len(words[1]) == 3 and words[1].startswith(b"2"):
            self._end(None)
        else:
            status = words[1].decode("latin-1")[:20] if whole else "no HTTP"
            self._end(ExchangeFailed(f"the proxy answered {status}"))

    def connection_lost(self, error: Exception | None) -> None:
        self._end(ExchangeFailed("the proxy ended the connection"))

    def _end(self, error: ExchangeFailed | None) -> None:
        if self.opened.done():
            return
        if error is None:
            self.opened.set_result(None)
        else:
            self.opened.set_exception(error)


@lru_cache(maxsize=64)
def _proxy(url: str) -> Proxy:
    """Raises `ExchangeFailed`, whose text does not repeat the proxy's password, for one that cannot be used."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ExchangeFailed("the environment's proxy has no address that begins with http:// or https://")
    authorization = ""
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = f"Basic {base64.b64encode(pair.encode()).decode()}"
    return Proxy(
        Origin(parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80)), authorization
    )


@lru_cache(maxsize=2)
def tls_context(verify: bool) -> ssl.SSLContext:
    """Whom we believe: the authorities of `SSL_CERT_FILE` or `SSL_CERT_DIR`, else of the package certifi; without
    `verify`, anybody. Loading the certificates takes longer than a request: once per process."""
    if not verify:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif file := os.environ.get("SSL_CERT_FILE"):
        context = ssl.create_default_context(cafile=file)
    elif folder := os.environ.get("SSL_CERT_DIR"):
        context = ssl.create_default_context(capath=folder)
    else:
        context = ssl.create_default_context(cafile=certifi.where())
    context.set_alpn_protocols(["http/1.1"])
    return context
