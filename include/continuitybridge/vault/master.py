"""The master key: 256 bits in a file of mode 0600, never in the environment or the database."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from continuitybridge.errors import ConfigurationError

_PREFIX = "continuitybridge-master-key-1"


@dataclass(frozen=True, slots=True)
class MasterKey:
    """`key_id` tells keys apart without saying anything about them; it stands beside all that they wrapped."""

    key: bytes = field(repr=False)

    @property
    def key_id(self) -> str:
        return hashlib.sha256(b"continuitybridge master key id" + self.key).hexdigest()[:16]


def load_or_create(path: Path) -> MasterKey:
    """The master key of that file, made on first use. Any number of processes may start at once: all get the
    same key.

    Raises `ConfigurationError` when others may read the file, or when it is not a master key. Losing the file
    loses every encrypted payload and secret: keep a copy apart from the database's backups.
    """
    with suppress(FileNotFoundError):
        return _load(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{_PREFIX}:{b64encode(secrets.token_bytes(32)).decode()}\n")
            file.flush()
            os.fsync(file.fileno())
        # A link, unlike a rename, does not replace the key that another process wrote meanwhile.
        with suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return _load(path)


def _load(path: Path) -> MasterKey:
    with path.open() as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        text = file.read(200).strip()
    if mode & 0o077:
        raise ConfigurationError(
            f"master key {path} may be read by others (mode {mode:04o}): chmod 600 it, and rotate it if anybody "
            "did read it",
            field="BRIDGE_MASTER_KEY_FILE",
        )
    prefix, _, encoded = text.partition(":")
    try:
        key = b64decode(encoded, validate=True)
    except (Base64Error, ValueError):
        key = b""
    if prefix != _PREFIX or len(key) != 32:
        raise ConfigurationError(f"{path} does not hold a master key", field="BRIDGE_MASTER_KEY_FILE")
    return MasterKey(key)
