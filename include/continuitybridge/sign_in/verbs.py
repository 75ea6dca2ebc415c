"""What is done by the links in mails: signing in, choosing a new password, joining an organization."""

from __future__ import annotations

import logging

from continuitybridge import database, invitations, mail, organizations, sessions
from continuitybridge.errors import (
    BridgeError,
    Conflict,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    TooManyRequests,
)
from continuitybridge.invitations import Invitation
from continuitybridge.sign_in import events, letters, second_factor, tokens
from continuitybridge.sign_in.accounts import Account, Accounts
from continuitybridge.sign_in.failures import LINKS_OF_ADDRESS, MAILS_OF_ACCOUNT, Failures
from continuitybridge.sign_in.second_factor import Enrolment
from continuitybridge.sign_in.tokens import Purpose

log = logging.getLogger(__name__)

_LETTERS = {"link": letters.sign_in_link, "reset": letters.reset}


class Ways:
    """The verbs, over the people who there are and the failures that are counted. For threads."""

    def __init__(self, accounts: Accounts, failures: Failures) -> None:
        self.accounts = accounts
        self.failures = failures

    def mail_token(self, purpose: Purpose, email: str) -> None:
        """Mail a link to whoever has this address and may sign in; to nobody otherwise. Tells nobody which: it
        raises nothing, and callers do not wait for it."""
        try:
            account = self.accounts.by_email(email)
            if account is None or not account.active:
                return
            if self.failures.take(MAILS_OF_ACCOUNT, account.user_name.casefold()):
                log.warning("an account gets no more links by mail for a while")
                return
            with database.platform() as connection:
                token = tokens.issue(connection, purpose, account.user_name)
                mail.put(connection, None, _LETTERS[purpose](account, token), valid_for=tokens.VALID_FOR[purpose])
        except BridgeError as error:
            log.warning("no link was mailed: %s", error.detail)
        except Exception:
            log.exception("no link was mailed")

    def confirm_link(self, token: str, code: str | None, address: str) -> Account:
        """Use a sign-in link up; gives who is to be signed in. Raises `NotFound` for one that does not hold,
        `CodeNeeded` and `WrongCode` (the link goes on holding), `TooManyRequests`, `NotAuthenticated` for an
        account that is not active any more."""
        user_name = self._held(token, "link", address)
        account = self.accounts.by_name(user_name)
        if account is None or not account.active:
            events.tell(user_name, "sign_in.failed", way="link", why="not active")
            raise NotAuthenticated("the account is not active")
        self.pass_second_factor(user_name, code, address, way="link")
        with database.platform() as connection:
            tokens.use(connection, token, "link")
        events.tell(user_name, "sign_in.succeeded", way="link")
        return account

    def reset_password(self, token: str, password: str, address: str) -> Account:
        """Choose a new password by a link; every session and every other link ends, and a mail says so. Raises
        `NotFound`, `TooManyRequests`, `WeakPassword` (the link goes on holding)."""
        user_name = self._held(token, "reset", address)
        account = self.accounts.by_name(user_name)
        if account is None or not account.active:
            raise _no_link()
        # First, so that of two at once one changes it; a password that is not taken gives the link back.
        with database.platform() as connection:
            tokens.use(connection, token, "reset")
            tokens.end_all(connection, user_name)
            with tokens.ended_here(user_name):
                self.accounts.set_password(user_name, password)
            mail.put(connection, None, letters.password_changed(account))
            events.record_for(connection, user_name, "password.reset")
        if not second_factor.is_enrolled(user_name):
            self.failures.forget(user_name.casefold(), address)
        return account

    def find_invitation(self, token: str, address: str) -> tuple[Invitation, Account | None]:
        """What the token invites to, and who has the invited address already. Raises `NotFound`,
        `TooManyRequests`."""
        self._count(address)
        found = invitations.find(token)
        self._holds(address)
        return found, self.accounts.by_email(found.email)

    def join_as_new(self, token: str, first_name: str, last_name: str, password: str, address: str) -> Account:
        """Become somebody by an invitation: his user name is the invited address. Raises as `find_invitation`,
        `WeakPassword`, `QuotaExceeded`, `Conflict` too when rights are left of somebody who bore the name."""
        found, there = self.find_invitation(token, address)
        if there is not None:
            raise NotFound("there is an account of this address: sign in to accept")
        require_unused(found.email)
        account = self.accounts.make(
            user_name=found.email, email=found.email, first_name=first_name, last_name=last_name, password=password
        )
        try:
            invitations.accept(token, account.user_name)
        except BaseException:
            self.accounts.remove(account.user_name)
            raise
        events.tell(account.user_name, "sign_in.succeeded", way="invitation")
        return account

    def join_as_known(self, token: str, password: str, code: str | None, address: str) -> Account:
        """Join with the account that the invited address has, by its password. Raises as `find_invitation`,
        `NotAuthenticated`, `CodeNeeded`, `WrongCode`, `TooManyRequests`."""
        _, account = self.find_invitation(token, address)
        if account is None:
            raise NotAuthenticated("the password is wrong")
        who = account.user_name.casefold(), address
        if wait_s := self.failures.begin(*who):
            raise _too_many(wait_s)
        if self.accounts.verify(account.user_name, password) is None:
            events.tell(account.user_name, "sign_in.failed", way="invitation")
            raise NotAuthenticated("the password is wrong")
        self.failures.failed_not(*who)
        self.pass_second_factor(account.user_name, code, address, way="invitation")
        invitations.accept(token, account.user_name)
        self.failures.forget(*who)
        events.tell(account.user_name, "sign_in.succeeded", way="invitation")
        return account

    def begin_second_factor(self, name: str, password: str, address: str) -> tuple[Enrolment, str]:
        """Begin with a second factor by one's password; gives what the app needs, and a token for
        `confirm_second_factor`. Raises `NotAuthenticated`, `NotAllowed` for who belongs to no organization,
        `TooManyRequests`, `Conflict`."""
        user_name = self.accounts.named(name) or name
        who = user_name.casefold(), address
        if wait_s := self.failures.begin(*who):
            raise _too_many(wait_s)
        verified = self.accounts.verify(user_name, password)
        if verified is None:
            events.tell(user_name, "sign_in.failed", way="second factor")
            raise NotAuthenticated("the name or the password is wrong")
        # A right password alone is no sign-in: codes that were guessed before go on counting.
        self.failures.failed_not(*who)
        if not _may_have_one(verified):
            raise NotAllowed("the account belongs to no organization: ask for an invitation")
        # Not as it was typed: signing in asks for the factor of the account's own name.
        begun = second_factor.begin(verified.user_name)
        return begun, second_factor_token(verified.user_name)

    def begin_second_factor_signed_in(self, token: str, address: str) -> Enrolment:
        """Begin with a second factor by a `second_factor_token`, which goes on for `confirm_second_factor`. Raises
        `NotFound`, `TooManyRequests`, `Conflict`."""
        return second_factor.begin(self._may_enrol(token, address).user_name)

    def confirm_second_factor(self, token: str, code: str, address: str) -> list[str]:
        """Have it count; gives recovery codes. Raises `NotFound`, `WrongCode`, `TooManyRequests`."""
        return self.confirm_begun(self._may_enrol(token, address).user_name, code, address)

    def confirm_begun(self, user_name: str, code: str, address: str) -> list[str]:
        """As `confirm_second_factor`, of whoever is known by then; wrong codes count as failed sign-ins. Raises
        `ConfigurationError` when nothing was begun, `Conflict` when there is one already."""
        who = user_name.casefold(), address
        if wait_s := self.failures.begin(*who):
            raise _too_many(wait_s)
        try:
            codes = second_factor.confirm(user_name, code)
        except second_factor.WrongCode:
            raise
        except BaseException:
            self.failures.failed_not(*who)
            raise
        self.failures.succeeded(*who)
        with database.platform() as connection:
            tokens.end_all(connection, user_name)
        return codes

    def pass_second_factor(self, user_name: str, code: str | None, address: str, *, way: str) -> None:
        """Raises `CodeNeeded`, `WrongCode`, `TooManyRequests`: wrong codes count as failed sign-ins."""
        who = user_name.casefold(), address
        if not code:
            second_factor.require(user_name, None)
            return
        if wait_s := self.failures.begin(*who):
            raise _too_many(wait_s)
        try:
            second_factor.require(user_name, code)
        except second_factor.WrongCode:
            events.tell(user_name, "sign_in.failed", way=way, why="second factor")
            raise
        except BaseException:
            self.failures.failed_not(*who)
            raise
        self.failures.succeeded(*who)

    def _may_enrol(self, token: str, address: str) -> Account:
        """Whose `second_factor_token` it is. Raises `NotFound`, also for an account that is not active or belongs
        to no organization any more, `TooManyRequests`."""
        account = self.accounts.by_name(self._held(token, "enrol", address))
        if account is None or not account.active or not _may_have_one(account):
            raise _no_link()
        return account

    def _held(self, token: str, purpose: Purpose, address: str) -> str:
        self._count(address)
        user_name = tokens.find(token, purpose)
        self._holds(address)
        return user_name

    def _count(self, address: str) -> None:
        # Nobody guesses 256 bits; an address that tries is stopped all the same.
        if wait_s := self.failures.take(LINKS_OF_ADDRESS, address):
            raise _too_many(wait_s)

    def _holds(self, address: str) -> None:
        self.failures.give_back(LINKS_OF_ADDRESS, address)


