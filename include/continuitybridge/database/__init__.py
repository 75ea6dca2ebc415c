"""PostgreSQL: connections that bear their role and tenant, the embedded server, roles, migrations.

`tenant()` serves one organization, `relay()` moves messages across organizations, `platform()` manages
organizations, `keys()` reads data keys. Each gives one transaction; `continuitybridge.database.aio` offers the
same to coroutines.
"""

from continuitybridge.database.connections import (
    keys,
    listen,
    owner_url,
    platform,
    relay,
    tenant,
)

__all__ = ["keys", "listen", "owner_url", "platform", "relay", "tenant"]
