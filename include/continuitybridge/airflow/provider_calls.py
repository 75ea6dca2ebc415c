"""Requests to identity providers, each bounded as a whole: in time, from the lookup of a name on, and in size.

Authlib sends by `requests`, whose timeout begins anew with each byte: a provider that drips would hold a thread as
long as it likes. Here a request is given up at its moment, wherever it stands, and so are several of one sign-in
together (`within`).
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from io import BytesIO
from typing import Any

import httpx
import requests
from authlib.integrations.flask_client import FlaskOAuth2App
from authlib.integrations.requests_client import OAuth2Session
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from continuitybridge.nodes.http.client import tls_context

TIMEOUT_S = 5.0
"""How long a provider may take for each answer."""
MAX_ANSWER_BYTES = 1_000_000
CLOSING_S = 0.2
"""How long connections may take to be closed besides."""

_until: ContextVar[float] = ContextVar("bridge_provider_until", default=float("inf"))


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """The requests that are sent inside, all of them together, end within so many seconds."""
    token = _until.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _until.reset(token)


class BoundedAdapter(BaseAdapter):
    """How a session of `requests` sends. Raises `requests.Timeout` when the time is over, and
    `requests.ConnectionError` where there is no answer for another reason."""

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        left_s = min(TIMEOUT_S, _until.get() - time.monotonic())
        if left_s <= 0:
            raise requests.Timeout("the provider took too long before", request=request)
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(_exchange(request, left_s))
        except TimeoutError:
            raise requests.Timeout(f"no whole answer within {left_s:.1f} s", request=request) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise requests.ConnectionError(f"{type(error).__name__}: {error}", request=request) from error
        finally:
            # Not as asyncio.run ends: that waits for names that are still looked up.
            loop.run_until_complete(_end(loop))
            loop.close()

    def close(self) -> None:
        pass


async def _exchange(request: requests.PreparedRequest, left_s: float) -> requests.Response:
    headers = {str(name): str(value) for name, value in request.headers.items()} | {"Accept-Encoding": "identity"}
    content = request.body if isinstance(request.body, str | bytes) else None
    async with (
        asyncio.timeout(left_s),
        httpx.AsyncClient(verify=tls_context(True), timeout=left_s, follow_redirects=False) as client,
        client.stream(str(request.method), str(request.url), headers=headers, content=content) as answer,
    ):
        body = b""
        async for part in answer.aiter_raw():
            body += part
            if len(body) > MAX_ANSWER_BYTES:
                raise httpx.ReadError(f"an answer has at most {MAX_ANSWER_BYTES} bytes")
    body = _unpacked(body, answer.headers.get("content-encoding", ""))
    made = requests.Response()
    made.status_code, made.url, made.request = answer.status_code, str(request.url), request
    made.headers = CaseInsensitiveDict(answer.headers.items())
    made.headers.pop("content-encoding", None)
    made.raw = BytesIO(body)
    return made


def _unpacked(body: bytes, encoding: str) -> bytes:
    """Some servers pack what nobody asked to have packed. What were packed could become more than anybody wants to
    read: it is bounded alike."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise httpx.DecodingError(f"the answer is packed as {encoding!r}, and was asked for as it is")
    unpacking = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        found = unpacking.decompress(body, MAX_ANSWER_BYTES + 1)
    except zlib.error as error:
        raise httpx.DecodingError(f"the answer is no {encoding}: {error}") from error
    if len(found) > MAX_ANSWER_BYTES:
        raise httpx.DecodingError(f"an answer has at most {MAX_ANSWER_BYTES} bytes, unpacked too")
    if not unpacking.eof:
        raise httpx.DecodingError(f"the answer's {encoding} ends too early")
    return found


async def _end(loop: asyncio.AbstractEventLoop) -> None:
    """End what an exchange that was given up has left: generators that close connections."""
    await loop.shutdown_asyncgens()
    if left := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(left, timeout=CLOSING_S)


class BoundedSession(requests.Session):
    """A session that is bounded so."""

    def __init__(self) -> None:
        super().__init__()
        _bound(self)


class _BoundedOAuth2Session(OAuth2Session):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _bound(self)


class BoundedOAuth2App(FlaskOAuth2App):  # type: ignore[misc]
    """Authlib's client of a provider, whose every request is bounded so."""

    client_cls = _BoundedOAuth2Session


def _bound(session: requests.Session) -> None:
    for prefix in list(session.adapters):
        session.mount(prefix, BoundedAdapter())
