"""Tokens of connections: obtained, kept, refreshed once however many ask, given up when they do not come any more.

Nodes get the access token alone. Client secrets, refresh tokens and passwords stay where the connections' other
credentials are decrypted: in the platform's own processes, and for tasks in the api-server.
"""

from continuitybridge.tokens.kept import Place
from continuitybridge.tokens.verbs import (
    AHEAD_S,
    StoredToken,
    due,
    list_tokens,
    one,
    refresh,
    refresh_ahead,
    resolve,
    revoke,
)

__all__ = [
    "AHEAD_S",
    "Place",
    "StoredToken",
    "due",
    "list_tokens",
    "one",
    "refresh",
    "refresh_ahead",
    "resolve",
    "revoke",
]
