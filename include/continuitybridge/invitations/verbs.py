"""Inviting somebody into an organization, and the invitation's acceptance.

Whoever holds an invitation's token may become a member, once, in the role that it names. How he gets it (a mail, a
person's hand) and how a user of Airflow is made of him is for those who call.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import psycopg
from email_validator import EmailNotValidError, validate_email
from psycopg.rows import class_row
from uuid6 import uuid7

from continuitybridge import database, mail, sessions
from continuitybridge.audit import record
from continuitybridge.errors import (
    BridgeError,
    ConfigurationError,
    Conflict,
    NotFound,
    OrganizationSuspended,
    TooManyRequests,
)
from continuitybridge.organizations import Membership, Role, role_of
from continuitybridge.settings import get_settings
from continuitybridge.vault.keyring import Cipher, Keyring

DAYS = 7
"""How long an invitation holds unless it is said otherwise."""
MAX_DAYS = 30
MAX_A_DAY = 5
"""How many invitations an organization sends to one address within 24 hours."""
PAGE = "/bridge/sign-in/invitation"
"""Where an invitation is accepted (`sign_in.pages`)."""
PREFIX = "cbi_"
"""How a token begins."""

log = logging.getLogger(__name__)

State = Literal["open", "accepted", "revoked", "expired"]


@dataclass(frozen=True, slots=True)
class Invitation:
    """An invitation as it may be shown: without its token. `email` is lower case, `organization` a slug."""

    organization_id: UUID
    organization: str
    organization_name: str
    invitation_id: UUID
    email: str
    role: Role
    created_at: datetime
    created_by: str
    expires_at: datetime
    accepted_at: datetime | None
    accepted_by: str | None
    revoked_at: datetime | None

    @property
    def state(self) -> State:
        """What has become of it."""
        if self.accepted_at is not None:
            return "accepted"
        if self.revoked_at is not None:
            return "revoked"
        return "open" if self.expires_at > datetime.now(UTC) else "expired"


@dataclass(frozen=True, slots=True)
class NewInvitation:
    """An invitation that was just made; `token` is not shown again."""

    token: str
    shown: Invitation

    @property
    def address(self) -> str:
        """The page that accepts it. The token stands behind the #: browsers do not send that part, so that no log
        and no mail scanner's request holds it."""
        return f"{get_settings().external_url}{PAGE}#{self.token}"


_SELECT = """
SELECT i.organization_id, o.slug AS organization, o.name AS organization_name, i.invitation_id, i.email, i.role,
       i.created_at, i.created_by, i.expires_at, i.accepted_at, i.accepted_by, i.revoked_at
FROM bridge.invitations i JOIN bridge.organizations o USING (organization_id)
"""
_HOLDS = "i.hash = %s AND i.accepted_at IS NULL AND i.revoked_at IS NULL AND i.expires_at > now()"


def invite(
    organization_id: UUID,
    email: str,
    role: Role | str,
    *,
    by: str,
    days: int = DAYS,
    connection: psycopg.Connection[Any] | None = None,
    keys: Cipher | None = None,
) -> NewInvitation:
    """Invite whoever reads mail at this address. An invitation of the same address that is open ends: the last one
    holds. Where mails can be sent, one is on its way with it.

    In the caller's transaction where `connection` is given (application role, or platform), so
    that a mail that is queued in it goes out exactly when the invitation holds. Raises `ConfigurationError` for
    bad input, `QuotaExceeded` when members and open invitations fill the organization, `TooManyRequests` after
    `MAX_A_DAY` of one address.
    """
    address, wanted = _address(email), role_of(role)
    if not 1 <= days <= MAX_DAYS:
        raise ConfigurationError(f"an invitation holds 1 to {MAX_DAYS} days", field="days", value=days)
    if connection is None:
        try:
            with database.tenant(organization_id) as own:
                return _invite(own, organization_id, address, wanted, by, days, keys)
        except psycopg.errors.UniqueViolation:
            raise Conflict(f"{address} was invited at this moment", field="email", value=address) from None
    return _invite(connection, organization_id, address, wanted, by, days, keys)


def _invite(
    connection: psycopg.Connection[Any],
    organization_id: UUID,
    address: str,
    role: Role,
    by: str,
    days: int,
    keys: Cipher | None,
) -> NewInvitation:
    _bound(connection, organization_id, address)
    token, invitation_id = PREFIX + secrets.token_urlsafe(32), uuid7()
    replaced = connection.execute(
        "UPDATE bridge.invitations SET revoked_at = now(), revoked_by = %s"
        " WHERE organization_id = %s AND email = %s AND accepted_at IS NULL AND revoked_at IS NULL",
        (by, organization_id, address),
    ).rowcount
    connection.execute(
        "INSERT INTO bridge.invitations (organization_id, invitation_id, hash, email, role, created_by,"
        " expires_at) VALUES (%s, %s, %s, %s, %s, %s, now() + %s)",
        (organization_id, invitation_id, _hash(token), address, role.value, by, timedelta(days=days)),
    )
    details = {"role": role.value, "days": days, "invitation": str(invitation_id), "replaces": bool(replaced)}
    record(
        connection, organization_id, "member.invited", "", details=details, about=address, by=by,
        keys=keys or Keyring.open(),
    )  # fmt: skip
    made = NewInvitation(token, _one(connection, organization_id, invitation_id))
    if mail.is_set_up():
        mail.put(connection, organization_id, _letter(made), valid_for=timedelta(days=days))
    return made


