"""The master key's file, of mode 0600: the key itself, or which one it is where it is kept elsewhere. A key is
never in the environment or the database.

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

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from continuitybridge.errors import ConfigurationError
from continuitybridge.settings import Settings
from continuitybridge.vault.cipher import DecryptionFailed
from continuitybridge.vault.wrapping import Place, WrappingKey

PREFIX = "continuitybridge-master-key-1"
_MOST_CHARACTERS = 10_000


@dataclass(frozen=True, slots=True)
class MasterKey:
    """256 bits that this process holds."""

    key: bytes = field(repr=False)

    @classmethod
    def new(cls) -> MasterKey:
        return cls(secrets.token_bytes(32))

    @property
    def key_id(self) -> str:
        return hashlib.sha256(b"continuitybridge master key id" + self.key).hexdigest()[:16]

    def line(self) -> str:
        return f"{PREFIX}:{b64encode(self.key).decode()}"

    def wrap(self, place: Place, key: bytes) -> bytes:
        nonce = secrets.token_bytes(12)
        return nonce + AESGCM(self.key).encrypt(nonce, key, place.associated)

    def unwrap(self, place: Place, wrapped: bytes) -> bytes:
        try:
            return AESGCM(self.key).decrypt(wrapped[:12], wrapped[12:], place.associated)
        except (InvalidTag, ValueError):
            raise DecryptionFailed(f"{place} was altered or moved") from None

    def require_ready(self) -> None:
        """It is held."""

    def require_answering(self) -> None:
        """Nobody is asked."""


def open_or_create(settings: Settings) -> WrappingKey:
    """The installation's current master key. The first start makes a file: with a new key, or with the name of the
    key that `BRIDGE_MASTER_KEY_KMS` says."""
    return load_or_create(settings.master_key_path, settings.master_key_kms)


def load_or_create(path: Path, kms: str | None = None) -> WrappingKey:
    """The current master key of that file, made on first use: a key of the service that `kms` names, else a key of
    the file's own. Any number of processes may start at once: all get the same key.

    Raises `ConfigurationError` when others may read the file, or when it is not a master key. Losing the file
    loses every encrypted payload and secret: keep a copy apart from the database's backups.
    """
    with suppress(FileNotFoundError):
        return load_all(path)[0]
    key: WrappingKey = _named(kms) if kms else MasterKey.new()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = _beside(path)
    try:
        _write(fresh, [key])
        # A link, unlike a rename, does not replace the key that another process wrote meanwhile.
        with suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    _sync_directory(path)
    return load_all(path)[0]


def load_all(path: Path) -> list[WrappingKey]:
    """The keys of the file, the current one first. Raises as `load_or_create`, and `FileNotFoundError`."""
    try:
        # What is no text is told to be no key, like any other.
        with path.open(errors="replace") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(_MOST_CHARACTERS)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigurationError(
            f"master key {path} cannot be read: {error.strerror}", field="BRIDGE_MASTER_KEY_FILE"
        ) from error
    if mode & 0o077:
        raise ConfigurationError(
            f"master key {path} may be read by others (mode {mode:04o}): chmod 600 it, and rotate it if anybody "
            "did read it",
            field="BRIDGE_MASTER_KEY_FILE",
        )
    keys = [_parsed(line.strip(), path) for line in text.splitlines() if line.strip()]
    found = [key for key in keys if key is not None]
    if not found or len(found) < len(keys):
        raise ConfigurationError(f"{path} does not hold a master key", field="BRIDGE_MASTER_KEY_FILE")
    return found


def store(path: Path, keys: Sequence[WrappingKey]) -> None:
    """Put these keys, the current one first, in the place of what the file holds: all of them or, when this is
    killed, none."""
    fresh = _beside(path)
    try:
        _write(fresh, keys)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    _sync_directory(path)


def parse_key(line: str) -> MasterKey | None:
    """The key of a line that holds one itself; None where it does not."""
    prefix, _, encoded = line.partition(":")
    try:
        key = b64decode(encoded, validate=True)
    except (Base64Error, ValueError):
        return None
    return MasterKey(key) if prefix == PREFIX and len(key) == 32 else None


def _parsed(line: str, path: Path) -> WrappingKey | None:
    from continuitybridge.vault import kms, sealing

    prefix, _, rest = line.partition(":")
    if prefix == kms.PREFIX:
        return kms.KmsKey(rest)
    if prefix == sealing.PREFIX:
        return sealing.parse(rest, path)
    return parse_key(line)


def _named(reference: str) -> WrappingKey:
    from continuitybridge.vault import kms

    kms.service(reference)
    return kms.KmsKey(reference)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")


def _write(fresh: Path, keys: Sequence[WrappingKey]) -> None:
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.writelines(f"{key.line()}\n" for key in keys)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
