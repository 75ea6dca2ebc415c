"""What the first start generates and nobody chooses: Airflow's keys, the first superadmin's password.

Everything is a file of mode 0600 under `<state_dir>/keys` (0700) and reaches processes by their environment or
standard input, never by a command line.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from cryptography.fernet import Fernet

from continuitybridge.database.bootstrap import write_env
from continuitybridge.database.connections import read_env
from continuitybridge.settings import Settings

PASSWORD_BYTES = 15
"""Entropy of a generated password; URL-safe base64 makes 20 characters of it."""

_AIRFLOW_KEYS: dict[str, Callable[[], str]] = {
    "AIRFLOW__CORE__FERNET_KEY": lambda: Fernet.generate_key().decode(),
    "AIRFLOW__API_AUTH__JWT_SECRET": lambda: secrets.token_urlsafe(48),
    "AIRFLOW__API__SECRET_KEY": lambda: secrets.token_urlsafe(48),
}


def airflow_keys(settings: Settings) -> dict[str, str]:
    """Airflow's Fernet key and signing keys as environment variables; made on first use, then the same for
    ever (other keys would end every session and make Airflow's stored secrets unreadable)."""
    path = settings.keys_dir / "airflow.env"
    known = read_env(path)
    if not _AIRFLOW_KEYS.keys() <= known.keys():
        private_directory(settings.keys_dir)
        with (settings.keys_dir / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = read_env(path)
            missing = {key: make() for key, make in _AIRFLOW_KEYS.items() if key not in known}
            if missing:
                write_env(path, missing)
            known.update(missing)
    return {key: known[key] for key in _AIRFLOW_KEYS}


def password(path: Path) -> tuple[str, bool]:
    """The password kept in a file, and whether this call made it."""
    try:
        return path.read_text().strip(), False
    except FileNotFoundError:
        private_directory(path.parent)
        made = secrets.token_urlsafe(PASSWORD_BYTES)
        write_private(path, made + "\n")
        return made, True


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
    fresh.replace(path)


def private_directory(path: Path) -> None:
    """Make a directory that only its owner may enter. One that exists keeps its mode."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
