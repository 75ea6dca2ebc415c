"""JSON Web Key Sets (RFC 7517) of authorization servers, fetched and kept.

A set is fetched when a token comes that names a key it does not hold, at most every `RENEW_S` (`RETRY_S` after a
fetch that failed), and again when it is older than `FRESH_S`; it is used on for `STALE_S` while its server does
not answer. One set per address and process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from continuitybridge.errors import Unavailable

FRESH_S = 600.0
RENEW_S = 10.0
RETRY_S = 1.0
STALE_S = 24 * 3600.0
FETCH_TIMEOUT_S = 5.0
MAX_BYTES = 256 * 1024
MAX_KEYS = 64
MAX_SETS = 1_000
_HEADERS = "user-agent: ContinuityBridge\r\naccept: application/json\r\naccept-encoding: identity\r\n"

log = logging.getLogger(__name__)

_sets: dict[str, KeySet] = {}


class KeySet:
    """The keys of one address. One event loop."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._keys: list[Mapping[str, Any]] = []
        self._fetched_at = float("-inf")
        self._tried_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, url: str) -> KeySet:
        """The process's set of that address."""
        if url not in _sets and len(_sets) >= MAX_SETS:
            _sets.pop(next(iter(_sets)))
        return _sets.setdefault(url, cls(url))

    def named(self, kid: str | None) -> list[Mapping[str, Any]]:
        """The keys of that id; all of them for a token that names none."""
        return [key for key in self._keys if kid is None or key.get("kid") == kid]

    async def ensure(self, kid: str | None) -> None:
        """Fetch the set if this key is not in it, or it is old. Raises `Unavailable` when there is none to use."""
        now = time.monotonic()
        if now - self._fetched_at < FRESH_S and self.named(kid):
            return
        waited_s = now - self._tried_at
        if self._fetching is None and waited_s >= (RENEW_S if self._fetched_at >= self._tried_at else RETRY_S):
            self._tried_at = now
            self._fetching = asyncio.create_task(self._fetch(), name="jwks")
        if self._fetching is not None:
            await asyncio.shield(self._fetching)
        if time.monotonic() - self._fetched_at > STALE_S:
            raise Unavailable(f"the key set at {self.url} cannot be fetched", retry_after_s=RETRY_S)

    async def _fetch(self) -> None:
        try:
            self._keys = await _get(self.url)
            self._fetched_at = time.monotonic()
        except Exception as error:
            log.warning("jwks: %s cannot be fetched: %s", self.url, error)
        finally:
            self._fetching = None


async def _get(url: str) -> list[Mapping[str, Any]]:
    """The usable keys at an address that may be called: no redirects, no more than `MAX_BYTES`. Raises whatever
    goes wrong."""
    import orjson

    from continuitybridge.nodes.http.address import parse
    from continuitybridge.nodes.http.client import Client

    client = Client(verify=True)
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_S):
            answer = await client.send(
                "GET", parse(url), _HEADERS, None, lambda status, headers: (MAX_BYTES, True)
            )
    finally:
        await client.aclose()
    if answer.status != HTTPStatus.OK:
        raise ValueError(f"status {answer.status}")
    if answer.cut:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    keys = orjson.loads(answer.content)["keys"]
    # Public keys only: one of type oct would turn what everybody can read into a secret.
    return [
        key
        for key in keys[:MAX_KEYS]
        if isinstance(key, dict) and key.get("kty") in ("RSA", "EC", "OKP") and key.get("use", "sig") == "sig"
    ]
