"""Who acts: set at the door (a request, a command) for everything that is done behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

ActorKind = Literal["user", "command", "platform"]


@dataclass(frozen=True, slots=True)
class Actor:
    """A signed-in `user`, somebody at the `command` line of the platform's machine, or the `platform` itself.
    `address` is where a request came from."""

    kind: ActorKind
    name: str | None = None
    address: str | None = None


PLATFORM = Actor("platform")
_current: ContextVar[Actor] = ContextVar("bridge_actor", default=PLATFORM)


def current_actor() -> Actor:
    """Whoever acts here; the platform where nobody said otherwise."""
    return _current.get()


@contextmanager
def acting(actor: Actor) -> Iterator[None]:
    """What is done inside is done by this actor."""
    token = _current.set(actor)
    try:
        yield
    finally:
        _current.reset(token)
