"""The people who may sign in, as this room needs them; Airflow's are behind it (`airflow.accounts`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Cookie = str
"""The value of a Set-Cookie header (RFC 6265)."""


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody who is known by `user_name`. One who is not `active` signs in by no way."""

    user_name: str
    email: str
    active: bool
    first_name: str = ""
    superadmin: bool = False


class Accounts(Protocol):
    """Asked from threads, not from coroutines. All raise `Unavailable` when the database does not answer."""

    def by_email(self, email: str) -> Account | None:
        """Whose address this is, however it is spelled; None for nobody's, and for that of several."""

    def by_name(self, user_name: str) -> Account | None:
        """The account of exactly that name."""

    def named(self, name: str) -> str | None:
        """The user name of the account that `verify` would try for this name; None for none."""

    def verify(self, name: str, password: str) -> Account | None:
        """The active account that has this password and is known by this name, however it is spelled: its own
        `user_name` counts from there on. None where there is none, and that takes as long."""

    def make(self, *, user_name: str, email: str, first_name: str, last_name: str, password: str) -> Account:
        """An active account without rights of its own. Raises `WeakPassword`, `Conflict` when name or address are
        taken."""

    def remove(self, user_name: str) -> None:
        """Take back what `make` made a moment ago."""

    def set_password(self, user_name: str, password: str) -> None:
        """Change the password; every session and token ends. Raises `WeakPassword`, `NotFound`."""

    def sign_in(self, user_name: str, *, secure: bool) -> Sequence[Cookie]:
        """Sign in as Airflow's form does: the cookies of its token and its session. `secure`: the request came by
        HTTPS. Raises `NotAuthenticated` when the account is gone or not active."""
