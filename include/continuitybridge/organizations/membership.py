"""Who belongs to an organization, and as what.

Who may make whom what stands in `matrix.GRANTABLE`; here it is done. An organization that has an administrator
keeps one: the last is neither removed nor made less, except by the platform's own callers. Who gets another role
or is removed signs in again: his sessions end. So do the invitations that he made and could not make any more:
nobody comes back by one that he had made out to himself.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from continuitybridge import database, sessions
from continuitybridge.audit import record, tolerating
from continuitybridge.database.connections import Connection
from continuitybridge.errors import BridgeError, Conflict, NotFound
from continuitybridge.organizations.limits import MOST_THINGS, check_limit
from continuitybridge.organizations.matrix import GRANTABLE
from continuitybridge.organizations.roles import Role, role_of
from continuitybridge.organizations.user_names import check_user_name, may_be_a_members

_INVITATION_ENDED = "member.invitation_revoked"


@dataclass(frozen=True, slots=True)
class Membership:
    """That a user belongs to an organization, and as what. `status` is the organization's."""

    organization_id: UUID
    slug: str
    user_name: str
    role: Role
    status: str = "active"


def add_member(organization_id: UUID, user_name: str, role: Role | str, *, by: str | None = None) -> None:
    """Make the user a member, or change the role of one; the same again changes nothing. Raises
    `ConfigurationError`, `QuotaExceeded` (`members`; `assigned_organizations` when as many are assigned to a
    consultant as may be)."""
    wanted = role_of(role)
    if not may_be_a_members(user_name):
        check_user_name(user_name)
    with database.platform() as connection:
        before = connection.execute(
            "SELECT role FROM bridge.memberships WHERE organization_id = %s AND user_name = %s FOR UPDATE",
            (organization_id, user_name),
        ).fetchone()
        if before is not None:
            # Looked at first: an insertion that comes to nothing would be counted against limits all the same.
            if before[0] == wanted.value:
                return
            sessions.end_all(connection, user_name)
            end_invitations(connection, user_name, by=by, organization_id=organization_id, role=wanted)
        else:
            # By his name, whatever it is, a member that there is signs in already.
            check_user_name(user_name)
        connection.execute(
            "INSERT INTO bridge.memberships (organization_id, user_name, role) VALUES (%s, %s, %s) "
            "ON CONFLICT (organization_id, user_name) DO UPDATE SET role = excluded.role",
            (organization_id, user_name, wanted.value),
        )
        sessions.end_of_unenrolled(connection, organization_id, user_name)
        record(
            connection, organization_id, "member.added", "", details={"role": wanted.value}, about=user_name, by=by
        )


def require_second_factor(organization_id: UUID, required: bool, *, by: str | None = None) -> int:
    """Say whether the organization's members need a second factor. Those who have none are signed out, and led to
    set one up when they sign in; API keys go on. Returns how many were signed out. Raises `NotFound`."""
    with database.platform() as connection:
        row = connection.execute(
            "SELECT second_factor_required FROM bridge.organizations WHERE organization_id = %s FOR UPDATE",
            (organization_id,),
        ).fetchone()
        if row is None:
            raise NotFound("no such organization", field="organization")
        connection.execute(
            "UPDATE bridge.organizations SET second_factor_required = %s WHERE organization_id = %s",
            (required, organization_id),
        )
        ended = sessions.end_of_unenrolled(connection, organization_id)
        if row[0] is not required:
            details = {"required": required, "signed_out": ended}
            record(connection, organization_id, "organization.second_factor_changed", "", details=details, by=by)
    return ended


def requires_second_factor(organization_id: UUID) -> bool:
    """Whether its members need a second factor. Raises `NotFound`."""
    with database.platform() as connection:
        row = connection.execute(
            "SELECT second_factor_required FROM bridge.organizations WHERE organization_id = %s",
            (organization_id,),
        ).fetchone()
    if row is None:
        raise NotFound("no such organization", field="organization")
    return bool(row[0])


