"""Signing in by an identity provider: which account is whose.

A provider's `issuer` and `subject` are linked to an account at the first sign-in, and only they count from
then on. The first time the account is found by the e-mail address: one that the provider has verified, and in
a domain that it speaks for. So nobody gets an account by an address that he merely typed, nor by one that was
somebody else's before: who is linked at that provider already has one person there. Nobody gets rights here:
whoever signs in is a member, or was invited and accepts with it. The superadmin's account is opened by no
provider.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import psycopg

from continuitybridge import database, invitations, organizations
from continuitybridge.errors import Conflict, NotAuthenticated
from continuitybridge.identity_providers import IdentityProvider
from continuitybridge.sign_in import events
from continuitybridge.sign_in.accounts import Account, Accounts
from continuitybridge.sign_in.verbs import require_unused

WAY = "identity provider"


class NotLet(NotAuthenticated):
    """The provider told who it is, and he does not sign in here by it; the detail says why, for the log. Strangers
    are told the same for each reason. `user_name`: whose account it would have been."""

    code = "sign-in-refused"
    title = "This sign-in is not taken here"

    def __init__(self, detail: str, user_name: str | None = None, **facts: Any) -> None:
        super().__init__(detail, **facts)
        self.user_name = user_name


@dataclass(frozen=True, slots=True)
class Claims:
    """What a provider said of whoever signed in there, after its signature, audience and time were checked.
    `second_factor`: he showed one there that counts here."""

    issuer: str
    subject: str
    email: str
    email_verified: bool
    first_name: str = ""
    last_name: str = ""
    second_factor: bool = False


def account_of(claims: Claims, provider: IdentityProvider, accounts: Accounts) -> Account:
    """Who is to be signed in, linked by now. Raises `NotLet`, and tells the trails of an account that is refused;
    `QuotaExceeded` and `OrganizationSuspended` for somebody who was invited."""
    try:
        account = _account_of(claims, provider, accounts)
        if not account.active:
            raise NotLet("the account is not active", account.user_name)
        if account.superadmin:
            raise NotLet("superadmins sign in by their password", account.user_name)
        _link(claims, account.user_name)
        if not organizations.memberships(account.user_name) and not invitations.accept_all(
            claims.email.lower(), account.user_name
        ):
            raise NotLet("the account belongs to no organization", account.user_name)
        return account
    except NotLet as error:
        if error.user_name is not None:
            events.tell(error.user_name, "sign_in.failed", way=WAY, provider=provider.name, why=error.detail)
        raise


def unlink(user_name: str, *, by: str) -> int:
    """Forget whom the person is to providers, so that his verified address links him anew; gives how many."""
    with database.platform() as connection:
        removed = connection.execute("DELETE FROM bridge.identities WHERE user_name = %s", (user_name,)).rowcount
        if removed:
            events.record_for(connection, user_name, "identity.unlinked", by=by)
    return removed


def _account_of(claims: Claims, provider: IdentityProvider, accounts: Accounts) -> Account:
    if not claims.email or not claims.email_verified:
        raise NotLet("the provider has not verified the e-mail address")
    if not provider.speaks_for(claims.email):
        raise NotLet(f"the provider does not speak for addresses at {claims.email.rpartition('@')[2]!r}")
    with database.platform() as connection:
        known = _linked(connection, claims)
    if known is not None:
        account = accounts.by_name(known)
        if account is None:
            raise NotLet("the account is gone")
        return account
    return accounts.by_email(claims.email) or _join(claims, accounts)


def _linked(connection: psycopg.Connection[Any], claims: Claims) -> str | None:
    row = connection.execute(
        "SELECT user_name FROM bridge.identities WHERE issuer = %s AND subject = %s",
        (claims.issuer, claims.subject),
    ).fetchone()
    return row[0] if row else None


def _link(claims: Claims, user_name: str) -> None:
    """Raises `NotLet` when the account is somebody else's at this provider."""
    with database.platform() as connection:
        made = connection.execute(
            "INSERT INTO bridge.identities (issuer, subject, user_name) VALUES (%s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            (claims.issuer, claims.subject, user_name),
        ).rowcount
        if made:
            events.record_for(connection, user_name, "identity.linked", issuer=claims.issuer)
        elif _linked(connection, claims) != user_name:
            raise NotLet("the account is linked with somebody else at this provider", user_name)


def _join(claims: Claims, accounts: Accounts) -> Account:
    """Become somebody by the invitations that the verified address has. Raises `NotLet` where there is none."""
    email = claims.email.lower()
    if not invitations.is_invited(email):
        raise NotLet("nobody has this address, and it was not invited")
    require_unused(email)
    try:
        account = accounts.make(
            user_name=email,
            email=email,
            first_name=claims.first_name[:64] or email.partition("@")[0],
            last_name=claims.last_name[:64] or "-",
            password=secrets.token_urlsafe(32),
        )
    except Conflict as error:
        raise NotLet(error.detail) from error
    try:
        if not invitations.accept_all(email, account.user_name):
            raise NotLet("the invitation ended at this moment")
    except BaseException:
        accounts.remove(account.user_name)
        raise
    return account
