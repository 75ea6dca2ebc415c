"""The roles of FAB that the platform uses. Imports no Airflow."""

from __future__ import annotations

from typing import Any

SUPERADMIN_ROLE = "Admin"
"""FAB's own; its holders are superadmins."""

MEMBER_ROLE = "Member"
"""Everybody else. What a member may see and do in Airflow follows from his memberships, so that this role holds
only what concerns himself."""

_MEMBER_PERMISSIONS = (
    ("can_read", "My Profile"),
    ("can_edit", "My Profile"),
    ("can_read", "My Password"),
    ("can_edit", "My Password"),
    ("can_read", "Website"),
)


def ensure_roles(security: Any) -> None:
    """Make the members' role with exactly its permissions; `security` is FAB's security manager. Idempotent."""
    role = security.find_role(MEMBER_ROLE) or security.add_role(MEMBER_ROLE)
    wanted = [security.create_permission(action, resource) for action, resource in _MEMBER_PERMISSIONS]
    for permission in list(role.permissions):
        if permission not in wanted:
            security.remove_permission_from_role(role, permission)
    for permission in wanted:
        if permission not in role.permissions:
            security.add_permission_to_role(role, permission)
