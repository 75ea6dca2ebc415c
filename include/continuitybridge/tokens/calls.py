"""Requests to authorization servers and log-in pages: through the egress policy, bounded, without redirects."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

from continuitybridge.errors import EgressRefused
from continuitybridge.nodes.http import address
from continuitybridge.nodes.http.client import Client
from continuitybridge.nodes.http.wire import ExchangeFailed, RawAnswer
from continuitybridge.settings import get_settings

MAX_ANSWER_BYTES = 256 * 1024
FORM = "application/x-www-form-urlencoded"


class Refused(Exception):
    """The answer stands: asking again with the same credentials gives the same."""

    def __init__(self, reason: str, *, code: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


class Failed(Exception):
    """Nobody knows: no answer, or one that may be another the next time. `retry_after_s` where that was asked."""

    def __init__(self, reason: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


def post(url: str, body: str, *, content_type: str = FORM, headers: Mapping[str, str] | None = None) -> RawAnswer:
    """POST and wait for the answer, at most `BRIDGE_TOKEN_REQUEST_TIMEOUT_S`. Never from an event loop's own
    thread for long: it blocks. Raises `Refused` for an address that is none, `Failed` without an answer."""
    lines = {
        "user-agent": "ContinuityBridge",
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-type": content_type,
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    try:
        return _run(url, head, body.encode())
    except TimeoutError:
        raise Failed(f"{host(url)} did not answer in time") from None
    except (ExchangeFailed, OSError) as error:
        raise Failed(f"{host(url)} cannot be reached: {type(error).__name__}") from None
    except EgressRefused as error:
        # Until the operator allows it: nobody has to connect anything then.
        raise Failed(f"{host(url)} is not called: {error.detail}") from None
    except ValueError as error:
        raise Refused(f"{host(url)} is not called: {error}") from None


def basic(name: str, secret: str) -> str:
    """`Authorization` of a client (RFC 6749, 2.3.1: both parts form-encoded)."""
    pair = f"{quote(name, safe='')}:{quote(secret, safe='')}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def _run(url: str, head: str, body: bytes) -> RawAnswer:
    async def exchange() -> RawAnswer:
        client = Client(verify=True)
        try:
            async with asyncio.timeout(get_settings().token_request_timeout_s):
                return await client.send(
                    "POST", address.parse(url), head, body, lambda status, headers: (MAX_ANSWER_BYTES, True)
                )
        finally:
            await client.aclose()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(exchange())
    with ThreadPoolExecutor(1, thread_name_prefix="bridge-token") as thread:
        return thread.submit(asyncio.run, exchange()).result()


def host(url: str) -> str:
    """Whom an address leads to, for texts."""
    try:
        return address.parse(url).origin.authority
    except ValueError:
        return "the address"


def origin(url: str) -> str:
    """Scheme, host and port of an address (RFC 6454); one that cannot be called is its own."""
    try:
        found = address.parse(url).origin
    except ValueError:
        return url
    return f"{found.scheme}://{found.authority}"


def hostname(url: str) -> str:
    """The host of an address, without its port."""
    try:
        return address.parse(url).origin.host
    except ValueError:
        return ""
