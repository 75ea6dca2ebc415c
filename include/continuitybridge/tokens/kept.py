"""A token as it is kept."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

import orjson

MARGIN_S = 60.0
"""So long before its end a token is not used any more; of a short one the last fifth."""
_PART = 0.2


class Place(NamedTuple):
    """A connection."""

    organization_id: UUID
    environment: str
    connection: str

    def __str__(self) -> str:
        return f"{self.environment}/{self.connection}"


@dataclass(frozen=True, slots=True)
class Obtained:
    """What an authorization server or log-in page gave. `lifetime_s` None: nobody said when it ends."""

    access: str = field(repr=False)
    refresh: str | None = field(default=None, repr=False)
    lifetime_s: float | None = None

    def to_json(self) -> bytes:
        return orjson.dumps({"access": self.access, "refresh": self.refresh})

    @classmethod
    def from_json(cls, text: bytes) -> Obtained:
        return cls(**orjson.loads(text))


@dataclass(frozen=True, slots=True)
class Token:
    """A token that may be used. `generation` grows with each that is stored; `fresh_until` and `expires_at` in
    seconds since the epoch, None where nobody said when it ends."""

    value: str = field(repr=False)
    generation: int
    fresh_until: float | None
    expires_at: float | None


def fresh_until(obtained_at: float, expires_at: float | None) -> float | None:
    """Until when a token is used without another being obtained."""
    if expires_at is None:
        return None
    return expires_at - min(MARGIN_S, max(0.0, expires_at - obtained_at) * _PART)


def now() -> float:
    """Seconds since the epoch."""
    return time.time()


Json = dict[str, Any]
