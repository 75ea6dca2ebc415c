"""PostgreSQL: connections that bear their role and tenant, the embedded server, roles, migrations.

`tenant()` serves one organization, `relay()` moves messages across organizations, `platform()` manages
organizations. Each gives one transaction; `continuitybridge.database.aio` offers the same to coroutines.
"""

from continuitybridge.database.connections import (
    listen,
    owner_url,
    platform,
    relay,
    tenant,
)

__all__ = ["listen", "owner_url", "platform", "relay", "tenant"]
