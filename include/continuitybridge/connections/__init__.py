"""Named connections of an organization's environments."""

from continuitybridge.connections.verbs import (
    HttpConnection,
    StoredConnection,
    list_connections,
    put,
    remove,
    resolve,
)

__all__ = ["HttpConnection", "StoredConnection", "list_connections", "put", "remove", "resolve"]
