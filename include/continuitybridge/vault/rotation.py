"""Rotating keys while everything runs.

The master key: a new one is put before the old one in the file, every data key is wrapped anew by it, and the old
one leaves the file. Killed at any moment, it goes on where it was when it is called again; until then both keys
are there and everything opens. A process that began with the old key finds the new one in the file then. The new
key may be of another kind than the old one: moving to a key management service, or away from it, is a rotation.

A data key: the organization gets a new version. Everybody encrypts under it within `keyring.REFRESH_S`; what was
encrypted before opens under the version that it names.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg

from continuitybridge import database
from continuitybridge.audit import record
from continuitybridge.database.connections import role_url
from continuitybridge.errors import BridgeError, ConfigurationError, Unavailable
from continuitybridge.settings import Settings, get_settings
from continuitybridge.vault import kms, master, sealing
from continuitybridge.vault.cipher import DecryptionFailed
from continuitybridge.vault.keyring import PLATFORM, ROTATION_LOCK, Keyring, is_for_now
from continuitybridge.vault.wrapping import Place, WrappingKey

log = logging.getLogger(__name__)

_AT_ONCE = 8
ALONE_LOCK = 4_201_917_018
"""Advisory lock of the database: held by who rotates the master key, from beginning to end."""


@dataclass(frozen=True, slots=True)
class KeyState:
    """A version of an organization's data key. `problem` says why it does not open; None when it does."""

    organization: str
    version: int
    master_key_id: str
    problem: str | None


@dataclass(frozen=True, slots=True)
class MasterRotated:
    """`former` are the keys that left the file: keep a copy of them as long as backups made under them. `broken`
    are the data keys that do not open and were left as they are; the keys that they name stay in the file, and
    `remaining` are all that stay behind the new one. `rewrapped` counts organizations of which a key was."""

    key_id: str
    former: tuple[str, ...]
    remaining: tuple[str, ...]
    rewrapped: int
    broken: tuple[KeyState, ...]


def rotate_master_key(settings: Settings | None = None, *, to: WrappingKey | None = None) -> MasterRotated:
    """Wrap every data key by a new master key, or go on with a rotation that was interrupted. When this returns,
    nothing that opens needs the former key any more but backups.

    The new key is `to`. Without it, one that the file held is followed by another of its own, and a service's key
    stays: the service is asked to wrap everything anew, by the newest version that it has of it.

    One at a time, whoever else calls it waits. Raises `ConfigurationError`, and changes nothing, where no data key
    opens (then the file is not the one that it should be), where a passphrase is needed, or where the new key's
    service does not keep data keys apart; `Unavailable` when a master key cannot be asked, or the database ended
    the session that keeps others away: then call it again.
    """
    settings = settings or get_settings()
    file = settings.master_key_path
    sealing.require_owner(file)
    with _alone() as alone:
        _require_some(Keyring(master.open_or_create(settings), file))
        keys = master.load_all(file)
        again = False
        if to is not None or len(keys) == 1:
            to = to or _successor(keys[0])
            _require_use(to)
            again = len(keys) == 1 and to.key_id == keys[0].key_id
            if to.key_id != keys[0].key_id:
                with _no_key_being_made():
                    _require_alone(alone)
                    # Those behind it that nothing needs, an interrupted rotation's too, leave with the others.
                    keys = [to, *(key for key in master.load_all(file) if key.key_id != to.key_id)]
                    master.store(file, keys)
        else:
            _require_use(keys[0])
        keyring = Keyring(keys[0], file)
        rewrapped = _rewrap_all(keyring, every=again)
        kept = _drop_unneeded(file, keys, alone)
        broken = tuple(each for each in _states(keyring) if each.problem is not None)
    former = tuple(key.key_id for key in keys if key.key_id not in kept)
    remaining = tuple(key_id for key_id in kept if key_id != keys[0].key_id)
    return MasterRotated(keys[0].key_id, former, remaining, rewrapped, broken)


def _successor(key: WrappingKey) -> WrappingKey:
    if isinstance(key, sealing.SealedKey):
        raise ConfigurationError(
            "a sealed master key is followed by one with a passphrase: --to passphrase", field="to"
        )
    return key if isinstance(key, kms.KmsKey) else master.MasterKey.new()


def _require_use(key: WrappingKey) -> None:
    """Raise what is wrong with a key before anything depends on it."""
    place, probe = Place(PLATFORM, 0), secrets.token_bytes(32)
    wrapped = key.wrap(place, probe)
    if key.unwrap(place, wrapped) != probe:
        raise ConfigurationError(f"{key.key_id} does not give back what it wrapped", field="to", value=key.key_id)
    for other in (Place(PLATFORM, 1), Place(uuid4(), 0)):
        try:
            key.unwrap(other, wrapped)
        except (DecryptionFailed, kms.KeyServiceRefused):
            continue
        raise ConfigurationError(
            f"{key.key_id} opens a data key in another's place: its service has to bind what it wraps to the "
            "context that it is given",
            field="to",
            value=key.key_id,
        )


