"""The master key: 256 bits in a file of mode 0600, never in the environment or the database.

A line is a key. The first one is the current one; others are there while a rotation goes on (`rotation`), so that
what they wrapped opens until it is wrapped anew.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from continuitybridge.errors import ConfigurationError

_PREFIX = "continuitybridge-master-key-1"
_MOST_CHARACTERS = 4_000


@dataclass(frozen=True, slots=True)
class MasterKey:
    """`key_id` tells keys apart without saying anything about them; it stands beside all that they wrapped."""

    key: bytes = field(repr=False)

    @property
    def key_id(self) -> str:
        return hashlib.sha256(b"continuitybridge master key id" + self.key).hexdigest()[:16]


def load_or_create(path: Path) -> MasterKey:
    """The current master key of that file, made on first use. Any number of processes may start at once: all get
    the same key.

    Raises `ConfigurationError` when others may read the file, or when it is not a master key. Losing the file
    loses every encrypted payload and secret: keep a copy apart from the database's backups.
    """
    with suppress(FileNotFoundError):
        return load_all(path)[0]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(_line(MasterKey(secrets.token_bytes(32))))
            file.flush()
            os.fsync(file.fileno())
        # A link, unlike a rename, does not replace the key that another process wrote meanwhile.
        with suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    _sync_directory(path)
    return load_all(path)[0]


def load_all(path: Path) -> list[MasterKey]:
    """The keys of the file, the current one first. Raises as `load_or_create`, and `FileNotFoundError`."""
    with path.open() as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        text = file.read(_MOST_CHARACTERS)
    if mode & 0o077:
        raise ConfigurationError(
            f"master key {path} may be read by others (mode {mode:04o}): chmod 600 it, and rotate it if anybody "
            "did read it",
            field="BRIDGE_MASTER_KEY_FILE",
        )
    keys = [_parsed(line) for line in text.splitlines() if line.strip()]
    found = [key for key in keys if key is not None]
    if not found or len(found) < len(keys):
        raise ConfigurationError(f"{path} does not hold a master key", field="BRIDGE_MASTER_KEY_FILE")
    return found


def store(path: Path, keys: Sequence[MasterKey]) -> None:
    """Put these keys, the current one first, in the place of what the file holds: all of them or, when this is
    killed, none."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.writelines(map(_line, keys))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    _sync_directory(path)


def _line(key: MasterKey) -> str:
    return f"{_PREFIX}:{b64encode(key.key).decode()}\n"


def _parsed(line: str) -> MasterKey | None:
    prefix, _, encoded = line.strip().partition(":")
    try:
        key = b64decode(encoded, validate=True)
    except (Base64Error, ValueError):
        return None
    return MasterKey(key) if prefix == _PREFIX and len(key) == 32 else None


def _sync_directory(path: Path) -> None:
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
