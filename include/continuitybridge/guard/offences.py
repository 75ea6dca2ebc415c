"""Who offends too often is blocked: three times an address or a client that only scanners have, or going on far
beyond a rate limit. Counted by each process; a block counts for all."""

from __future__ import annotations

import time

from continuitybridge.errors import BridgeError, NotAllowed, NotFound
from continuitybridge.guard.known import known

STRIKES = 3
WITHIN_S = 600.0
"""So many offences within that time make a block."""
FLOOD = 10
"""So many times its limit an address may be refused within that time, before it is blocked."""
MAX_ADDRESSES = 20_000


class Offences:
    """Offences by address. `base_s`: how long a first block lasts."""

    def __init__(self, base_s: float) -> None:
        self._base_s = base_s
        self._counts: dict[str, tuple[float, float]] = {}

    def note(self, address: str, error: BridgeError) -> None:
        """Count what was refused; blocks the address when it was too much. A block forgets what led to it."""
        weight = _weight(error)
        if not weight:
            return
        now = time.monotonic()
        began, count = self._counts.get(address, (now, 0.0))
        if now - began > WITHIN_S:
            began, count = now, 0.0
        count += weight
        # A hair less, as small weights do not add up to whole numbers.
        if count >= STRIKES - 1e-6:
            self._counts.pop(address, None)
            known.block(address, str(error.facts.get("rule", "rate")), self._base_s)
            return
        if len(self._counts) >= MAX_ADDRESSES:
            self._counts.clear()
        self._counts[address] = (began, count)


def _weight(error: BridgeError) -> float:
    if isinstance(error, NotFound) or (isinstance(error, NotAllowed) and error.facts.get("rule") == "scanner"):
        return 1.0
    standings = error.facts.get("standings")
    if standings:
        return STRIKES / float(FLOOD * min(each.amount for each in standings if not each.remaining))
    return 0.0
