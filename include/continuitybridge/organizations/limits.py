"""What a number may be that limits something."""

from __future__ import annotations

from continuitybridge.errors import ConfigurationError

MOST = 10**15
"""Of what an organization may have, bytes and calls too."""
MOST_THINGS = 10**9
"""Of what people make one by one."""


def check_limit(field: str, limit: int | None, most: int = MOST) -> None:
    """Raises `ConfigurationError`; None, for unlimited, is one."""
    if limit is not None and not 0 <= limit <= most:
        raise ConfigurationError(f"a limit is a number from 0 to {most}", field=field, value=limit)
