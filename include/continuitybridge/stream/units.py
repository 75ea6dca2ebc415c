"""What a worker holds."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from continuitybridge.flows.plan import Plan
from continuitybridge.inbox.claim import Claimed

Place = tuple[UUID, str]
"""Organization and environment."""
LaneKey = tuple[UUID, str, str, str]
"""Organization, environment, flow and version."""


@dataclass(slots=True, eq=False)
class Held:
    """A unit under lease. `organization` is the organization's slug; `plan` is known once it was run."""

    claimed: Claimed
    organization: str
    size_bytes: int
    again: bool
    """Whether its flow is to be looked at once more when it has ended: it has an order, or a bound."""
    lane: LaneKey
    plan: Plan | None = None
