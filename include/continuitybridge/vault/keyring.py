"""Data keys: one per organization and version, used to encrypt its payloads and secrets.

`Keyring` stands where the master key is (api-server, dispatcher, command line). What runs organizations' messages
elsewhere gets `DataKeys`: the same verbs, the keys of the organizations it works for, and no master key.
"""

from __future__ import annotations

import json
import secrets
import time
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import psycopg

from continuitybridge import database
from continuitybridge.errors import BridgeError, ConfigurationError, NotFound, Unavailable, Verdict
from continuitybridge.settings import Settings, get_settings
from continuitybridge.vault import master, opening
from continuitybridge.vault.cipher import DataKey, associated_data, version_of
from continuitybridge.vault.wrapping import Place, WrappingKey

PLATFORM = UUID(int=0)
"""Stands for the organization in what is the platform's own, or a person's who belongs to several: it has data
keys like one, made on first use."""
ROTATION_LOCK = 4_201_917_017
"""Advisory lock of the database: shared by those who wrap data keys, held alone by who rotates the master key."""
PLATFORM_LOCK = 4_201_917_015
"""Advisory lock of the database: held by who makes the platform's first data key."""
REFRESH_S = 60.0
"""How long a process may go on encrypting under a data key that was rotated meanwhile, in seconds."""


class MasterKeyMissing(Unavailable):
    """The master key's file lacks the key that wrapped a data key. What starts then is refused
    (`rotation.require_master_key`); what runs waits until somebody puts it back, and loses no message by it."""

    code = "master-key-missing"
    title = "A master key is missing"


def is_for_now(error: BridgeError) -> bool:
    """Whether it was not even possible to see if a data key opens."""
    missing = isinstance(error, MasterKeyMissing)
    return isinstance(error, Unavailable) and error.verdict is Verdict.TRANSIENT and not missing


class Cipher(Protocol):
    """What encrypts and decrypts for organizations. `purpose` and `id` name the place the ciphertext is for."""

    def encrypt(self, organization_id: UUID, purpose: str, id: str, plaintext: bytes) -> bytes:
        """AES-256-GCM under the organization's current data key. Raises `NotFound` when it has none here."""

    def decrypt(self, organization_id: UUID, purpose: str, id: str, ciphertext: bytes) -> bytes:
        """Raises `DecryptionFailed` for altered or moved data, `NotFound` when the key is not held."""

    def fingerprint(self, organization_id: UUID, data: bytes) -> bytes:
        """Keyed hash (36 bytes) under the current key, to be compared by `matches`."""

    def former_fingerprints(self, organization_id: UUID, data: bytes) -> list[bytes]:
        """What the fingerprint was under each earlier key version that is held, the newest first."""

    def matches(self, organization_id: UUID, data: bytes, fingerprint: bytes) -> bool:
        """Whether these data had that fingerprint, whatever key version it was made with."""


class Ring:
    """The verbs of `Cipher` over whatever `_key` finds."""

    def _key(self, organization_id: UUID, version: int | None) -> DataKey:
        raise NotImplementedError

    def _held(self, organization_id: UUID) -> DataKeys:
        raise NotImplementedError

    def encrypt(self, organization_id: UUID, purpose: str, id: str, plaintext: bytes) -> bytes:
        key = self._key(organization_id, None)
        return key.encrypt(plaintext, associated_data(organization_id, purpose, id))

    def decrypt(self, organization_id: UUID, purpose: str, id: str, ciphertext: bytes) -> bytes:
        key = self._key(organization_id, version_of(ciphertext))
        return key.decrypt(ciphertext, associated_data(organization_id, purpose, id))

    def fingerprint(self, organization_id: UUID, data: bytes) -> bytes:
        return self._key(organization_id, None).fingerprint(data)

    def former_fingerprints(self, organization_id: UUID, data: bytes) -> list[bytes]:
        return [key.fingerprint(data) for key in self._held(organization_id).former(organization_id)]

    def matches(self, organization_id: UUID, data: bytes, fingerprint: bytes) -> bool:
        key = self._key(organization_id, int.from_bytes(fingerprint[:4], "big"))
        return secrets.compare_digest(key.fingerprint(data), fingerprint)


