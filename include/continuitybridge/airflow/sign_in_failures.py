"""Failed sign-ins, counted in windows of `WINDOW_S`: of one name from one address (`OF_PAIR`), of one name from
anywhere, and of one address for anybody. A success forgets those of its name and address.

Several api-server processes count together in `BRIDGE_REDIS_URL`; without it, and while that does not answer, each
counts by itself.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from limits import RateLimitItem, RateLimitItemPerSecond
from limits.storage import MemoryStorage, Storage, storage_from_string
from limits.strategies import MovingWindowRateLimiter

from continuitybridge.settings import get_settings

WINDOW_S = 15 * 60
OF_PAIR = RateLimitItemPerSecond(5, WINDOW_S, namespace="sign-in/pair")
OF_NAME = RateLimitItemPerSecond(50, WINDOW_S, namespace="sign-in/name")
OF_ADDRESS = RateLimitItemPerSecond(50, WINDOW_S, namespace="sign-in/address")

T = TypeVar("T")
log = logging.getLogger(__name__)


class Failures:
    """Failed sign-ins by name and address."""

    def __init__(self, storage: Storage) -> None:
        self._shared = MovingWindowRateLimiter(storage)
        self._own = MovingWindowRateLimiter(MemoryStorage())

    @classmethod
    def open(cls) -> Failures:
        url = get_settings().redis_url
        shared = MemoryStorage() if url is None else storage_from_string(url.get_secret_value())
        return cls(cast(Storage, shared))

    def wait_s(self, name: str, address: str) -> int:
        """For how many seconds nobody may try this; 0 when he may."""
        waits = [self._wait_s(limit, *keys) for limit, keys in _limits(name, address)]
        return max(waits)

    def note(self, name: str, address: str) -> None:
        for limit, keys in _limits(name, address):
            for limiter in self._both():
                self._try(limiter.hit, limit, *keys)

    def forget(self, name: str, address: str) -> None:
        for limiter in self._both():
            self._try(limiter.clear, OF_PAIR, name, address)

    def _wait_s(self, limit: RateLimitItem, *keys: str) -> int:
        longest = 0
        for limiter in self._both():
            found = self._try(limiter.get_window_stats, limit, *keys)
            if found is not None and found.remaining <= 0:
                longest = max(longest, math.ceil(found.reset_time - time.time()))
        return longest

    def _both(self) -> tuple[MovingWindowRateLimiter, MovingWindowRateLimiter]:
        # What is counted here too holds while the shared store does not answer.
        return self._shared, self._own

    @staticmethod
    def _try(do: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return do(*arguments)
        except Exception as error:
            log.warning("failed sign-ins are counted by this process alone: %s", error)
            return None


def _limits(name: str, address: str) -> tuple[tuple[RateLimitItem, tuple[str, ...]], ...]:
    return ((OF_PAIR, (name, address)), (OF_NAME, (name,)), (OF_ADDRESS, (address,)))
