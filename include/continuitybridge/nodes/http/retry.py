"""When an outside call is tried again, and where a redirect may lead."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import urljoin

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, stop_before_delay
from tenacity.wait import wait_random_exponential

from continuitybridge.errors import DeliveryFailed, Verdict
from continuitybridge.nodes.http.answer import Answer

LONGEST_WAIT_S = 30.0

T = TypeVar("T")


async def with_retries(
    attempt: Callable[[], Awaitable[T]], *, retries: int, first_wait_s: float, within_s: float
) -> tuple[T, int]:
    """What `attempt` gives, and how many attempts it took.

    Failures with the verdict transient are tried again after a random wait below a bound that starts at
    `first_wait_s` and doubles (full jitter), but not before `retry_after_s` of the failure; no wait begins that
    would end after `within_s`. Raises the last attempt's failure, with `attempts` among its facts.
    """
    number = 0
    try:
        async for trying in AsyncRetrying(
            retry=retry_if_exception(_passes),
            stop=stop_after_attempt(retries + 1) | stop_before_delay(within_s),
            wait=_AtLeastAsAsked(multiplier=first_wait_s, max=LONGEST_WAIT_S),
            reraise=True,
        ):
            number = trying.retry_state.attempt_number
            with trying:
                result = await attempt()
    except DeliveryFailed as failure:
        failure.facts["attempts"] = number
        raise
    return result, number


def _passes(error: BaseException) -> bool:
    return isinstance(error, DeliveryFailed) and error.verdict is Verdict.TRANSIENT


class _AtLeastAsAsked(wait_random_exponential):
    """Random below a doubling bound, but never shorter than the destination asked for."""

    def __call__(self, retry_state: RetryCallState) -> float:
        error = retry_state.outcome.exception() if retry_state.outcome else None
        asked = error.facts.get("retry_after_s", 0.0) if isinstance(error, DeliveryFailed) else 0.0
        return max(float(asked), super().__call__(retry_state))


def redirect_of(method: str, url: httpx.URL, answer: Answer) -> httpx.URL | None:
    """Where a redirect leads if it stays on the host and keeps the method: credentials go nowhere else, and a
    delivery does not turn into a query."""
    location = answer.headers.get("location")
    keeps = answer.status in (307, 308) or (answer.status in (301, 302, 303) and method in ("GET", "HEAD"))
    if not location or not keeps:
        return None
    try:
        target = httpx.URL(urljoin(str(url), location))
    except (httpx.InvalidURL, ValueError):
        return None
    same = (target.scheme, target.host, target.port) == (url.scheme, url.host, url.port) and not target.userinfo
    return target if same else None