def _drop_unneeded(file: Path, keys: Sequence[WrappingKey], alone: psycopg.Connection[Any]) -> list[str]:
    """Take the former ones of `keys` out of the file that nothing names; returns which ids it holds then."""
    former = {key.key_id for key in keys[1:]}
    with _no_key_being_made() as connection:
        _require_alone(alone)
        named = {row[0] for row in connection.execute("SELECT DISTINCT master_key_id FROM bridge.data_keys")}
        # What stands there now: what this rotation knows nothing of is not its to remove.
        kept = [key for key in master.load_all(file) if key.key_id not in former or key.key_id in named]
        master.store(file, kept)
    sealing.keep_only(file, kept)
    return [key.key_id for key in kept]


@contextmanager
def _alone() -> Iterator[psycopg.Connection[Any]]:
    """No other rotation of the master key goes on, on whatever machine, as long as the connection's session lives:
    see `_require_alone`."""
    try:
        connection = psycopg.connect(role_url("platform"), autocommit=True, application_name="bridge-rotation")
    except psycopg.OperationalError as error:
        raise Unavailable("the database does not answer", sqlstate=error.sqlstate) from error
    with closing(connection):
        try:
            # Rotations wait for each other as long as it takes.
            connection.execute("SET lock_timeout = 0")
            connection.execute("SELECT pg_advisory_lock(%s)", (ALONE_LOCK,))
        except psycopg.OperationalError as error:
            raise Unavailable("the database ended the session", sqlstate=error.sqlstate) from error
        yield connection


def _require_alone(alone: psycopg.Connection[Any]) -> None:
    """The lock ends with its session, when the database is started again for one; another rotation may have begun
    then."""
    try:
        held = alone.execute(
            "SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()"
            " AND objid::bigint = %s",
            (ALONE_LOCK,),
        ).fetchone()
    except psycopg.OperationalError:
        held = None
    if held is None:
        raise Unavailable("the database ended the session that kept other rotations away: call it again")


@contextmanager
def _no_key_being_made() -> Iterator[psycopg.Connection[Any]]:
    """Who makes a data key has read the file and committed, or reads it afterwards."""
    with database.platform() as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (ROTATION_LOCK,))
        yield connection


def rotate_data_key(organization_id: UUID, *, by: str) -> int:
    """Give the organization, or the platform itself (`PLATFORM`), a new version of its data key; returns it."""
    keyring = Keyring.open()
    with database.platform() as connection:
        version = keyring.create_key(connection, organization_id)
        tell(connection, organization_id, "data_key.rotated", version, {"version": version}, by, keyring)
    keyring.forget(organization_id)
    return version


def tell(
    connection: psycopg.Connection[Any],
    organization_id: UUID,
    action: str,
    version: int,
    details: Mapping[str, Any],
    by: str,
    keyring: Keyring,
) -> None:
    """Write into the organization's trail, in the caller's transaction (platform role), what was done to its data
    key; the platform, which has no trail, tells its log."""
    if organization_id == PLATFORM:
        log.warning("%s of the platform's own data key, version %d, by %s: %s", action, version, by, details)
        return
    keys = keyring.read(connection, organization_id)
    record(connection, organization_id, action, str(version), details=details, by=by, keys=keys)


def check() -> list[KeyState]:
    """Every data key, and whether it opens under the master key's file. Raises `Unavailable` when a master key
    cannot be asked."""
    return _states(Keyring.open())


def _states(keyring: Keyring) -> list[KeyState]:
    with database.platform() as connection:
        rows = connection.execute(
            "SELECT coalesce(o.slug, '(platform)'), k.organization_id, k.key_version, k.wrapped_key,"
            " k.master_key_id FROM bridge.data_keys k LEFT JOIN bridge.organizations o USING (organization_id)"
            " ORDER BY o.slug NULLS FIRST, k.key_version"
        ).fetchall()

    def state(row: tuple[Any, ...]) -> KeyState:
        slug, organization_id, version, wrapped, key_id = row
        problem = None
        try:
            keyring.unwrap(organization_id, version, wrapped, key_id)
        except BridgeError as error:
            if is_for_now(error):
                raise
            problem = error.detail
        return KeyState(slug, version, key_id, problem)

    # One of each master key first: a service that failed a moment ago is asked by one at a time.
    for row in {row[4]: row for row in rows}.values():
        state(row)
    # A service is asked for each of them.
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(state, rows))


def _require_some(keyring: Keyring) -> None:
    states = _states(keyring)
    if states and all(each.problem is not None for each in states):
        raise ConfigurationError(f"no data key opens: {states[0].problem}", field="BRIDGE_MASTER_KEY_FILE")


