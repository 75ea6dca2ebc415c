"""Who is admitted before a message is accepted."""

from __future__ import annotations

import time
from collections import Counter
from typing import Protocol
from uuid import UUID

from continuitybridge.errors import TooManyRequests
from continuitybridge.guard import admission
from continuitybridge.guard.known import known
from continuitybridge.guard.limiter import Claim
from continuitybridge.webhooks.request import Scope
from continuitybridge.webhooks.target import Target


class Admission(Protocol):
    """A hook between verification and acceptance."""

    def admit(self, target: Target) -> None:
        """Return, or raise `TooManyRequests` (facts: `retry_after_s`); a sender that waits so long is admitted
        unless others took its place."""


class TokenBucket:
    """So many messages per second of each endpoint, in this process; a second's worth may come at once."""

    def __init__(self, rate_per_s: float) -> None:
        self._rate = rate_per_s
        self._burst = max(1.0, rate_per_s)
        self._full_at: dict[str, float] = {}

    def admit(self, target: Target) -> None:
        # The bucket as one number: the time at which it will be full again (generic cell rate algorithm).
        now = time.monotonic()
        full_at = max(self._full_at.get(target.place, now), now) + 1.0 / self._rate
        wait_s = full_at - now - self._burst / self._rate
        if wait_s > 1e-9:
            raise TooManyRequests(
                f"the endpoint takes at most {self._rate:g} messages per second", retry_after_s=wait_s
            )
        self._full_at[target.place] = full_at


class SharedRoom:
    """Room in this process, of which no organization gets more than nine tenths of what the others leave: however
    much one asks for, there is some for the next."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0
        self._of: Counter[UUID] = Counter()

    def take(self, organization_id: UUID, amount: int) -> bool:
        """Count it; whether that is within bounds. Given back in either case."""
        self._taken += amount
        self._of[organization_id] += amount
        own = self._of[organization_id]
        left_by_others = self._most - (self._taken - own)
        return 10 * own <= 9 * left_by_others + 9

    def give_back(self, organization_id: UUID, amount: int) -> None:
        self._taken -= amount
        self._of[organization_id] -= amount
        if not self._of[organization_id]:
            del self._of[organization_id]


class OrganizationLimits:
    """So many webhooks of each organization, counted by all processes together (`guard.limiter`). Asked after
    verification, so that nobody but the organization's own senders uses them up."""

    def __init__(self, limits: str) -> None:
        self._limits = limits

    async def admit(self, target: Target, scope: Scope) -> None:
        """Return, or raise `TooManyRequests`."""
        await admission.admit(scope, self._claims(target))

    def refuse_used_up(self, target: Target, scope: Scope) -> None:
        """Raise `TooManyRequests` for an organization that has used up its limit: neither its body nor its
        signature would change that, and at ten times the limit they are what a refusal costs."""
        admission.refuse_used_up(scope, self._claims(target))

    def _claims(self, target: Target) -> list[Claim]:
        organization = target.organization
        own = known.policy(organization).webhooks_limit
        limits = admission.limits_of(self._limits if own is None else own)
        return [Claim("webhooks", limit, organization) for limit in limits]
