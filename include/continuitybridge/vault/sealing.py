"""A master key that a passphrase seals: the file holds it encrypted, and somebody types the passphrase after each
start of the machine.

Unsealed, the key stands in memory that is a directory (tmpfs), for the platform's user only, and for all of its
processes on this machine: those that are started again need nobody. It is gone with the machine, or by `seal`.
Until then, what needs a data key raises `Sealed`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import tempfile
import unicodedata
from base64 import b64decode, b64encode
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from continuitybridge.errors import ConfigurationError, NotAuthenticated, Unavailable
from continuitybridge.settings import get_settings
from continuitybridge.vault import master
from continuitybridge.vault.wrapping import Place, WrappingKey

PREFIX = "continuitybridge-sealed-1"
MIN_CHARACTERS = 15
"""NIST SP 800-63B-4, 3.1.1.2: what is the only factor has so many."""
LOG2_N, R, P = 17, 8, 1
"""scrypt with 128 MiB (OWASP's Password Storage Cheat Sheet): half a second for each guess."""
_LARGEST = (22, 32, 16)
RETRY_AFTER_S = 30
SHARED = Path("/dev", "shm")
"""What all users of the machine may write into; what is found there is checked."""


class Sealed(Unavailable):
    """The master key is sealed, and nobody has unsealed it since the machine started."""

    code = "sealed"
    title = "The platform is sealed"


class WrongPassphrase(NotAuthenticated):
    """The passphrase is not the one that sealed the key."""

    code = "wrong-passphrase"
    title = "The passphrase is another"


@dataclass(frozen=True, slots=True)
class SealedKey:
    """A master key under a passphrase. It wraps and unwraps while it is unsealed."""

    key_id: str
    parameters: tuple[int, int, int]
    salt: bytes
    box: bytes
    file: Path

    def line(self) -> str:
        numbers = ",".join(map(str, self.parameters))
        parts = (PREFIX, self.key_id, "scrypt", numbers, _text(self.salt), _text(self.box))
        return ":".join(parts)

    def wrap(self, place: Place, key: bytes) -> bytes:
        return self._unsealed().wrap(place, key)

    def unwrap(self, place: Place, wrapped: bytes) -> bytes:
        return self._unsealed().unwrap(place, wrapped)

    def require_ready(self) -> None:
        self._unsealed()

    def require_answering(self) -> None:
        """Nobody is asked."""

    def opened(self, passphrase: str) -> master.MasterKey:
        """The key itself. Raises `WrongPassphrase`."""
        # One keyboard says é by one character, another by two. As typed: what was sealed before that was minded.
        for each in dict.fromkeys((_normal(passphrase), passphrase)):
            with suppress(InvalidTag):
                return master.MasterKey(
                    AESGCM(_derived(each, self.salt, self.parameters)).decrypt(
                        self.box[:12], self.box[12:], _bound(self.key_id, self.parameters)
                    )
                )
        raise WrongPassphrase(f"master key {self.key_id} does not open by this passphrase")

    def _unsealed(self) -> master.MasterKey:
        told = "bridge vault unseal"
        try:
            for place in _places(self.file):
                for key in _held(place):
                    if key.key_id == self.key_id:
                        return key
        except (ConfigurationError, OSError) as error:
            # Somebody may have put something into the place. Nothing is lost by it.
            told = f"it could not be looked up: {error}"
        raise Sealed(f"master key {self.key_id} is sealed: {told}", retry_after_s=RETRY_AFTER_S, key=self.key_id)


def sealed_by(passphrase: str, file: Path) -> SealedKey:
    """A new master key for that file, sealed by the passphrase and unsealed on this machine. Raises
    `ConfigurationError` when the passphrase is too short, or the file another user's."""
    require_owner(file)
    passphrase = _normal(passphrase)
    if len(passphrase) < MIN_CHARACTERS:
        raise ConfigurationError(
            f"the passphrase has {len(passphrase)} characters; valid are {MIN_CHARACTERS} and more",
            field="passphrase",
        )
    key, salt, nonce = master.MasterKey.new(), secrets.token_bytes(16), secrets.token_bytes(12)
    parameters = (LOG2_N, R, P)
    box = nonce + AESGCM(_derived(passphrase, salt, parameters)).encrypt(
        nonce, key.key, _bound(key.key_id, parameters)
    )
    _hold(file, [key])
    return SealedKey(key.key_id, parameters, salt, box, file)


def unseal(file: Path, passphrase: str) -> list[str]:
    """Open what the passphrase opens of the file's sealed keys, for all processes of this user on this machine;
    returns their ids. Raises `WrongPassphrase` when it opens none, `ConfigurationError` when none is sealed, or
    the file is another user's."""
    require_owner(file)
    sealed = _sealed_of(file)
    if not sealed:
        raise ConfigurationError(f"{file} holds no sealed key", field="BRIDGE_MASTER_KEY_FILE")
    opened = []
    for key in sealed:
        with suppress(WrongPassphrase):
            opened.append(key.opened(passphrase))
    if not opened:
        raise WrongPassphrase("no sealed master key opens by this passphrase")
    _hold(file, opened)
    return [key.key_id for key in opened]


def seal(file: Path) -> None:
    """Forget the unsealed keys. Processes that run go on with the data keys that they hold, for a minute; a stream
    worker, for ten at most. Raises `ConfigurationError` when there was none and none is sealed, or the file is
    another user's."""
    require_owner(file)
    gone = False
    for place in _places(file, whatever_mode=True):
        # Where it cannot be, nothing of this user is there.
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            place.unlink()
            gone = True
    if not gone and not _sealed_of(file):
        raise ConfigurationError(f"{file} holds no sealed key", field="BRIDGE_MASTER_KEY_FILE")


def keep_only(file: Path, keys: Iterable[WrappingKey]) -> None:
    """Forget the unsealed keys that are none of these: they left the file."""
    ids = {key.key_id for key in keys if isinstance(key, SealedKey)}
    for place in _places(file, whatever_mode=True):
        try:
            held = _held(place)
        except ConfigurationError:
            # Its directory's mode was changed: nobody reads it there any more.
            with suppress(OSError):
                place.unlink()
            continue
        except OSError:
            continue
        kept = [key for key in held if key.key_id in ids]
        if not kept:
            place.unlink(missing_ok=True)
        elif len(kept) < len(held):
            master.store(place, list[WrappingKey](kept))


def require_owner(file: Path) -> None:
    """Raise `ConfigurationError` when the file is another user's: what this one unseals, and writes, is not for
    the platform, which runs as that one."""
    try:
        owner = file.stat().st_uid
    except FileNotFoundError:
        return
    if owner != os.getuid():
        raise ConfigurationError(
            f"{file} belongs to the user {owner}, this is {os.getuid()}: call it as the platform's user, as by "
            f"sudo -u '#{owner}'",
            field="BRIDGE_MASTER_KEY_FILE",
            value=str(file),
        )


def is_sealed(file: Path) -> bool:
    """Whether a key of the file is sealed now; no for a file that is none."""
    with suppress(OSError, ConfigurationError):
        for key in _sealed_of(file):
            try:
                key.require_ready()
            except Sealed:
                return True
    return False


def parse(rest: str, file: Path) -> SealedKey | None:
    """What stands behind the prefix of a line; None where it is no sealed key."""
    try:
        key_id, kind, numbers, salt, box = rest.split(":")
        log2_n, r, p = map(int, numbers.split(","))
        parameters = (log2_n, r, p)
        # Whoever altered the file must not make this take all memory.
        if kind != "scrypt" or any(not 1 <= a <= b for a, b in zip(parameters, _LARGEST, strict=True)):
            return None
        key = SealedKey(
            key_id, parameters, b64decode(salt, validate=True), b64decode(box, validate=True), file.absolute()
        )
    except ValueError:
        return None
    return key if (len(key.salt), len(key.box)) == (16, 12 + 32 + 16) else None


def _sealed_of(file: Path) -> list[SealedKey]:
    return [key for key in master.load_all(file) if isinstance(key, SealedKey)]


def _derived(passphrase: str, salt: bytes, parameters: tuple[int, int, int]) -> bytes:
    log2_n, r, p = parameters
    return Scrypt(salt=salt, length=32, n=1 << log2_n, r=r, p=p).derive(passphrase.encode())


def _normal(passphrase: str) -> str:
    return unicodedata.normalize("NFKC", passphrase)


def _bound(key_id: str, parameters: tuple[int, int, int]) -> bytes:
    return f"{PREFIX}:{key_id}:scrypt:{','.join(map(str, parameters))}".encode()


def _text(data: bytes) -> str:
    return b64encode(data).decode()


def _places(file: Path, *, whatever_mode: bool = False) -> list[Path]:
    """Where the file's unsealed keys may stand; as `_directories`."""
    name = hashlib.sha256(os.fsencode(file.absolute())).hexdigest()[:16]
    return [directory / f"{name}.key" for directory in _directories(whatever_mode=whatever_mode)]


def _directories(*, whatever_mode: bool = False) -> list[Path]:
    """The directory that is configured; else those of this user in the memory that all users share. There anybody
    may take a name first, and nobody can make a directory that is this user's. `whatever_mode` gives those too
    whose mode was changed: a key may stand there that is not to be read, and is to be removed."""
    configured = get_settings().unsealed_dir
    if configured is not None:
        return [configured]
    name = _plain().name
    try:
        with os.scandir(SHARED) as entries:
            found = sorted(each.name for each in entries if each.name.startswith(name))
    except OSError:
        return []
    own = (SHARED / each for each in found if each == name or each.startswith(f"{name}-"))
    return [each for each in own if _is_own(each, whatever_mode=whatever_mode)]


def _new_directory() -> Path:
    plain = _plain()
    _require_memory(plain)
    with suppress(FileExistsError):
        plain.mkdir(mode=0o700)
    if _is_own(plain):
        return plain
    # Somebody else has taken the name; this one nobody can foresee.
    return Path(tempfile.mkdtemp(prefix=f"{plain.name}-", dir=SHARED))


def _plain() -> Path:
    return SHARED / f"continuitybridge-{os.getuid()}"


def _held(place: Path) -> list[master.MasterKey]:
    try:
        _require_own(place.parent)
        with os.fdopen(os.open(place, os.O_RDONLY | os.O_NOFOLLOW)) as held:
            keys = [master.parse_key(line.strip()) for line in held.read(10_000).splitlines()]
    except FileNotFoundError:
        return []
    return [key for key in keys if key is not None]


def _hold(file: Path, keys: Iterable[master.MasterKey]) -> None:
    configured = get_settings().unsealed_dir
    if configured is not None:
        _require_memory(configured)
        with suppress(FileExistsError):
            configured.mkdir(mode=0o700, parents=True)
        _require_own(configured)
    elif not _directories():
        _new_directory()
    place = _places(file)[0]
    all_keys = {key.key_id: key for key in (*_held(place), *keys)}
    master.store(place, list[WrappingKey](all_keys.values()))


def _require_own(directory: Path) -> None:
    directory.lstat()
    if not _is_own(directory):
        raise ConfigurationError(
            f"{directory} has to be a directory of mode 0700 of this user", field="BRIDGE_UNSEALED_DIR"
        )


def _is_own(directory: Path, *, whatever_mode: bool = False) -> bool:
    try:
        found = directory.lstat()
    except OSError:
        return False
    own = found.st_uid == os.getuid() and stat.S_ISDIR(found.st_mode)
    return own and (whatever_mode or not stat.S_IMODE(found.st_mode) & 0o077)


def _require_memory(directory: Path) -> None:
    absolute = directory.absolute()
    mounts = [each for each in psutil.disk_partitions(all=True) if absolute.is_relative_to(each.mountpoint)]
    # Of several over each other the last one is seen.
    kind = max(reversed(mounts), key=lambda each: len(each.mountpoint)).fstype if mounts else "unknown"
    if kind not in ("tmpfs", "ramfs"):
        raise ConfigurationError(
            f"{directory} is not in memory (its file system is {kind}); valid is a directory of a tmpfs",
            field="BRIDGE_UNSEALED_DIR",
            value=str(directory),
        )