def require_keys() -> None:
    """Raise `ConfigurationError`, naming the key that is needed, when a data key does not open: nothing should
    start that would take messages under keys that nobody has. Raises `Unavailable` when the master key cannot be
    asked now, or is sealed: then nothing can be said."""
    require_master_key()
    broken = [each for each in check() if each.problem is not None]
    if broken:
        first = broken[0]
        raise ConfigurationError(
            f"{len(broken)} data keys do not open, the first is version {first.version} of {first.organization}: "
            f"{first.problem}",
            field="BRIDGE_MASTER_KEY_FILE",
        )


def require_master_key(settings: Settings | None = None) -> None:
    """Raise `ConfigurationError`, naming the ids of the keys that are needed, when the master key's file lacks one
    that wraps a data key, or is missing though there are data keys (it is not made then), and when a service
    refuses a key. What serves and works asks this when it starts. Raises `Unavailable` when the database or a
    service does not answer, or a key is sealed."""
    settings = settings or get_settings()
    file = settings.master_key_path
    with database.platform() as connection:
        rows = connection.execute(
            "SELECT DISTINCT ON (master_key_id) master_key_id, organization_id, key_version, wrapped_key"
            " FROM bridge.data_keys ORDER BY master_key_id, organization_id, key_version"
        ).fetchall()
    try:
        held = {key.key_id: key for key in master.load_all(file)}
    except FileNotFoundError:
        held = {}
    if missing := [row[0] for row in rows if row[0] not in held]:
        raise ConfigurationError(
            f"the data keys were wrapped by master key {', '.join(missing)}; {file} holds "
            f"{', '.join(held) or 'none'}: put the right file there, or set BRIDGE_MASTER_KEY_FILE",
            field="BRIDGE_MASTER_KEY_FILE",
            value=", ".join(held),
        )
    for key_id, organization_id, version, wrapped in rows:
        key = held[key_id]
        key.require_ready()
        if isinstance(key, kms.KmsKey):
            _try(key, Place(organization_id, version), wrapped)
    current = next(iter(held), None)
    if settings.master_key_kms and current and current != settings.master_key_kms:
        log.warning(
            "the master key is %s, BRIDGE_MASTER_KEY_KMS says %s: bridge vault rotate-master-key --to %s",
            *(current, settings.master_key_kms, settings.master_key_kms),
        )


def _try(key: kms.KmsKey, place: Place, wrapped: bytes) -> None:
    try:
        key.unwrap(place, wrapped)
    except kms.KeyServiceRefused as error:
        raise ConfigurationError(error.detail, field="BRIDGE_MASTER_KEY_FILE", value=key.reference) from error


def check_master_key() -> None:
    """`require_master_key` for what serves: while the database or a key management service does not answer, or the
    platform is sealed, nothing can be checked, nor done, and each data key is checked when it is first used."""
    try:
        require_master_key()
    except Unavailable as error:
        log.warning("the master key could not be checked: %s", error.detail)


def _rewrap_all(keyring: Keyring, *, every: bool) -> int:
    """Wrap the keys anew that the current master key did not wrap, or `every` one; those that do not open are
    left. Returns of how many organizations one was. Raises what the current master key raises, and `Unavailable`:
    what was done is done."""
    rewrapped, after = 0, None
    while (done := _rewrap_next(keyring, after, every)) is not None:
        after, some = done
        rewrapped += some
    return rewrapped


def _rewrap_next(keyring: Keyring, after: UUID | None, every: bool) -> tuple[UUID, bool] | None:
    """One organization's keys; returns which, and whether one was wrapped anew, None when none is left behind
    `after`. Who makes a key meanwhile wraps it by the current master key, so that each is met once."""
    key_id = keyring.master_key_id
    with database.platform() as connection:
        keyring.require_current(connection)
        row = connection.execute(
            "SELECT organization_id, array_agg(key_version ORDER BY key_version) FROM bridge.data_keys"
            " WHERE (%(every)s OR master_key_id <> %(key)s)"
            " AND (%(after)s::uuid IS NULL OR organization_id > %(after)s)"
            " GROUP BY organization_id ORDER BY organization_id LIMIT 1",
            {"every": every, "key": key_id, "after": after},
        ).fetchone()
        if row is None:
            return None
        organization_id: UUID
        organization_id, versions = row
        # Which did not open before either, `_states` names.
        done = [keyring.rewrap(connection, organization_id, version) for version in versions]
        if organization_id == PLATFORM or not any(done):
            # It has no trail, or there is nothing to tell.
            return organization_id, any(done)
        try:
            with connection.transaction():
                keys = keyring.read(connection, organization_id)
                record(connection, organization_id, "master_key.rotated", key_id, keys=keys)
        except (BridgeError, psycopg.IntegrityError) as error:
            # Nothing to write it with, or a trail that somebody has put events into: that is for `bridge audit`.
            log.warning("the audit trail of %s does not tell of the rotation: %s", organization_id, error)
    return organization_id, True
