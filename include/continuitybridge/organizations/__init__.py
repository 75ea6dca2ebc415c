"""Organizations (tenants), their environments and memberships."""

from continuitybridge.organizations.membership import (
    Membership,
    add_member,
    change_role,
    members,
    memberships,
    remove_member,
)
from continuitybridge.organizations.roles import Role, role_of
from continuitybridge.organizations.verbs import (
    ENVIRONMENTS,
    Organization,
    add_environment,
    by_slug,
    create,
    environments,
    list_all,
    making,
    require_environment,
)

__all__ = [
    "ENVIRONMENTS",
    "Membership",
    "Organization",
    "Role",
    "add_environment",
    "add_member",
    "by_slug",
    "change_role",
    "create",
    "environments",
    "list_all",
    "making",
    "members",
    "memberships",
    "remove_member",
    "require_environment",
    "role_of",
]
