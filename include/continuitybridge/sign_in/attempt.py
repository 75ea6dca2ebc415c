"""What became of the sign-in that a request tries: told by whoever judges it, deep in Airflow or FAB, to whoever
counts failures at the door (`airflow.sign_in_lockout`). Nothing told is a failure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Attempt:
    """`signed_in`: the user name of whoever is signed in now. `undecided`: nothing was found wrong, and nobody is
    signed in (yet): it is no failure, and forgets none."""

    signed_in: str | None = None
    undecided: bool = False


_current: ContextVar[Attempt | None] = ContextVar("bridge_sign_in_attempt", default=None)


@contextmanager
def attempting() -> Iterator[Attempt]:
    """What is judged inside, threads that are started from there included, tells it here."""
    attempt = Attempt()
    token = _current.set(attempt)
    try:
        yield attempt
    finally:
        _current.reset(token)


def succeeded(user_name: str) -> None:
    """This person is signed in by what the request showed."""
    if (attempt := _current.get()) is not None:
        attempt.signed_in = user_name


def undecided() -> None:
    """No password or code was judged wrong: the next step is awaited, or nothing was looked at."""
    if (attempt := _current.get()) is not None:
        attempt.undecided = True
