"""Opening organizations' data keys for coroutines: of those who wait for the same one asks, in a thread, and none
holds one. A master key that is kept elsewhere may take seconds; each who waits gives up by its own deadline."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor

THREADS = 32
"""Of one process; how many of them ask a service at once is bounded there (`kms.turns`)."""


async def once(what: Hashable, open: Callable[[], object]) -> None:
    """Call `open` in a thread, unless a call for the same is under way, and wait for it. Raises what it raises.
    Who is cancelled ends nothing for the others."""
    with _lock:
        under_way = _under_way.get(what)
        if under_way is None:
            under_way = _under_way[what] = _threads().submit(_open, what, open)
    await asyncio.shield(asyncio.wrap_future(under_way))


def is_under_way(what: Hashable) -> bool:
    """Whether who calls `once` now would wait for somebody else's call."""
    with _lock:
        return what in _under_way


def _open(what: Hashable, open: Callable[[], object]) -> None:
    try:
        open()
    finally:
        with _lock:
            _under_way.pop(what, None)


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(THREADS, thread_name_prefix="bridge-keys")
    return _pool


_lock = threading.Lock()
_under_way: dict[Hashable, Future[None]] = {}
_pool: ThreadPoolExecutor | None = None


def _forked() -> None:
    # Threads stay behind, and with them whatever they had under way.
    global _lock, _pool
    _lock, _pool = threading.Lock(), None
    _under_way.clear()


os.register_at_fork(after_in_child=_forked)
