"""Small helpers for `from_legacy`: reading the keys of older flows."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from continuitybridge.errors import ConfigurationError


def has_any(config: Mapping[str, Any], keys: Container[str]) -> bool:
    """Whether a configuration uses one of the keys: told with our own, whether it was written for our node."""
    return any(key in keys for key in config)


def renamed(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The configuration with old names replaced; where both are given, ours wins."""
    ours = {key: value for key, value in config.items() if key not in names}
    for old, new in names.items():
        if old in config:
            ours.setdefault(new, config[old])
    return ours


def flag(config: dict[str, Any], old: str, new: str, meaning: Mapping[bool, Any]) -> None:
    """Replace an old yes-or-no key by what it means in ours, in place. Text such as "true" is read as well."""
    if old not in config:
        return
    value = boolean(config.pop(old), old)
    config.setdefault(new, meaning[value])


def boolean(value: Any, key: str) -> bool:
    """What older forms stored as a yes or no; raises `ConfigurationError`."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise ConfigurationError(f"{key}: {value!r} is neither true nor false", field=key, value=value)


def integer(value: Any, key: str) -> int:
    """What older forms stored as a whole number; raises `ConfigurationError`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lstrip("-").isdigit():
        return int(value)
    raise ConfigurationError(f"{key}: {value!r} is not a whole number", field=key, value=value)


def unsupported(config: Mapping[str, Any], key: str, why: str, *harmless: Any) -> None:
    """Refuse a key that our node cannot express, unless its value changes nothing."""
    if key in config and config[key] not in harmless:
        raise refused(key, config[key], why)


def refused(key: str, value: Any, why: str) -> ConfigurationError:
    """The refusal of an old key's value."""
    return ConfigurationError(f"{key}: {value!r}: {why}", field=key, value=value)
