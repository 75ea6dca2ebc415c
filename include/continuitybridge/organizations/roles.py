"""The roles that a member has in an organization. What they may do stands in `matrix`."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What a member is in an organization. The superadmin is a role of the platform, not a membership."""

    CONSULTANT = "consultant"
    CUSTOMER_ADMIN = "customer_admin"
    CUSTOMER_USER = "customer_user"
