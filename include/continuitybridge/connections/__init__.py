"""Named connections of an organization's environments."""

from continuitybridge.connections.auth import NEEDS_TOKEN
from continuitybridge.connections.verbs import (
    CHANNEL,
    Definition,
    HttpConnection,
    StoredConnection,
    announce,
    list_connections,
    put,
    read,
    remove,
    resolve,
)

__all__ = [
    "CHANNEL",
    "NEEDS_TOKEN",
    "Definition",
    "HttpConnection",
    "StoredConnection",
    "announce",
    "list_connections",
    "put",
    "read",
    "remove",
    "resolve",
]
