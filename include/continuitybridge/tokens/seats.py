"""How many requests of one process may wait for authorization servers at a time.

A request that waits for a server that a tenant named holds one of the threads that every request of the process
is answered in, tasks' too. So only few do, and still fewer of one organization; the others are told to come again.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from continuitybridge.errors import TooManyRequests, Unavailable

SEATS = 8
SEATS_OF_ONE = 2
"""Of these, so many may be one organization's."""
COME_AGAIN_S = 5.0

_taken: Counter[UUID] = Counter()
_guard = threading.Lock()


@contextmanager
def seat(organization_id: UUID) -> Iterator[None]:
    """A seat as long as this lasts; never waits for one. Raises `TooManyRequests` when the organization has as
    many as it may, and `Unavailable` when others have all of them; nothing was asked of anybody then."""
    with _guard:
        if _taken[organization_id] >= SEATS_OF_ONE:
            raise TooManyRequests(
                f"{SEATS_OF_ONE} requests of the organization wait for authorization servers already",
                retry_after_s=COME_AGAIN_S,
            )
        if _taken.total() >= SEATS:
            raise Unavailable("too many requests wait for authorization servers", retry_after_s=COME_AGAIN_S)
        _taken[organization_id] += 1
    try:
        yield
    finally:
        with _guard:
            _taken[organization_id] -= 1
            if not _taken[organization_id]:
                del _taken[organization_id]
