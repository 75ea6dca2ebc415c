"""What the outside world offers to a plan that runs without the platform: connections from a file, a log that is
a stream of lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from continuitybridge.errors import ConfigurationError, NotFound
from continuitybridge.nodes.base import ConnectionInfo

LogSink = Callable[[str, str, Mapping[str, Any]], None]

_AUTH_FIELDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "basic": ("username", "password"),
    "bearer": ("token",),
    "api_key": ("header", "value"),
}


def log_to_stderr(level: str, text: str, fields: Mapping[str, Any]) -> None:
    """One line per entry on standard error: level, text, fields."""
    more = "".join(f" {name}={value!r}" for name, value in fields.items())
    print(f"{level}: {text}{more}", file=sys.stderr, flush=True)


class LocalServices:
    """`Services` of a run on this machine. `connections` maps a name to what nodes get for it."""

    def __init__(
        self, connections: Mapping[str, ConnectionInfo] | None = None, log: LogSink = log_to_stderr
    ) -> None:
        self._connections = dict(connections or {})
        self._log = log

    def connection(self, name: str, *, refused: int | None = None) -> ConnectionInfo:
        found = self._connections.get(name)
        if found is None:
            known = ", ".join(sorted(self._connections)) or "none are declared"
            raise NotFound(f"there is no connection {name!r}; known: {known}", connection=name)
        return found

    def log(self, level: str, text: str, fields: Mapping[str, Any]) -> None:
        self._log(level, text, fields)


def read_connections(path: Path) -> dict[str, ConnectionInfo]:
    """The connections of a YAML file: `name: {base_url, headers?, auth?}`; `auth` is `{type: none}`,
    `{type: basic, username, password}`, `{type: bearer, token}` or `{type: api_key, header, value}`.

    Raises `ConfigurationError` that names the file, the connection and the field, and no value: any of them may
    be a secret.
    """
    import yaml

    try:
        declared = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}", field="connections") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise ConfigurationError(f"{where}: not a YAML file", field="connections") from None
    if declared is None:
        return {}
    if not isinstance(declared, dict):
        raise ConfigurationError(f"{path}: expected a mapping of connection names", field="connections")
    return {str(name): _connection(path, str(name), value) for name, value in declared.items()}


def _connection(path: Path, name: str, declared: Any) -> ConnectionInfo:
    def refuse(field: str, problem: str) -> ConfigurationError:
        return ConfigurationError(f"{path}: connection {name!r}: {field}: {problem}", field=field)

    if not isinstance(declared, dict):
        raise refuse("value", "expected a mapping with base_url, headers and auth")
    for key in declared:
        if key not in ("base_url", "headers", "auth"):
            raise refuse(str(key), "unknown key; valid are base_url, headers, auth")
    base_url = declared.get("base_url")
    if not isinstance(base_url, str) or not base_url.startswith(("http://", "https://")):
        raise refuse("base_url", "expected an address that begins with http:// or https://")
    headers = _texts(declared.get("headers") or {})
    if headers is None:
        raise refuse("headers", "expected a mapping of header names to texts")
    auth = _texts(declared.get("auth") or {"type": "none"})
    if auth is None:
        raise refuse("auth", "expected a mapping of texts")
    wanted = _AUTH_FIELDS.get(auth.get("type", ""))
    if wanted is None:
        raise refuse("auth.type", f"expected one of {', '.join(_AUTH_FIELDS)}")
    if set(auth) != {"type", *wanted}:
        raise refuse("auth", f"type {auth['type']} has exactly the keys {', '.join(('type', *wanted))}")
    return ConnectionInfo(name, base_url, headers, auth)


def _texts(value: Any) -> dict[str, str] | None:
    if not isinstance(value, dict):
        return None
    if not all(isinstance(k, str) and isinstance(v, str) for k, v in value.items()):
        return None
    return dict(value)
