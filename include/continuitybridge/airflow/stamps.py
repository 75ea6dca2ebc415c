"""What tells a token or session that was given before its user's password changed, or before his sessions ended
(`sessions`), from one that holds."""

from __future__ import annotations

import hmac
from typing import Any

from airflow.configuration import conf

from continuitybridge import sessions

CLAIM = "bridge_since"
"""Where it stands in a token and in a session."""


def stamp(user: Any) -> str:
    """Another one for each password that the user ever has and each end of his sessions; tells nothing of them."""
    key = conf.get_mandatory_value("api_auth", "jwt_secret").encode()
    since = sessions.since(user.username)
    text = f"{user.id}:{user.password or ''}:{'' if since is None else since.timestamp()}"
    return hmac.digest(key, text.encode(), "sha256").hex()[:32]


def holds(given: object, user: Any) -> bool:
    """Whether it is the user's stamp of now."""
    return hmac.compare_digest(str(given or "").encode(), stamp(user).encode())
