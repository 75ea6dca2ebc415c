"""The roles that a member has in an organization. What they may do stands in `matrix`."""

from __future__ import annotations

from enum import StrEnum

from continuitybridge.errors import ConfigurationError


class Role(StrEnum):
    """What a member is in an organization. The superadmin is a role of the platform, not a membership."""

    CONSULTANT = "consultant"
    CUSTOMER_ADMIN = "customer_admin"
    CUSTOMER_USER = "customer_user"


def role_of(name: str) -> Role:
    """Raises `ConfigurationError`."""
    try:
        return Role(name)
    except ValueError:
        raise ConfigurationError(
            f"role {name!r} is not valid: choose from {', '.join(Role)}",
            field="role",
            value=name,
            valid=list(Role),
        ) from None