class DataKeys(Ring):
    """Data keys of some organizations, for a process that must not hold the master key. Never log or store
    `to_json`: it is the keys."""

    def __init__(self, keys: Mapping[UUID, Iterable[DataKey]]) -> None:
        self._keys = {
            organization_id: {key.version: key for key in sorted(versions, key=lambda key: key.version)}
            for organization_id, versions in keys.items()
        }

    def __repr__(self) -> str:
        return f"DataKeys(organizations={len(self._keys)})"

    def to_json(self) -> str:
        """For handing the keys to a child process over a pipe."""
        return json.dumps(
            {
                str(organization_id): {
                    str(version): b64encode(key.key).decode() for version, key in versions.items()
                }
                for organization_id, versions in self._keys.items()
            }
        )

    @classmethod
    def from_json(cls, text: str) -> DataKeys:
        """What `to_json` wrote."""
        return cls(
            {
                UUID(organization_id): [DataKey(int(version), b64decode(key)) for version, key in versions.items()]
                for organization_id, versions in json.loads(text).items()
            }
        )

    def former(self, organization_id: UUID) -> list[DataKey]:
        """The organization's keys but for the current one, the newest first."""
        return list(reversed(self._keys.get(organization_id, {}).values()))[1:]

    def without(self, organization_id: UUID, version: int) -> DataKeys:
        """The same keys but for one version of an organization's."""
        kept = {each: list(versions.values()) for each, versions in self._keys.items()}
        kept[organization_id] = [key for key in kept[organization_id] if key.version != version]
        return DataKeys(kept)

    def _key(self, organization_id: UUID, version: int | None) -> DataKey:
        versions = self._keys.get(organization_id)
        if not versions:
            raise NotFound("no data key of this organization is held here")
        if version is None:
            return versions[next(reversed(versions))]
        if version not in versions:
            raise NotFound(f"version {version} of the organization's data key is not held here")
        return versions[version]

    def _held(self, organization_id: UUID) -> DataKeys:
        return self


