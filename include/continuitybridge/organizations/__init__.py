"""Organizations (tenants), their environments and memberships."""

from continuitybridge.organizations.roles import Role
from continuitybridge.organizations.verbs import (
    ENVIRONMENTS,
    Membership,
    Organization,
    add_member,
    by_slug,
    create,
    list_all,
    members,
    memberships,
    remove_member,
)

__all__ = [
    "ENVIRONMENTS",
    "Membership",
    "Organization",
    "Role",
    "add_member",
    "by_slug",
    "create",
    "list_all",
    "members",
    "memberships",
    "remove_member",
]
