"""Connection URLs: taking them apart, putting them together, never showing their password."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from continuitybridge.errors import ConfigurationError


def parse(url: str, setting: str = "BRIDGE_DATABASE_URL") -> dict[str, Any]:
    """The parts of a libpq URL or connection string; raises `ConfigurationError` naming the setting."""
    scheme, separator, rest = url.partition("://")
    try:
        return dict(conninfo_to_dict(f"{scheme.split('+')[0]}{separator}{rest}"))
    except ProgrammingError:
        # libpq's message quotes the URL, password included.
        raise ConfigurationError(
            f"{setting} is not a connection URL; valid: postgresql://user:password@host:5432/database",
            field=setting,
        ) from None


def build(parts: Mapping[str, Any], *, scheme: str = "postgresql") -> str:
    """A URL of these parts. A socket directory goes into the query, as libpq reads it."""
    rest = {key: str(value) for key, value in parts.items() if value not in (None, "")}
    user = quote(rest.pop("user", ""), safe="")
    password = quote(rest.pop("password", ""), safe="")
    host = rest.pop("host", "")
    port = rest.pop("port", "")
    database = quote(rest.pop("dbname", ""), safe="")
    if host.startswith("/") or "," in host:
        rest["host"] = host
        if port:
            rest["port"] = port
        host = port = ""
    if ":" in host:
        host = f"[{host}]"
    query = f"?{urlencode(rest, quote_via=quote)}" if rest else ""
    return f"{scheme}://{user}:{password}@{host}{':' + port if port else ''}/{database}{query}"


def for_sqlalchemy(url: str, driver: str) -> str:
    """The same URL naming SQLAlchemy's driver."""
    return f"postgresql+{driver}://{url.partition('://')[2]}"
