"""Tokens in links: each is for one person and one purpose, holds once and not for long."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Literal

import psycopg

from continuitybridge import database
from continuitybridge.errors import NotFound

Purpose = Literal["link", "reset", "enrol"]
VALID_FOR = {"link": timedelta(minutes=15), "reset": timedelta(minutes=30), "enrol": timedelta(minutes=10)}
KEPT = timedelta(days=1)

Connection = psycopg.Connection[Any]

_ended: ContextVar[str | None] = ContextVar("ended", default=None)

_HOLDS = "hash = %s AND purpose = %s AND used_at IS NULL AND expires_at > now()"


def issue(connection: Connection, purpose: Purpose, user_name: str) -> str:
    """A new token, in the caller's transaction (platform role); the person's others of that purpose end. Those to
    enrol by go on: one is given to whoever comes back from a provider, to where others' pages can send him."""
    connection.execute(
        "DELETE FROM bridge.sign_in_tokens WHERE expires_at < now() - %s"
        " OR (user_name = %s AND purpose = %s AND purpose <> 'enrol')",
        (KEPT, user_name, purpose),
    )
    token = secrets.token_urlsafe(32)
    connection.execute(
        "INSERT INTO bridge.sign_in_tokens (hash, purpose, user_name, expires_at) VALUES (%s, %s, %s, now() + %s)",
        (_hash(token), purpose, user_name, VALID_FOR[purpose]),
    )
    return token


def find(token: str, purpose: Purpose) -> str:
    """Whose token it is, as long as it holds; nothing is used up. Raises `NotFound` alike for any that does not
    hold."""
    with database.platform() as connection:
        row = connection.execute(
            f"SELECT user_name FROM bridge.sign_in_tokens WHERE {_HOLDS}",  # noqa: S608  (our own text)
            (_hash(token), purpose),
        ).fetchone()
    return _name(row)


def use(connection: Connection, token: str, purpose: Purpose) -> str:
    """Use a token up, in the caller's transaction (platform role): of any number of calls one succeeds. Gives
    whose it is; raises as `find`."""
    row = connection.execute(
        f"UPDATE bridge.sign_in_tokens SET used_at = now() WHERE {_HOLDS} RETURNING user_name",  # noqa: S608
        (_hash(token), purpose),
    ).fetchone()
    return _name(row)


def end_all(connection: Connection, user_name: str) -> None:
    """End every token of this person, in the caller's transaction (platform role). One that another transaction
    uses up at this moment is left to it: what ends links may be done by a link, in a transaction around this."""
    connection.execute(
        "DELETE FROM bridge.sign_in_tokens WHERE hash IN"
        " (SELECT hash FROM bridge.sign_in_tokens WHERE user_name = %s FOR UPDATE SKIP LOCKED)",
        (user_name,),
    )


@contextmanager
def ended_here(user_name: str) -> Iterator[None]:
    """Whoever changes this person within, in a transaction that has ended his tokens, needs no other one for it:
    it would wait for a second connection while it holds the first."""
    mark = _ended.set(user_name)
    try:
        yield
    finally:
        _ended.reset(mark)


def are_ended(user_name: str) -> bool:
    """Whether the caller's caller has ended this person's tokens (`ended_here`)."""
    return _ended.get() == user_name


def _name(row: tuple[Any, ...] | None) -> str:
    if row is None:
        raise NotFound("the link does not hold: it is wrong, used, or too old")
    return str(row[0])


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