def _bound(connection: psycopg.Connection[Any], organization_id: UUID, address: str) -> None:
    """Raises `TooManyRequests` when the address got its mails of a day: each invitation replaces the one before,
    so that no quota stops whoever goes on inviting."""
    [(sent, wait_s)] = connection.execute(
        "SELECT count(*), ceil(extract(epoch FROM min(created_at) + %(day)s - now()))::int FROM ("
        "SELECT created_at FROM bridge.invitations WHERE organization_id = %(owner)s AND email = %(address)s"
        " AND created_at > now() - %(day)s ORDER BY created_at DESC LIMIT %(most)s) AS newest",
        {"owner": organization_id, "address": address, "day": timedelta(days=1), "most": MAX_A_DAY},
    ).fetchall()
    if sent >= MAX_A_DAY:
        raise TooManyRequests(
            f"{address} was invited {MAX_A_DAY} times within a day: try again later", retry_after_s=max(1, wait_s)
        )


def _letter(made: NewInvitation) -> mail.Letter:
    shown = made.shown
    return mail.Letter(
        kind="invitation",
        to=shown.email,
        subject=f"You are invited to {' '.join(shown.organization_name.split())} on ContinuityBridge",
        paragraphs=(
            f"{shown.created_by} invites you to join {shown.organization_name} as "
            f"{shown.role.value.replace('_', ' ')}.",
        ),
        button=("Accept the invitation", made.address),
        closing=(f"The invitation works once, until {shown.expires_at:%d %B %Y, %H:%M} UTC.",),
    )


def list_invitations(organization_id: UUID) -> list[Invitation]:
    """The organization's invitations, newest first, those that are over too."""
    with (
        database.tenant(organization_id) as connection,
        connection.cursor(row_factory=class_row(Invitation)) as cursor,
    ):
        cursor.execute(_SELECT + "WHERE i.organization_id = %s ORDER BY i.invitation_id DESC", (organization_id,))
        return [_typed(each) for each in cursor.fetchall()]


def get(organization_id: UUID, invitation_id: UUID) -> Invitation:
    """One of the organization's invitations; raises `NotFound`."""
    with database.tenant(organization_id) as connection:
        return _one(connection, organization_id, invitation_id)


def revoke(organization_id: UUID, invitation_id: UUID, *, by: str) -> Invitation:
    """End an invitation that is open. Once more changes nothing. Raises `NotFound`; `Conflict` when it was
    accepted: then there is a member to remove."""
    with database.tenant(organization_id) as connection:
        found = _one(connection, organization_id, invitation_id, lock=True)
        if found.accepted_at is not None:
            raise Conflict("the invitation was accepted: remove the member", field="invitation")
        ended = connection.execute(
            "UPDATE bridge.invitations SET revoked_at = now(), revoked_by = %s"
            " WHERE organization_id = %s AND invitation_id = %s AND revoked_at IS NULL",
            (by, organization_id, invitation_id),
        ).rowcount
        if ended:
            found = _one(connection, organization_id, invitation_id)
            details = {"invitation": str(invitation_id)}
            record(
                connection, organization_id, "member.invitation_revoked", "", details=details, about=found.email,
                by=by,
            )  # fmt: skip
    return found


def find(token: str) -> Invitation:
    """The invitation that a token opens, as long as it holds; nothing is used up. Raises `NotFound` alike for a
    token that never was, and one that is used, revoked or expired or whose organization is being deleted."""
    with database.platform() as connection:
        return _by_token(connection, token)


def accept(token: str, user_name: str, *, keys: Cipher | None = None) -> Membership:
    """Use the invitation up and make this user a member, in one transaction: of any number of calls with one
    token, one succeeds. Somebody who is a member already keeps his role.

    For callers who have made sure that the user is who was invited: that he has just been made for the
    invitation's `email` with a password of the holder's own, or has signed in. A token alone proves no existing
    account. Raises `NotFound` as `find`; `OrganizationSuspended`; `QuotaExceeded`, then the token goes on holding.
    """
    with database.platform() as connection:
        return _accept(connection, _by_token(connection, token, lock=True), user_name, keys or Keyring.open())


