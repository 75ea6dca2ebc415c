"""Named connections of an organization's environments."""

from continuitybridge.connections.verbs import (
    CHANNEL,
    HttpConnection,
    StoredConnection,
    list_connections,
    put,
    remove,
    resolve,
)

__all__ = ["CHANNEL", "HttpConnection", "StoredConnection", "list_connections", "put", "remove", "resolve"]