class Keyring(Ring):
    """All organizations' data keys, read as the platform role and unwrapped by the master key when first used.

    A data key that was wrapped by another master key raises `MasterKeyMissing` naming both keys' ids. A master
    key that is kept elsewhere is asked for each wrapped key once: while it does not answer, or refuses, what is
    held goes on, and the rest raises `Unavailable`.
    """

    def __init__(self, master_key: WrappingKey, file: Path | None = None) -> None:
        self._master = master_key
        self._file = file
        """Where the master key came from, and where those are that follow it."""
        self._loaded: dict[UUID, tuple[float, DataKeys]] = {}
        self._unwrapped: dict[UUID, dict[int, tuple[bytes, DataKey]]] = {}
        """By version, with what was unwrapped."""

    @classmethod
    def open(cls, settings: Settings | None = None) -> Keyring:
        """The process's keyring for the configured master key file, which is made on first use."""
        settings = settings or get_settings()
        master_key = master.open_or_create(settings)
        return _opened.setdefault(master_key.key_id, cls(master_key, settings.master_key_path))

    @property
    def master_key_id(self) -> str:
        return self._master.key_id

    def __repr__(self) -> str:
        return f"Keyring(master_key_id={self._master.key_id!r})"

    def create_key(self, connection: psycopg.Connection[Any], organization_id: UUID) -> int:
        """Give the organization a new current data key, in the caller's transaction (platform role); returns
        its version. Older versions go on decrypting what they encrypted. Raises `ConfigurationError` when none of
        the data keys that there are was wrapped by a master key that is held here: nobody would keep this one."""
        # Who rotates the master key waits for this transaction, and this one for him.
        connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", (ROTATION_LOCK,))
        held = [self._master] if self._file is None else self._in_file(self._file)
        self._master = held[0]
        self._require_in_use(connection, [key.key_id for key in held])
        version: int
        [(version,)] = connection.execute(
            "SELECT coalesce(max(key_version), 0) + 1 FROM bridge.data_keys WHERE organization_id = %s",
            (organization_id,),
        )
        wrapped = self._master.wrap(Place(organization_id, version), secrets.token_bytes(32))
        connection.execute(
            "INSERT INTO bridge.data_keys (organization_id, key_version, wrapped_key, master_key_id)"
            " VALUES (%s, %s, %s, %s)",
            (organization_id, version, wrapped, self._master.key_id),
        )
        return version

    def require_current(self, connection: psycopg.Connection[Any]) -> None:
        """Raise `Unavailable` when another rotation put its key before this one's in the file; until the caller's
        transaction (platform role) ends, none does."""
        connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", (ROTATION_LOCK,))
        if self._file is not None and self._in_file(self._file)[0].key_id != self._master.key_id:
            raise Unavailable(f"another rotation goes on, {self._master.key_id} is no more the current master key")

    def _require_in_use(self, connection: psycopg.Connection[Any], key_ids: list[str]) -> None:
        named = {row[0] for row in connection.execute("SELECT DISTINCT master_key_id FROM bridge.data_keys")}
        if named and named.isdisjoint(key_ids):
            raise ConfigurationError(
                f"every data key was wrapped by master key {', '.join(sorted(named))}, {self._file or 'here'} "
                f"holds {', '.join(key_ids)}: put the right file there, or set BRIDGE_MASTER_KEY_FILE",
                field="BRIDGE_MASTER_KEY_FILE",
                value=", ".join(key_ids),
            )

    def rewrap(self, connection: psycopg.Connection[Any], organization_id: UUID, version: int) -> bool:
        """Wrap one of the organization's data keys by the current master key, in the caller's transaction
        (platform role); returns whether it opened, so that this could be done. Raises what the current master key
        raises, and `Unavailable` when the former one cannot be asked now."""
        [(wrapped, key_id)] = connection.execute(
            "SELECT wrapped_key, master_key_id FROM bridge.data_keys"
            " WHERE organization_id = %s AND key_version = %s FOR UPDATE",
            (organization_id, version),
        )
        try:
            key = self.unwrap(organization_id, version, wrapped, key_id)
        except BridgeError as error:
            if is_for_now(error):
                raise
            return False
        connection.execute(
            "UPDATE bridge.data_keys SET wrapped_key = %s, master_key_id = %s"
            " WHERE organization_id = %s AND key_version = %s",
            (
                self._master.wrap(Place(organization_id, version), key.key),
                *(self._master.key_id, organization_id, version),
            ),
        )
        return True

    def holds(self, organization_id: UUID) -> bool:
        """Whether the organization's keys are in memory and fresh, so that no verb needs the database."""
        loaded = self._loaded.get(organization_id)
        return loaded is not None and time.monotonic() - loaded[0] < REFRESH_S

    async def ready(self, organization_id: UUID) -> None:
        """Have the organization's keys in memory and fresh, for a coroutine that uses them then. Of any number
        that wait one thread asks; where a key service did not answer a moment ago, no other waits for that. Raises
        as `export`."""
        if not self.holds(organization_id):
            what = self, organization_id
            if organization_id not in self._unwrapped and opening.is_under_way(what):
                self._master.require_answering()
            await opening.once(what, lambda: self._load(organization_id))

    def export(self, *organization_ids: UUID) -> DataKeys:
        """The data keys of these organizations, for a process without the master key. Raises `NotFound`."""
        return DataKeys({each: self._load(each)._keys[each].values() for each in organization_ids})

    def forget(self, organization_id: UUID | None = None) -> None:
        """Drop keys from memory (all, or one organization's); the next use reads them again."""
        if organization_id is None:
            self._loaded.clear()
            self._unwrapped.clear()
        else:
            self._loaded.pop(organization_id, None)
            self._unwrapped.pop(organization_id, None)

    def _key(self, organization_id: UUID, version: int | None) -> DataKey:
        keys = self._held(organization_id)
        try:
            return keys._key(organization_id, version)
        except NotFound:
            # Rotated a moment ago by another process.
            return self._load(organization_id)._key(organization_id, version)

    def _held(self, organization_id: UUID) -> DataKeys:
        if not self.holds(organization_id):
            self._load(organization_id)
        return self._loaded[organization_id][1]

    def read(self, connection: psycopg.Connection[Any], organization_id: UUID) -> DataKeys:
        """The organization's keys as the caller's transaction (platform role) sees them, those too that it made.
        Raises `NotFound`."""
        return self._opened_rows(organization_id, self._rows(connection, organization_id))

    def _rows(self, connection: psycopg.Connection[Any], organization_id: UUID) -> list[tuple[int, bytes, str]]:
        rows = connection.execute(
            "SELECT key_version, wrapped_key, master_key_id FROM bridge.data_keys"
            " WHERE organization_id = %s ORDER BY key_version",
            (organization_id,),
        ).fetchall()
        if not rows:
            raise NotFound(f"organization {organization_id} has no data key")
        return rows

    def _opened_rows(self, organization_id: UUID, rows: Iterable[tuple[int, bytes, str]]) -> DataKeys:
        known = self._unwrapped.get(organization_id, {})
        found: dict[int, tuple[bytes, DataKey]] = {}
        for version, wrapped, key_id in rows:
            if version in known and known[version][0] == wrapped:
                self._master_of(key_id).require_ready()
                found[version] = known[version]
            else:
                found[version] = (wrapped, self.unwrap(organization_id, version, wrapped, key_id))
        self._unwrapped[organization_id] = found
        return DataKeys({organization_id: [key for _, key in found.values()]})

    def _load(self, organization_id: UUID) -> DataKeys:
        # Its caller may hold a connection, and many callers all of them.
        with database.keys() as connection:
            if organization_id == PLATFORM:
                self._make_platform_key(connection)
            rows = self._rows(connection, organization_id)
        # A master key that is kept elsewhere may take its time: no connection waits for it.
        keys = self._opened_rows(organization_id, rows)
        self._loaded[organization_id] = (time.monotonic(), keys)
        return keys

    def _make_platform_key(self, connection: psycopg.Connection[Any]) -> None:
        there = "SELECT FROM bridge.data_keys WHERE organization_id = %s LIMIT 1"
        if connection.execute(there, (PLATFORM,)).fetchone() is None:
            # Whoever else makes it is waited for.
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (PLATFORM_LOCK,))
            if connection.execute(there, (PLATFORM,)).fetchone() is None:
                self.create_key(connection, PLATFORM)

    def unwrap(self, organization_id: UUID, version: int, wrapped: bytes, master_key_id: str) -> DataKey:
        """A data key as its row holds it. Raises `MasterKeyMissing` when the master key that wrapped it is
        missing, `DecryptionFailed` when it was altered, `Unavailable` when the master key cannot be asked."""
        key = self._master_of(master_key_id).unwrap(Place(organization_id, version), wrapped)
        return DataKey(version, key)

    @staticmethod
    def _in_file(file: Path) -> list[WrappingKey]:
        """The keys of the file, the current one first."""
        try:
            return master.load_all(file)
        except FileNotFoundError:
            raise ConfigurationError(
                f"the master key {file} is gone: put it back", field="BRIDGE_MASTER_KEY_FILE", value=str(file)
            ) from None

    def _master_of(self, key_id: str) -> WrappingKey:
        if key_id == self._master.key_id:
            return self._master
        # It was rotated after this process began, or is being rotated.
        others = master.load_all(self._file) if self._file is not None and self._file.exists() else []
        found = next((each for each in others if each.key_id == key_id), None)
        if found is None:
            raise MasterKeyMissing(
                f"the data keys were wrapped by master key {key_id}, the configured one is "
                f"{self._master.key_id}: set BRIDGE_MASTER_KEY_FILE to the file of the former",
                retry_after_s=30,
                key=key_id,
            )
        return found


_opened: dict[str, Keyring] = {}
