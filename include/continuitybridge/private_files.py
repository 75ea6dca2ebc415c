"""Secrets of the platform's own that the operator keeps in files."""

from __future__ import annotations

from pathlib import Path

from continuitybridge.errors import ConfigurationError


def read(file: Path, setting: str) -> str:
    """What a file of mode 0600 (or less) holds, without the white space around it. Raises `ConfigurationError`
    that names the setting."""
    try:
        if file.stat().st_mode & 0o077:
            raise ConfigurationError(f"{file} may be read by others: chmod 600 it", field=setting)
        return file.read_text().strip()
    except UnicodeDecodeError:
        raise ConfigurationError(f"{file} holds no text", field=setting) from None
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}", field=setting) from error