def second_factor_token(user_name: str) -> str:
    """What a second factor is set up by, within ten minutes: one that is, ends all of them. For whoever has
    proven a moment ago who he is."""
    with database.platform() as connection:
        return tokens.issue(connection, "enrol", user_name)


def require_unused(user_name: str) -> None:
    """Raises `Conflict` when an account that is gone has left rights under this name, however it was spelled: they
    would be those of whoever takes the name next. Links that it has left end."""
    with database.platform() as connection:
        [(left,)] = connection.execute(
            "SELECT EXISTS (SELECT FROM bridge.memberships WHERE lower(user_name) = lower(%(name)s))"
            " OR EXISTS (SELECT FROM bridge.api_keys WHERE lower(user_name) = lower(%(name)s)"
            " AND revoked_at IS NULL AND expires_at > now())"
            " OR EXISTS (SELECT FROM bridge.people WHERE lower(user_name) = lower(%(name)s)"
            " AND totp_since IS NOT NULL)",
            {"name": user_name},
        ).fetchall()
        if left:
            raise Conflict("there was an account of this name, and rights of it are left: ask the superadmin")
        tokens.end_all(connection, user_name)


def _may_have_one(account: Account) -> bool:
    return account.superadmin or bool(organizations.memberships(account.user_name))


def _no_link() -> NotFound:
    return NotFound("the link does not hold: it is wrong, used, or too old")


def _too_many(wait_s: int) -> TooManyRequests:
    return TooManyRequests("too many sign-ins failed: try again later", retry_after_s=wait_s)


def end_sessions(user_name: str, *, by: str | None = None) -> None:
    """Sign the person out everywhere: every session, token and link ends at its next request. API keys hold on."""
    with database.platform() as connection:
        sessions.end_all(connection, user_name)
        tokens.end_all(connection, user_name)
        events.record_for(connection, user_name, "sessions.ended", by=by)
