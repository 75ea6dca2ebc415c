"""When an outside call is tried again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from continuitybridge.errors import DeliveryFailed, Verdict

LONGEST_WAIT_S = 30.0

T = TypeVar("T")


async def with_retries(
    attempt: Callable[[float], Awaitable[T]], *, retries: int, first_wait_s: float, within_s: float
) -> tuple[T, int]:
    """What `attempt(seconds left)` gives, and how many attempts it took.

    Failures with the verdict transient are tried again after a random wait below a bound that starts at
    `first_wait_s` and doubles (full jitter), but not before `retry_after_s` of the failure; no wait begins that
    would end after `within_s`. Raises the last attempt's failure, with `attempts` among its facts.
    """
    loop = asyncio.get_running_loop()
    ends = loop.time() + within_s
    number = 0
    while True:
        number += 1
        try:
            return await attempt(ends - loop.time()), number
        except DeliveryFailed as failure:
            failure.facts["attempts"] = number
            wait_s = _wait_s(failure, first_wait_s, number)
            tried_enough = failure.verdict is not Verdict.TRANSIENT or number > retries
            if tried_enough or loop.time() + wait_s >= ends:
                raise
        await asyncio.sleep(wait_s)


def _wait_s(failure: DeliveryFailed, first_wait_s: float, number: int) -> float:
    """Random below a doubling bound, but never shorter than the destination asked for."""
    bound = min(LONGEST_WAIT_S, first_wait_s * 2.0 ** (number - 1))
    asked = failure.facts.get("retry_after_s", 0.0)
    return max(float(asked), random.uniform(0, bound))  # noqa: S311  (spreads load, guards nothing)