def is_invited(email: str) -> bool:
    """Whether an invitation of this address (lower case) holds, anywhere."""
    with database.platform() as connection:
        return bool(_of_address(connection, email))


def accept_all(email: str, user_name: str, *, keys: Cipher | None = None) -> list[Membership]:
    """As `accept`, of every invitation that the address has, in one transaction. For callers who have made
    sure that the address is the user's; gives what he is a member of by it, which is nothing where no
    invitation holds. One that cannot be accepted goes on holding; its error is raised when none could."""
    keys = keys or Keyring.open()
    with database.platform() as connection:
        found = _of_address(connection, email, lock=True)
        accepted: list[Membership] = []
        failed: BridgeError | psycopg.DatabaseError | None = None
        for each in found:
            try:
                with connection.transaction():
                    accepted.append(_accept(connection, each, user_name, keys))
            except psycopg.OperationalError:
                raise
            except (BridgeError, psycopg.DatabaseError) as error:
                log.warning("an invitation into %s could not be accepted: %s", each.organization, error)
                failed = error
        if failed is not None and not accepted:
            raise failed
        return accepted


def _accept(connection: psycopg.Connection[Any], found: Invitation, user_name: str, keys: Cipher) -> Membership:
    [(status,)] = connection.execute(
        "SELECT status FROM bridge.organizations WHERE organization_id = %s", (found.organization_id,)
    ).fetchall()
    if status != "active":
        raise OrganizationSuspended(f"the organization {found.organization!r} is suspended")
    connection.execute(
        "UPDATE bridge.invitations SET accepted_at = now(), accepted_by = %s"
        " WHERE organization_id = %s AND invitation_id = %s",
        (user_name, found.organization_id, found.invitation_id),
    )
    connection.execute(
        # Not tried where there is one: limits count what is tried.
        "INSERT INTO bridge.memberships (organization_id, user_name, role)"
        " SELECT %(organization)s, %(user)s, %(role)s WHERE NOT EXISTS (SELECT FROM bridge.memberships"
        " WHERE organization_id = %(organization)s AND user_name = %(user)s)"
        " ON CONFLICT (organization_id, user_name) DO NOTHING",
        {"organization": found.organization_id, "user": user_name, "role": found.role.value},
    )
    [(role,)] = connection.execute(
        "SELECT role FROM bridge.memberships WHERE organization_id = %s AND user_name = %s",
        (found.organization_id, user_name),
    ).fetchall()
    sessions.end_of_unenrolled(connection, found.organization_id, user_name)
    details = {"role": role, "invitation": str(found.invitation_id)}
    record(
        connection, found.organization_id, "member.joined", "", details=details, about=user_name,
        by=user_name, keys=keys,
    )  # fmt: skip
    return Membership(found.organization_id, found.organization, user_name, Role(role), status)


def _of_address(connection: psycopg.Connection[Any], email: str, *, lock: bool = False) -> list[Invitation]:
    query = (
        _SELECT
        + "WHERE i.email = %s AND i.accepted_at IS NULL AND i.revoked_at IS NULL AND i.expires_at > now()"
        + " AND o.status = 'active' ORDER BY i.organization_id"
        + (" FOR UPDATE OF i" if lock else "")
    )
    with connection.cursor(row_factory=class_row(Invitation)) as cursor:
        return [_typed(each) for each in cursor.execute(query, (email,)).fetchall()]


def _by_token(connection: psycopg.Connection[Any], token: str, *, lock: bool = False) -> Invitation:
    query = _SELECT + f"WHERE {_HOLDS} AND o.status <> 'deleting'" + (" FOR UPDATE OF i" if lock else "")
    with connection.cursor(row_factory=class_row(Invitation)) as cursor:
        found = cursor.execute(query, (_hash(token),)).fetchone()
    if found is None:
        raise NotFound("the invitation does not hold: it is wrong, used, revoked or expired")
    return _typed(found)


def _one(
    connection: psycopg.Connection[Any], organization_id: UUID, invitation_id: UUID, *, lock: bool = False
) -> Invitation:
    query = (
        _SELECT + "WHERE i.organization_id = %s AND i.invitation_id = %s" + (" FOR UPDATE OF i" if lock else "")
    )
    with connection.cursor(row_factory=class_row(Invitation)) as cursor:
        found = cursor.execute(query, (organization_id, invitation_id)).fetchone()
    if found is None:
        raise NotFound(f"no invitation {invitation_id}", field="invitation", value=str(invitation_id))
    return _typed(found)


def _typed(found: Invitation) -> Invitation:
    return replace(found, role=Role(found.role))


def _address(email: str) -> str:
    try:
        return validate_email(
            email.strip(), check_deliverability=False, globally_deliverable=False
        ).normalized.lower()
    except EmailNotValidError as error:
        raise ConfigurationError(f"email {email!r} is not valid: {error}", field="email", value=email) from None


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
