"""On whose account a request of somebody known goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from continuitybridge.errors import TooManyRequests
from continuitybridge.guard import admission, limiter
from continuitybridge.guard.admission import STANDINGS, admit, admit_caller, refuse_used_up
from continuitybridge.guard.known import Policy
from continuitybridge.guard.limiter import Claim, Limiter, Standing
from continuitybridge.settings import Settings, get_settings

Follow = Callable[[dict[str, Policy]], None]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A limiter of the test's own, and settings that name limits."""
    monkeypatch.setattr(limiter, "_limiters", {})
    texts = {
        "limit_per_user": "3/hour",
        "limit_per_api_key": "5/hour",
        "limit_per_organization": "9/hour",
        "redis_url": None,
    }
    return get_settings().model_copy(update=texts)


@pytest.fixture
def follow(told: Any) -> Follow:
    """Makes known what organizations want."""
    return lambda policies: told.policies.update(policies)


REQUEST = {"method": "GET", "path": "/bridge/me"}


def accounts_of(scope: dict[str, Any]) -> list[tuple[str, int]]:
    return [(each.name, each.amount) for each in scope[STANDINGS]]


async def test_an_account_is_that_of_the_key_else_of_the_user_and_of_the_organization(
    limits: Settings, follow: Follow
) -> None:
    limiter.install(Limiter(None))
    follow(
        {"agreed": Policy(api_limit="7/hour", programs_limit="4/hour"), "tier": Policy(programs_limit="4/hour")}
    )
    for asked, accounts in (
        ({}, [("user", 3)]),
        ({"organization": "plain"}, [("user", 3), ("organization", 9)]),
        ({"organization": "tier"}, [("user", 3), ("organization", 9)]),
        ({"organization": "agreed"}, [("user", 3), ("organization", 7)]),
        ({"api_key": uuid4()}, [("api-key", 5)]),
        ({"api_key": uuid4(), "organization": "plain"}, [("api-key", 5), ("organization", 9)]),
        ({"api_key": uuid4(), "organization": "tier"}, [("api-key", 5), ("organization", 9), ("tier", 4)]),
        ({"api_key": uuid4(), "organization": "agreed"}, [("api-key", 5), ("organization", 7)]),
    ):
        scope: dict[str, Any] = {**REQUEST, STANDINGS: []}
        await admit_caller(scope, uuid4().hex, settings=limits, **asked)  # type: ignore[arg-type]
        assert accounts_of(scope) == accounts, asked


async def used_up_after(scope: dict[str, Any], user: str, settings: Settings, **asked: Any) -> int:
    for count in range(20):
        try:
            await admit_caller({**REQUEST, **scope}, user, settings=settings, **asked)
        except TooManyRequests:
            return count
    raise AssertionError("it was not refused")


async def test_each_account_is_its_own(limits: Settings, follow: Follow) -> None:
    limiter.install(Limiter(None))
    follow({"a": Policy(programs_limit="4/hour"), "b": Policy(programs_limit="4/hour")})
    first, second = uuid4(), uuid4()
    assert await used_up_after({}, "anna", limits) == 3
    assert await used_up_after({}, "bert", limits) == 3
    assert await used_up_after({}, "anna", limits, api_key=first) == 5
    assert await used_up_after({}, "anna", limits, api_key=second) == 5
    for organization in ("a", "b"):
        assert await used_up_after({}, "anna", limits, api_key=uuid4(), organization=organization) == 4
        assert await used_up_after({}, uuid4().hex, limits, organization=organization) == 3
        assert await used_up_after({}, uuid4().hex, limits, organization=organization) == 2


async def test_what_is_left_and_what_is_used_up_is_told_where_somebody_listens(limits: Settings) -> None:
    limiter.install(Limiter(None))
    [hourly] = admission.limits_of("2/hour")
    claims = [Claim("some", hourly, "key")]
    scope: dict[str, Any] = {STANDINGS: [Standing("former", 1, 1, 1, 1)]}
    await admit(scope, claims)
    refuse_used_up(scope, claims)
    assert accounts_of(scope) == [("former", 1), ("some", 2)]
    await admit({}, claims)
    for listens in (scope, {}):
        with pytest.raises(TooManyRequests):
            await admit(listens, claims)
        with pytest.raises(TooManyRequests):
            refuse_used_up(listens, claims)
    assert accounts_of(scope) == [("former", 1), ("some", 2), ("some", 2), ("some", 2)]
    assert [each.remaining for each in scope[STANDINGS]] == [1, 1, 0, 0]
    await admit(scope, [])
    assert len(scope[STANDINGS]) == 4


async def test_without_settings_the_processs_own_hold(limits: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_LIMIT_PER_USER", "2/hour")
    get_settings.cache_clear()
    scope: dict[str, Any] = {**REQUEST, STANDINGS: []}
    try:
        await admit_caller(scope, "anna")
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()
    assert accounts_of(scope) == [("user", 2)]
