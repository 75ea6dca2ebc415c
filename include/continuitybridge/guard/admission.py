"""Limits of those who are known by now: users, API keys, organizations.

Whoever signed somebody in calls `admit`; what is left goes to `STANDINGS` in the request's scope, from where the
middleware in front of everything adds it to the answer.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID

from continuitybridge.errors import TooManyRequests
from continuitybridge.guard import limiter
from continuitybridge.guard.known import known
from continuitybridge.guard.limiter import Claim
from continuitybridge.request_paths import path_of
from continuitybridge.settings import Settings, get_settings
from continuitybridge.settings.guard import route_limits

STANDINGS = "bridge.limits"
"""Key of the scope: a list of `Standing`."""

limits_of = lru_cache(maxsize=1024)(limiter.parsed)
"""Limits by their text."""


async def admit(scope: MutableMapping[str, Any], claims: Sequence[Claim]) -> None:
    """Count the request on all of these accounts. Raises `TooManyRequests` when one is used up."""
    if not claims:
        return
    standings = scope.get(STANDINGS)
    try:
        found = await limiter.current().admit(claims)
    except TooManyRequests as error:
        if standings is not None:
            standings.extend(error.facts["standings"])
        raise
    if standings is not None:
        standings.extend(found)


def refuse_used_up(scope: MutableMapping[str, Any], claims: Sequence[Claim]) -> None:
    """Raise `TooManyRequests` where `admit` certainly would, before anything is done for the request."""
    try:
        limiter.current().refuse_used_up(claims)
    except TooManyRequests as error:
        standings = scope.get(STANDINGS)
        if standings is not None:
            standings.extend(error.facts["standings"])
        raise


async def admit_caller(
    scope: MutableMapping[str, Any],
    user_name: str,
    *,
    api_key: UUID | None = None,
    organization: str | None = None,
    settings: Settings | None = None,
) -> None:
    """Count a request to the API: on the account of its API key, or of its user where there is none, and of the
    organization (slug) that it is about, whose tier limits programs; and of the route, where that has a limit.
    Raises `TooManyRequests`."""
    settings = settings or get_settings()
    if api_key is None:
        wanted = [Claim("user", limit, user_name) for limit in limits_of(settings.limit_per_user)]
    else:
        wanted = [Claim("api-key", limit, str(api_key)) for limit in limits_of(settings.limit_per_api_key)]
    wanted += _of_route(scope, user_name if api_key is None else str(api_key), settings.limit_routes)
    if organization is not None:
        policy = known.policy(organization)
        own = policy.api_limit
        limits = limits_of(settings.limit_per_organization if own is None else own)
        wanted += [Claim("organization", limit, organization) for limit in limits]
        if api_key is not None and own is None:
            # What its tier allows programs; a limit of its own was agreed upon instead.
            wanted += [Claim("tier", limit, organization) for limit in limits_of(policy.programs_limit)]
    await admit(scope, wanted)


def _of_route(scope: MutableMapping[str, Any], caller: str, routes: str) -> list[Claim]:
    """The account of a caller at the route that the request is for."""
    if not routes:
        return []
    method, path = scope.get("method"), path_of(scope)
    fitting = [
        (own, limit)
        for its_method, own, limit in route_limits(routes)
        if method == its_method and (path == own or path.startswith(f"{own}/"))
    ]
    if not fitting:
        return []
    own, limit = max(fitting, key=lambda each: len(each[0]))
    return [Claim("route", each, f"{caller}/{method} {own}") for each in limits_of(limit)]
