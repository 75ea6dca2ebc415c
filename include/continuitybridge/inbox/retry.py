"""How often and when what failed is tried again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from continuitybridge.engine.message import Failure
from continuitybridge.errors import CircuitOpen, DestinationClosed, DestinationPaused, Verdict
from continuitybridge.settings import get_settings

_TURN_BACK = (DestinationClosed.code, DestinationPaused.code, CircuitOpen.code)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when a transient failure is tried again. The wait doubles from `base_s` up to `max_s`, and a
    random half of it is taken off, so that what failed together does not come back together. A destination that
    says when to come back (`retry_after_s` in the failure's facts) is believed, up to `max_s`."""

    max_attempts: int
    base_s: float
    max_s: float

    @classmethod
    def from_settings(cls) -> RetryPolicy:
        settings = get_settings()
        return cls(settings.max_attempts, settings.retry_base_s, settings.retry_max_s)

    def wait_s(self, attempts: int, failures: Sequence[Failure]) -> float:
        """Seconds until the try after `attempts` tries."""
        wait = min(self.max_s, self.base_s * 2.0 ** min(attempts - 1, 60))
        wait *= random.uniform(0.5, 1.0)  # noqa: S311  (spreads load, protects nothing)
        return max([wait, *(min(self.max_s, seconds) for seconds in _asked(failures))])

    def turned_back_s(self, failures: Sequence[Failure]) -> float:
        """Seconds until a message comes back whose destination is not called now: as long as the failures say, up
        to `max_s`. Up to a fifth is added, so that not all come back at the same moment."""
        wait = min(self.max_s, max([0.0, *_asked(failures)]) or self.base_s)
        return wait * random.uniform(1.0, 1.2)  # noqa: S311


def turned_back_by(failure: Failure) -> str | None:
    """The destination that was not called, if that is what the failure says: then the try does not count."""
    if failure.code not in _TURN_BACK or failure.verdict is not Verdict.TRANSIENT:
        return None
    return str(failure.facts.get("destination") or failure.node_id)


def _asked(failures: Sequence[Failure]) -> list[float]:
    asked: list[Any] = [failure.facts.get("retry_after_s") for failure in failures]
    return [float(seconds) for seconds in asked if isinstance(seconds, int | float) and seconds > 0]
