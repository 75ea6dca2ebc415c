"""Intake alone: a server for `IntakeApp`, so that it scales apart from the api-server and is spared its
middlewares. `/bridge/health/live` answers here too."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from continuitybridge import browser_headers
from continuitybridge.inbox.accept.aio import GroupCommit
from continuitybridge.settings import Settings, get_settings
from continuitybridge.vault.keyring import Keyring
from continuitybridge.webhooks import late_requests, upgrades
from continuitybridge.webhooks.direct import MakeDirect
from continuitybridge.webhooks.intake import IntakeApp
from continuitybridge.webhooks.request import Receive, Scope, Send

App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_HEAD_BYTES = 64 * 1024
"""Largest request line and headers; more ends the connection with 431."""
MIN_READ_BYTES = 16 * 1024
"""How much of its answers a sender has to read in `intake_body_timeout_s`, where so much waits for him."""
_BYTES_ACKED_AT = 120
"""In the kernel's `struct tcp_info`: what the other end has taken, in 8 bytes."""
KEEP_ALIVE_S = 15
COLLECTOR_THRESHOLDS = (50_000, 20, 20)
"""How many new objects make Python look for garbage, and how often it looks among the older ones."""
LIVE_PATH = "/bridge/health/live"
_OURS = ("/bridge/", "/api/")
"""How our addresses begin."""
_PR_SET_PDEATHSIG = 1


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with bounds on a request's head: `intake_body_timeout_s` from the connection's or the
    request's first byte, and `MAX_HEAD_BYTES`; and on the time in which nothing of the answers is read, the same.
    uvicorn itself waits for ever and keeps what comes, and what nobody reads."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timeout_s = self._read_timeout_s = get_settings().intake_body_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = True
        self._heads = 0
        self._read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        if self._read_timer is not None:
            self._read_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        heads = self._heads
        super().data_received(data)
        if not self._in_head:
            return
        if self._head_timer is None:
            self._await_head()
        if self._heads == heads:
            self._head_bytes += len(data)
        # Else it begins behind another request, and how much of what was received is its is not known.
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._end(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        # A head that is here as a whole needs no timer: `data_received` looks whether it is.
        self._in_head = True

    def on_headers_complete(self) -> None:
        self._heads += 1
        self._head_arrived()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        if self._read_timer is None and (unread := self.transport.get_write_buffer_size()):
            self._await_reading(unread)
        super().on_response_complete()

    def _await_reading(self, unread: int) -> None:
        due = _taken_bytes(self.transport) + min(unread, MIN_READ_BYTES)
        self._read_timer = self.loop.call_later(self._read_timeout_s, self._end_unless_read, due)

    def _end_unless_read(self, due: int) -> None:
        """Closing the connection of somebody who reads nothing would wait until he does: it is cut."""
        self._read_timer = None
        if unread := self.transport.get_write_buffer_size():
            if _taken_bytes(self.transport) < due:
                self.transport.abort()
            else:
                self._await_reading(unread)

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(self._head_timeout_s, self._head_is_late)

    def _head_is_late(self) -> None:
        if self.flow.read_paused:
            # Its rest may be here: it is not read before the requests in front of it are answered.
            self._head_timer = self.loop.call_later(self._head_timeout_s, self._head_is_late)
        else:
            self._end(b"408 Request Timeout")

    def _head_arrived(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end(self, status: bytes) -> None:
        self._head_arrived()
        if not self.transport.is_closing():
            lines = b"".join(b"%s: %s\r\n" % each for each in self.server_state.default_headers)
            end = b"content-length: 0\r\nconnection: close\r\n\r\n"
            self.transport.write(b"HTTP/1.1 " + status + b"\r\n" + lines + end)
            self.transport.close()


def _taken_bytes(transport: asyncio.Transport) -> int:
    """How much the other end of a connection has taken of what was ever sent to it."""
    told = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED_AT + 8)
    return int.from_bytes(told[_BYTES_ACKED_AT:], sys.byteorder)


class Alone:
    """`IntakeApp` with a liveness address beside it."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        commits: Callable[[Keyring], GroupCommit] = GroupCommit,
        direct: MakeDirect | None = None,
    ) -> None:
        self._intake = IntakeApp(settings or get_settings(), commits=commits, direct=direct)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == LIVE_PATH and scope["method"] in ("GET", "HEAD"):
            headers = [(b"content-type", b"application/json"), (b"content-length", b"15")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"status":"ok"}'})
            return
        await self._intake(scope, receive, send)


class Below:
    """An application whose addresses may stand below the public address's path too: a proxy may hand that on, as
    it must to the api-server, or take it away. Nobody further in sees it."""

    def __init__(self, path: str, app: App) -> None:
        self._beginnings = tuple(f"{path}{each}" for each in _OURS)
        self._path = path
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(self._beginnings):
            path = scope["path"].removeprefix(self._path)
            raw_path = scope.get("raw_path", b"").removeprefix(self._path.encode())
            scope = {**scope, "path": path, "raw_path": raw_path}
        await self._app(scope, receive, send)


def prepare_process() -> None:
    """Make this worker process of a server fit for intake alone. Its stop cuts no request that was sent before."""
    late_requests.install()
    upgrades.install()
    if multiprocessing.parent_process() is not None:
        # A supervisor that is killed must not leave workers behind that hold its port.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        parent = multiprocessing.parent_process()
        if parent is not None and os.getppid() != parent.pid:
            os.kill(os.getpid(), signal.SIGTERM)
    # What is loaded by now stays: looking for garbage among it, at every 700th new object, is 6 % of the work.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


def _careful(settings: Settings) -> browser_headers.Headers:
    by_https = settings.external_url.startswith("https://")
    return (*browser_headers.DATA, *browser_headers.HSTS) if by_https else browser_headers.DATA


def serve(application: str, host: str, port: int, workers: int) -> None:
    """Serve what `application` (`module:factory`) makes in each worker process, until SIGTERM or SIGINT;
    requests under way are answered first. Raises `OSError` for a busy port."""
    settings = get_settings()
    with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
        pass  # A busy port is found here, with its cause, before any worker starts.
    options: dict[str, Any] = {
        "factory": True,
        "host": host,
        "port": port,
        "workers": workers,
        "http": BoundedProtocol,
        "ws": "none",
        "lifespan": "on",
        "access_log": False,
        "log_level": "warning",
        "proxy_headers": False,
        "server_header": False,
        # Written by the server itself: nothing is paid for them at a request.
        "headers": [(name.decode(), value.decode()) for name, value in _careful(settings)],
        "backlog": 4096,
        "timeout_keep_alive": KEEP_ALIVE_S,
        "timeout_graceful_shutdown": max(1, int(settings.intake_drain_s)),
    }
    late_requests.install_above()
    uvicorn.run(application, **options)
