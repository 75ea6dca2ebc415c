"""Failed sign-ins, counted for `WINDOW_S` from the first one on: of one account from one address (`OF_PAIR`), of
one account from anywhere, and of one address for anybody. A success forgets those of its account and address.

A try is counted before the password is looked at, and its count given back when it did not fail: so tries at once
are no way around. Several api-server processes count together in `BRIDGE_REDIS_URL`; without it, and while that
does not answer, each counts by itself.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar, cast

from limits import RateLimitItem, RateLimitItemPerSecond
from limits.storage import MemoryStorage, Storage, storage_from_string

from continuitybridge.settings import get_settings

WINDOW_S = 15 * 60
OF_PAIR = RateLimitItemPerSecond(5, WINDOW_S, namespace="sign-in/pair")
OF_NAME = RateLimitItemPerSecond(50, WINDOW_S, namespace="sign-in/name")
OF_ADDRESS = RateLimitItemPerSecond(50, WINDOW_S, namespace="sign-in/address")
LINKS_OF_ADDRESS = RateLimitItemPerSecond(20, WINDOW_S, namespace="sign-in/links-of-address")
"""How often one address may come with a link that does not hold."""
TOLD = RateLimitItemPerSecond(1, WINDOW_S, namespace="sign-in/told")
MAILS_OF_ADDRESS = RateLimitItemPerSecond(20, WINDOW_S, namespace="sign-in/mails-of-address")
"""How often one address may ask for links by mail."""
MAILS_OF_ACCOUNT = RateLimitItemPerSecond(5, WINDOW_S, namespace="sign-in/mails-of-account")
"""How many of these mails one account gets; whoever asks is not told."""

T = TypeVar("T")
log = logging.getLogger(__name__)


class Failures:
    """Failed sign-ins by account and address."""

    def __init__(self, storage: Storage) -> None:
        # What is counted here too holds while the shared store does not answer.
        self._stores = (storage, cast(Storage, MemoryStorage()))

    @classmethod
    def open(cls) -> Failures:
        """This process's: all ways in count together."""
        url = get_settings().redis_url
        return _opened(None if url is None else url.get_secret_value())

    def begin(self, account: str, address: str) -> int:
        """Count a try as a failure. Returns 0; or, counting nothing, for how many seconds nobody may try this."""
        taken: list[tuple[Storage, RateLimitItem, str]] = []
        for limit, key in _limits(account, address):
            for store in self._stores:
                found = self._try(store.incr, key, limit.get_expiry(), 1)
                if found is None:
                    continue
                taken.append((store, limit, key))
                if found > limit.amount:
                    until = self._try(store.get_expiry, key) or time.time()
                    self._give_back(taken)
                    return max(1, math.ceil(until - time.time()))
        return 0

    def take(self, limit: RateLimitItem, key: str) -> int:
        """Count one of what `limit` bounds. Returns 0; or, counting nothing, for how many seconds no more are
        taken."""
        name = limit.key_for(key)
        taken: list[tuple[Storage, RateLimitItem, str]] = []
        for store in self._stores:
            found = self._try(store.incr, name, limit.get_expiry(), 1)
            if found is None:
                continue
            taken.append((store, limit, name))
            if found > limit.amount:
                until = self._try(store.get_expiry, name) or time.time()
                self._give_back(taken)
                return max(1, math.ceil(until - time.time()))
        return 0

    def give_back(self, limit: RateLimitItem, key: str) -> None:
        """Give back what `take` counted."""
        self._give_back([(store, limit, limit.key_for(key)) for store in self._stores])

    def failed_not(self, account: str, address: str) -> None:
        """Give back what `begin` counted: the try came to no verdict."""
        self._give_back(
            [(store, limit, key) for limit, key in _limits(account, address) for store in self._stores]
        )

    def succeeded(self, account: str, address: str) -> None:
        """Give back what `begin` counted, and `forget`."""
        self.failed_not(account, address)
        self.forget(account, address)

    def forget(self, account: str, address: str) -> None:
        """Forget the failures of this account from this address: it was signed in to from there."""
        for store in self._stores:
            self._try(store.clear, OF_PAIR.key_for(account, address))

    def _give_back(self, taken: list[tuple[Storage, RateLimitItem, str]]) -> None:
        for store, limit, key in taken:
            self._try(store.incr, key, limit.get_expiry(), -1)

    @staticmethod
    def _try(do: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return do(*arguments)
        except Exception as error:
            log.warning("failed sign-ins are counted by this process alone: %s", error)
            return None


@lru_cache(maxsize=1)
def _opened(url: str | None) -> Failures:
    return Failures(cast(Storage, MemoryStorage() if url is None else storage_from_string(url)))


def _limits(account: str, address: str) -> tuple[tuple[RateLimitItem, str], ...]:
    return (
        (OF_PAIR, OF_PAIR.key_for(account, address)),
        (OF_NAME, OF_NAME.key_for(account)),
        (OF_ADDRESS, OF_ADDRESS.key_for(address)),
    )
