"""Who asks by an API key: its user, in the key's organization only, and there as far as its scope goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

Scope = Literal["read", "write"]


@dataclass(frozen=True, slots=True)
class Holder:
    """A key that holds, and what it may do: everything that its user may, in this organization, when its scope is
    `write`; else read."""

    key_id: UUID
    organization_id: UUID
    organization: str
    user_name: str
    scope: Scope


_current: ContextVar[Holder | None] = ContextVar("bridge_api_key", default=None)


def current_holder() -> Holder | None:
    """The key by which the current request was signed in; None when it was another way."""
    return _current.get()


@contextmanager
def held(holder: Holder) -> Iterator[None]:
    """What is asked inside is asked by this key."""
    token = _current.set(holder)
    try:
        yield
    finally:
        _current.reset(token)
