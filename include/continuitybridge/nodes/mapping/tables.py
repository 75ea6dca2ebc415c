"""Lookup tables of a mapping: written in place, or in side files that may hold several."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from continuitybridge.errors import ConfigurationError

Table = dict[str, Any]


class Tables:
    """The tables a mapping may look values up in.

    A side file `status_map.yaml` gives `status_map` (all of it), `status_map.order` (one table of several) and,
    where no file or other table is called so, `order` alone. Keys are compared as text.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, Any] = {}
        self._inner: dict[str, list[Any]] = {}

    def add_inline(self, name: str, table: Mapping[str, Any]) -> None:
        self._by_name[name] = table

    def add_file(self, name: str, content: Any, *, field: str) -> None:
        """Raises `ConfigurationError` when the file holds no tables or its name is taken."""
        stem = posixpath.basename(name).rsplit(".", 1)[0]
        if not isinstance(content, dict):
            raise ConfigurationError(f"{name} holds no lookup table", field=field, value=name)
        if stem in self._by_name and self._by_name[stem] != content:
            raise ConfigurationError(f"two lookup files are called {stem}", field=field, value=name)
        self._by_name[stem] = content
        for key, inner in content.items():
            if isinstance(inner, dict):
                self._inner.setdefault(key, []).append(inner)

    def find(self, name: str, *, field: str) -> Table:
        """One table, keys as text. Raises `ConfigurationError` naming the nearest known."""
        found = self._find(name, field)
        if not isinstance(found, Mapping):
            known = sorted(self._names())
            nearest = get_close_matches(name, known, n=3)
            hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
            raise ConfigurationError(
                f"there is no lookup table {name!r}{hint}",
                field=field,
                value=name,
                valid=", ".join(known) or "none",
                nearest=nearest,
            )
        return {text_key(key): value for key, value in found.items()}

    def _find(self, name: str, field: str) -> Any:
        if name in self._by_name:
            return self._by_name[name]
        outer, dot, key = name.rpartition(".")
        if dot:
            table = self._find(outer, field)
            return table.get(key) if isinstance(table, Mapping) else None
        candidates = self._inner.get(name, [])
        if any(candidate != candidates[0] for candidate in candidates):
            raise ConfigurationError(
                f"several files have a table {name!r}; write <file>.{name}", field=field, value=name
            )
        return candidates[0] if candidates else None

    def _names(self) -> set[str]:
        names = set(self._by_name) | set(self._inner)
        for outer, content in self._by_name.items():
            names |= {f"{outer}.{key}" for key, inner in content.items() if isinstance(inner, dict)}
        return names


def text_key(value: Any) -> str:
    """A value as the key of a table: 2 as "2", 2.0 too, true as "true"."""
    if value.__class__ is str:
        return str(value)
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