def limit_assigned(user_name: str, most: int | None) -> None:
    """How many organizations may be assigned to a user as a consultant; None: any number. Those that are stay, and
    are told. Raises `ConfigurationError`."""
    check_user_name(user_name)
    check_limit("max_organizations", most, MOST_THINGS)
    with database.platform() as connection:
        connection.execute(
            "INSERT INTO bridge.people (user_name, max_organizations) VALUES (%s, %s)"
            " ON CONFLICT (user_name) DO UPDATE SET max_organizations = excluded.max_organizations",
            (user_name, most),
        )
        assigned = connection.execute(
            "SELECT m.organization_id"
            " FROM bridge.memberships m JOIN bridge.organizations o USING (organization_id)"
            " WHERE m.user_name = %s AND m.role = 'consultant' AND o.status <> 'deleting'"
            " ORDER BY m.organization_id",
            (user_name,),
        ).fetchall()
        details = {"max_organizations": most}
        for (organization_id,) in assigned:
            # As with an account's limits.
            with tolerating(connection, organization_id, "consultant.limited"):
                record(connection, organization_id, "consultant.limited", "", details=details, about=user_name)


def change_role(
    organization_id: UUID, user_name: str, role: Role | str, *, by: str, keep_an_administrator: bool = True
) -> None:
    """Give a member another role; the same again changes nothing. Raises `NotFound` when he is none, `Conflict`
    when he is the last administrator, `QuotaExceeded` as `add_member`."""
    wanted = role_of(role)
    with database.platform() as connection:
        before = _locked(connection, organization_id, user_name)
        if before is wanted:
            return
        if keep_an_administrator:
            _keep_an_administrator(connection, organization_id, user_name, before)
        connection.execute(
            "UPDATE bridge.memberships SET role = %s WHERE organization_id = %s AND user_name = %s",
            (wanted.value, organization_id, user_name),
        )
        sessions.end_all(connection, user_name)
        end_invitations(connection, user_name, by=by, organization_id=organization_id, role=wanted)
        details = {"role": wanted.value, "before": before.value}
        record(connection, organization_id, "member.role_changed", "", details=details, about=user_name, by=by)


def remove_member(
    organization_id: UUID, user_name: str, *, by: str | None = None, keep_an_administrator: bool = False
) -> None:
    """End a membership. Raises `NotFound` when there is none, `Conflict` when an administrator is to be kept and
    this is the last."""
    with database.platform() as connection:
        before = _locked(connection, organization_id, user_name)
        if keep_an_administrator:
            _keep_an_administrator(connection, organization_id, user_name, before)
        connection.execute(
            "DELETE FROM bridge.memberships WHERE organization_id = %s AND user_name = %s",
            (organization_id, user_name),
        )
        sessions.end_all(connection, user_name)
        end_invitations(connection, user_name, by=by, organization_id=organization_id)
        record(
            connection,
            organization_id,
            "member.removed",
            "",
            details={"role": before.value},
            about=user_name,
            by=by,
        )


def end_invitations(
    connection: Connection, user_name: str, *, by: str | None, organization_id: UUID, role: Role | None = None
) -> None:
    """End the open invitations that this member of the organization made, but those that he may make by his
    `role`, in the caller's transaction (platform role)."""
    may = GRANTABLE[role.value] if role is not None else frozenset[Role]()
    for ended in _end_invitations(connection, user_name, by, [organization_id], may):
        _tell_of_ended(connection, *ended, by=by)


def end_invitations_everywhere(user_name: str, *, by: str | None) -> None:
    """End the open invitations that this person made wherever he is a member. No trail that was tampered with, and
    no key that is away, keeps one open: the log says then that its trail does not tell. Raises `Unavailable` when
    the database does not answer."""
    with database.platform() as connection:
        member_of = connection.execute(
            "SELECT organization_id FROM bridge.memberships WHERE user_name = %s", (user_name,)
        ).fetchall()
        places = [organization_id for (organization_id,) in member_of]
        for place, invitation_id, email in _end_invitations(connection, user_name, by, places, frozenset()):
            with tolerating(connection, place, _INVITATION_ENDED, BridgeError):
                _tell_of_ended(connection, place, invitation_id, email, by=by)


