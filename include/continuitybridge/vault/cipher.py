"""The ciphertext format: AES-256-GCM under a key derived from an organization's data key.

    01 | key version (4, big endian) | salt (16) | nonce (12) | ciphertext and tag

GCM with random nonces is safe for some 2^32 encryptions under one key, which a busy organization would use up
within days. So each process encrypts under subkeys of its own, HKDF-SHA256(data key, salt), and takes a new salt
every 2^24 encryptions and after a fork. Associated data binds header, organization, purpose and id: a ciphertext
moved to another row, column or organization does not open.
"""

from __future__ import annotations

import hmac
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from continuitybridge.errors import BridgeError

_FORMAT = b"\x01"
_HEADER = 1 + 4 + 16
_NONCE = 12
_TAG = 16
_USES_PER_SALT = 1 << 24


class DecryptionFailed(BridgeError):
    """The ciphertext was altered, stands in another place than it was made for, or its key is another."""

    code = "decryption-failed"
    title = "Stored data could not be decrypted"


_forks = 0
"""How often this process is a fork of one that had subkeys: which are not used again in the child."""


def _forked() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_forked)


@dataclass(slots=True)
class _Subkey:
    forks: int
    header: bytes
    cipher: AESGCM
    uses: Iterator[int] = field(default_factory=itertools.count)


class DataKey:
    """One version of an organization's data key."""

    __slots__ = ("_fingerprints", "_subkey", "key", "version")

    def __init__(self, version: int, key: bytes) -> None:
        self.version = version
        self.key = key
        self._subkey: _Subkey | None = None
        self._fingerprints: bytes | None = None

    def __repr__(self) -> str:
        return f"DataKey(version={self.version})"

    def encrypt(self, plaintext: bytes, associated: bytes) -> bytes:
        """Ciphertext in the format above; 49 bytes longer than the plaintext."""
        # No lock: it could be held by a thread that a fork leaves behind. Two threads that both find the subkey
        # used up each take a new one, and one of these is used once.
        subkey = self._subkey
        if subkey is None or subkey.forks != _forks or next(subkey.uses) >= _USES_PER_SALT:
            salt = os.urandom(16)
            header = _FORMAT + self.version.to_bytes(4, "big") + salt
            subkey = self._subkey = _Subkey(_forks, header, AESGCM(_derive(self.key, salt)))
        header = subkey.header
        nonce = os.urandom(_NONCE)
        return header + nonce + subkey.cipher.encrypt(nonce, plaintext, header + associated)

    def decrypt(self, ciphertext: bytes, associated: bytes) -> bytes:
        """The plaintext; raises `DecryptionFailed`."""
        header, nonce = ciphertext[:_HEADER], ciphertext[_HEADER : _HEADER + _NONCE]
        try:
            return _opener(self.key, header[5:]).decrypt(
                nonce, ciphertext[_HEADER + _NONCE :], header + associated
            )
        except InvalidTag:
            raise DecryptionFailed("the data were altered or moved, or their key is another") from None

    def fingerprint(self, data: bytes) -> bytes:
        """A keyed hash (HMAC-SHA256 behind the key's version, 36 bytes) that tells equal data from other data
        and nothing else about them."""
        if self._fingerprints is None:
            self._fingerprints = _derive(self.key, b"continuitybridge fingerprint")
        return self.version.to_bytes(4, "big") + hmac.digest(self._fingerprints, data, "sha256")


def version_of(ciphertext: bytes) -> int:
    """The key version that a ciphertext names; raises `DecryptionFailed` when it is none of ours."""
    if len(ciphertext) < _HEADER + _NONCE + _TAG or ciphertext[:1] != _FORMAT:
        raise DecryptionFailed("the data are not in a known encrypted format")
    return int.from_bytes(ciphertext[1:5], "big")


def associated_data(organization_id: UUID, purpose: str, id: str) -> bytes:
    """What binds a ciphertext to its place; lengths keep ("ab", "c") and ("a", "bc") apart."""
    name = id.encode()
    return _place(organization_id, purpose) + len(name).to_bytes(4, "big") + name


@lru_cache(maxsize=4096)
def _place(organization_id: UUID, purpose: str) -> bytes:
    parts = (organization_id.bytes, purpose.encode())
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


@lru_cache(maxsize=4096)
def _opener(key: bytes, salt: bytes) -> AESGCM:
    return AESGCM(_derive(key, salt))


@lru_cache(maxsize=1024)
def _derive(key: bytes, salt: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=b"continuitybridge aes-256-gcm 1").derive(key)
