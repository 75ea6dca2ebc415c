"""The key that signs checkpoints, and the public keys of all that ever did.

The private key is `keys/audit-signing.key` (Ed25519, PEM, 0600). The public key of every key that was made stays
beside it (`audit-signing.<key id>.pub`), so that what a former key signed is believed on. A key that is gone is
never replaced by itself: whoever took it away would get a ledger that begins anew and says nothing.

Beside it stands too which line was written last to a file (`audit-last.<hash of its path>`): whoever cuts off the
file's end, or takes it away, would have to come where the key is.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from continuitybridge.errors import ConfigurationError
from continuitybridge.settings import Settings

KEY_FILE = "audit-signing.key"
_PUBLIC = "audit-signing.{}.pub"
_LAST = "audit-last.{}"


def key_id(public: Ed25519PublicKey) -> str:
    """16 hexadecimal digits that name a key."""
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def current(settings: Settings) -> Ed25519PrivateKey:
    """The key that signs, made when there has been none. Raises `ConfigurationError` when there was one."""
    file = settings.keys_dir / KEY_FILE
    if not file.exists():
        if is_missing(settings):
            raise ConfigurationError(
                f"{file} is gone, which signed the checkpoints of audit trails: put it back from a backup, or"
                " have new ones signed by another: bridge audit new-signing-key",
                field=KEY_FILE,
            )
        _write(file, Ed25519PrivateKey.generate())
    return _read(file)


def is_missing(settings: Settings) -> bool:
    """Whether a key has signed here and is not there any more."""
    return not (settings.keys_dir / KEY_FILE).exists() and bool(_known(settings))


def known(settings: Settings) -> dict[str, Ed25519PublicKey]:
    """Every key that has signed here, by its id."""
    found = _known(settings)
    if (settings.keys_dir / KEY_FILE).exists():
        public = _read(settings.keys_dir / KEY_FILE).public_key()
        found[key_id(public)] = public
    return found


def replace(settings: Settings) -> str:
    """Make a new key, in place of one or of none; the former's public key stays. Gives the new key's id."""
    file = settings.keys_dir / KEY_FILE
    if file.exists():
        _read(file)
        file.unlink()
    key = Ed25519PrivateKey.generate()
    _write(file, key)
    _read(file)
    return key_id(key.public_key())


def remember(settings: Settings, ledger: Path, last: str) -> None:
    """The hash of the line that was written last to a file of checkpoints, on disk when this returns."""
    file = _last_of(settings, ledger)
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
        opened.write(f"{last}\n")
        opened.flush()
        os.fsync(opened.fileno())
    fresh.replace(file)


def remembered(settings: Settings, ledger: Path) -> str | None:
    """What `remember` kept; None when nothing was written to that file since this is kept."""
    try:
        return _last_of(settings, ledger).read_text().strip() or None
    except FileNotFoundError:
        return None


def _last_of(settings: Settings, ledger: Path) -> Path:
    return settings.keys_dir / _LAST.format(hashlib.sha256(str(ledger.absolute()).encode()).hexdigest()[:16])


def _known(settings: Settings) -> dict[str, Ed25519PublicKey]:
    found = {}
    for file in settings.keys_dir.glob(_PUBLIC.format("*")):
        public = serialization.load_pem_public_key(file.read_bytes())
        if isinstance(public, Ed25519PublicKey):
            found[key_id(public)] = public
    return found


def _read(file: Path) -> Ed25519PrivateKey:
    key = serialization.load_pem_private_key(file.read_bytes(), None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{file} holds no Ed25519 key", field=KEY_FILE)
    beside = file.with_name(_PUBLIC.format(key_id(key.public_key())))
    if not beside.exists():
        text = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        _appear(beside, text)
    return key


def _write(file: Path, key: Ed25519PrivateKey) -> None:
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _appear(file, text)


def _appear(file: Path, content: bytes) -> None:
    """The file with all of its content, on disk; of several processes that come at once, one makes it."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    try:
        os.link(fresh, file)
    except FileExistsError:
        pass
    finally:
        fresh.unlink()