def _end_invitations(
    connection: Connection, user_name: str, by: str | None, places: list[UUID], may: frozenset[Role]
) -> list[tuple[UUID, UUID, str]]:
    """Of these organizations; gives (organization, invitation, address) in their order."""
    # Locked in the order of organizations, as who accepts all of his does: of the two one waits.
    open_ones: list[tuple[UUID, UUID, str]] = connection.execute(
        "SELECT organization_id, invitation_id, email FROM bridge.invitations"
        " WHERE created_by = %s AND organization_id = ANY (%s) AND role <> ALL (%s)"
        " AND accepted_at IS NULL AND revoked_at IS NULL AND expires_at > now()"
        " ORDER BY organization_id, invitation_id FOR UPDATE",
        (user_name, places, [each.value for each in may]),
    ).fetchall()
    connection.execute(
        "UPDATE bridge.invitations SET revoked_at = now(), revoked_by = %s"
        " WHERE (organization_id, invitation_id) IN (SELECT * FROM unnest(%s::uuid[], %s::uuid[]))",
        (by or user_name, [each[0] for each in open_ones], [each[1] for each in open_ones]),
    )
    return open_ones


def _tell_of_ended(
    connection: Connection, organization_id: UUID, invitation_id: UUID, email: str, *, by: str | None
) -> None:
    details = {"invitation": str(invitation_id)}
    record(connection, organization_id, _INVITATION_ENDED, "", details=details, about=email, by=by)


def memberships(user_name: str) -> list[Membership]:
    """The organizations a user belongs to, by slug; none that is being deleted. Runs as the application role: the
    database shows a user's own memberships and no other."""
    with database.tenant(None, user_name=user_name) as connection:
        rows = connection.execute(
            "SELECT m.organization_id, o.slug, m.user_name, m.role, o.status FROM bridge.memberships m "
            "JOIN bridge.organizations o USING (organization_id) "
            "WHERE m.user_name = %s AND o.status <> 'deleting' ORDER BY o.slug",
            (user_name,),
        ).fetchall()
    return [Membership(row[0], row[1], row[2], Role(row[3]), row[4]) for row in rows]


def members(organization_id: UUID) -> list[Membership]:
    """Who belongs to an organization, by name."""
    with database.platform() as connection:
        rows = connection.execute(
            "SELECT m.organization_id, o.slug, m.user_name, m.role, o.status FROM bridge.memberships m "
            "JOIN bridge.organizations o USING (organization_id) WHERE m.organization_id = %s "
            "ORDER BY m.user_name",
            (organization_id,),
        ).fetchall()
    return [Membership(row[0], row[1], row[2], Role(row[3]), row[4]) for row in rows]


def _locked(connection: Connection, organization_id: UUID, user_name: str) -> Role:
    """The member's role. Two who change members of one organization wait for each other, so that of two last
    administrators not both go."""
    connection.execute(
        "SELECT FROM bridge.organizations WHERE organization_id = %s FOR NO KEY UPDATE", (organization_id,)
    )
    row = connection.execute(
        "SELECT role FROM bridge.memberships WHERE organization_id = %s AND user_name = %s",
        (organization_id, user_name),
    ).fetchone()
    if row is None:
        raise NotFound(f"{user_name!r} is not a member", field="user_name", value=user_name)
    return Role(row[0])


def _keep_an_administrator(connection: Connection, organization_id: UUID, user_name: str, role: Role) -> None:
    if role is not Role.CUSTOMER_ADMIN:
        return
    others = connection.execute(
        "SELECT FROM bridge.memberships WHERE organization_id = %s AND role = %s AND user_name <> %s LIMIT 1",
        (organization_id, role.value, user_name),
    ).fetchone()
    if others is None:
        raise Conflict(
            f"{user_name!r} is the organization's last administrator: make somebody else one first",
            field="user_name",
            value=user_name,
        )
