"""What the vault says of itself to the letter: the ciphertext's format, the master key's file, how long a key is
kept in memory, and what a rotation counts and tells."""

from __future__ import annotations

import itertools
import os
import stat
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from continuitybridge import database
from continuitybridge.audit import reading
from continuitybridge.errors import ConfigurationError, NotFound
from continuitybridge.organizations import Organization
from continuitybridge.settings import Settings
from continuitybridge.vault import PLATFORM, Keyring, cipher, keyring, load_or_create, master, rotation


def read_by_the_description(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """As the module's text says, without its code."""
    header, nonce, rest = sealed[:21], sealed[21:33], sealed[33:]
    subkey = HKDF(SHA256(), 32, salt=header[5:], info=b"continuitybridge aes-256-gcm 1").derive(key)
    return AESGCM(subkey).decrypt(nonce, rest, header + associated)


@pytest.mark.parametrize("version", [1, 0x01020304])
def test_a_ciphertext_has_the_format_that_is_written_down(version: int) -> None:
    key = cipher.DataKey(version, os.urandom(32))
    sealed = key.encrypt(b"order 7", b"place")
    assert sealed[:5] == b"\x01" + version.to_bytes(4, "big")
    assert cipher.version_of(sealed) == version
    assert read_by_the_description(key.key, sealed, b"place") == b"order 7"
    assert key.fingerprint(b"order 7")[:4] == sealed[1:5]


def test_nothing_at_all_is_encrypted_too() -> None:
    key = cipher.DataKey(1, os.urandom(32))
    sealed = key.encrypt(b"", b"place")
    assert cipher.version_of(sealed) == 1
    assert key.decrypt(sealed, b"place") == b""


def test_a_subkey_is_used_two_to_the_twentyfourth_times() -> None:
    key = cipher.DataKey(1, os.urandom(32))
    first = key.encrypt(b"x", b"")
    assert key._subkey is not None
    key._subkey.uses = itertools.count(2**24 - 1)
    last, next_one, after = (key.encrypt(b"x", b"") for _ in range(3))
    assert last[5:21] == first[5:21]
    assert next_one[5:21] == after[5:21] != first[5:21]


def test_a_data_key_has_32_bytes(organization: Organization, keyring: Keyring) -> None:
    assert len(keyring._key(organization.organization_id, None).key) == 32


def test_a_key_version_that_is_nowhere_is_not_taken_for_another(
    organization: Organization, keyring: Keyring
) -> None:
    sealed = bytearray(keyring.encrypt(organization.organization_id, "p", "1", b"x"))
    sealed[4] = 9
    with pytest.raises(NotFound):
        keyring.decrypt(organization.organization_id, "p", "1", bytes(sealed))


def test_keys_are_read_anew_after_a_minute(
    organization: Organization, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 1_000.0
    monkeypatch.setattr(keyring, "time", SimpleNamespace(monotonic=lambda: clock))
    ring = Keyring(load_or_create(settings.master_key_path))
    assert not ring.holds(organization.organization_id)
    ring.encrypt(organization.organization_id, "p", "1", b"x")
    clock += 59.9
    assert ring.holds(organization.organization_id)
    clock = 1_060.0
    assert not ring.holds(organization.organization_id)
    clock = 1_000.0
    ring.forget(uuid4())
    assert ring.holds(organization.organization_id)
    ring.forget(organization.organization_id)
    assert not ring.holds(organization.organization_id)


@pytest.fixture
def no_platform_key() -> Iterator[None]:
    """The platform has no data key yet; what it had comes back."""
    columns = "organization_id, key_version, wrapped_key, master_key_id"
    with database.platform() as connection:
        rows = connection.execute(
            f"DELETE FROM bridge.data_keys WHERE organization_id = %s RETURNING {columns}", (PLATFORM,)
        ).fetchall()
    yield
    with database.platform() as connection:
        connection.execute("DELETE FROM bridge.data_keys WHERE organization_id = %s", (PLATFORM,))
        for row in rows:
            connection.execute(f"INSERT INTO bridge.data_keys ({columns}) VALUES (%s, %s, %s, %s)", row)


def platform_versions() -> list[int]:
    with database.platform() as connection:
        rows = connection.execute(
            "SELECT key_version FROM bridge.data_keys WHERE organization_id = %s", (PLATFORM,)
        ).fetchall()
    return [row[0] for row in rows]


def test_the_platforms_key_is_made_once_by_whoever_comes_first(
    organization: Organization, no_platform_key: None, settings: Settings
) -> None:
    master_key = load_or_create(settings.master_key_path)
    rings = [Keyring(master_key, settings.master_key_path) for _ in range(6)]
    # An organization's key makes none for the platform.
    rings[0].encrypt(organization.organization_id, "p", "1", b"x")
    assert platform_versions() == []
    start = threading.Barrier(len(rings))
    sealed = []

    def work(ring: Keyring) -> None:
        start.wait()
        sealed.append(ring.encrypt(PLATFORM, "p", "1", b"letter"))

    threads = [threading.Thread(target=work, args=(ring,)) for ring in rings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert platform_versions() == [1]
    assert [rings[0].decrypt(PLATFORM, "p", "1", each) for each in sealed] == [b"letter"] * len(rings)


def test_the_master_keys_directory_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "state" / "keys" / "master.key"
    load_or_create(path)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["master.key"]


def test_who_comes_second_takes_the_first_ones_master_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "master.key"
    theirs = master.MasterKey(os.urandom(32))
    real = os.link

    def late(source: Path, target: Path) -> None:
        master.store(path, [theirs])
        real(source, target)

    monkeypatch.setattr(os, "link", late)
    assert load_or_create(path) == theirs
    assert [each.name for each in tmp_path.iterdir()] == ["master.key"]


def test_a_master_key_with_a_character_that_is_none_of_its_own_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    encoded = b64encode(os.urandom(32)).decode()
    path.write_text(f"continuitybridge-master-key-1:{encoded[:9]}!{encoded[9:]}\n")
    path.chmod(0o600)
    with pytest.raises(ConfigurationError):
        load_or_create(path)


def told(organization: Organization, action: str) -> list[reading.Event]:
    return reading.search(organization.organization_id, reading.Filter(action=action), keys=Keyring.open())


def test_a_rotated_master_key_is_counted_and_told_of_in_every_trail(
    make_organization: Callable[[], Organization], settings: Settings
) -> None:
    mine, others = make_organization(), make_organization()
    Keyring.open().encrypt(PLATFORM, "p", "1", b"x")
    with database.platform() as connection:
        row = connection.execute("SELECT count(DISTINCT organization_id) FROM bridge.data_keys").fetchone()
    assert row is not None
    done = rotation.rotate_master_key(settings)
    assert done.rewrapped == row[0]
    assert done.broken == ()
    for organization in (mine, others):
        [event] = told(organization, "master_key.rotated")
        assert event.target == done.key_id


def test_a_rotated_data_key_is_told_of_and_used_at_once(organization: Organization, keyring: Keyring) -> None:
    keyring.encrypt(organization.organization_id, "p", "1", b"x")
    assert rotation.rotate_data_key(organization.organization_id, by="anna") == 2
    [event] = told(organization, "data_key.rotated")
    assert (event.target, event.details, event.actor) == ("2", {"version": 2}, "anna")
    assert cipher.version_of(Keyring.open().encrypt(organization.organization_id, "p", "1", b"x")) == 2


@pytest.fixture
def damaged(organization: Organization) -> Iterator[Organization]:
    """An organization whose data key does not open."""
    change = "UPDATE bridge.data_keys SET wrapped_key = %s WHERE organization_id = %s"
    with database.platform() as connection:
        [(own,)] = connection.execute(
            "SELECT wrapped_key FROM bridge.data_keys WHERE organization_id = %s", (organization.organization_id,)
        )
        connection.execute(change, (own[:-1] + bytes([own[-1] ^ 1]), organization.organization_id))
    yield organization
    with database.platform() as connection:
        connection.execute(change, (own, organization.organization_id))


def test_what_starts_is_told_which_data_key_does_not_open(damaged: Organization, settings: Settings) -> None:
    with pytest.raises(ConfigurationError, match=f"version 1 of {damaged.slug}"):
        rotation.require_keys()
    assert [each.organization for each in rotation.check() if each.problem] == [damaged.slug]


def test_what_starts_with_all_its_keys_is_told_nothing(organization: Organization) -> None:
    rotation.require_keys()


def test_a_master_key_that_is_missing_is_named_and_not_made(
    organization: Organization, settings: Settings, tmp_path: Path
) -> None:
    needed = load_or_create(settings.master_key_path).key_id
    elsewhere = settings.model_copy(update={"master_key_file": tmp_path / "none.key"})
    assert elsewhere.master_key_path == tmp_path / "none.key"
    with pytest.raises(ConfigurationError, match=f"{needed}; .*holds none") as refused:
        rotation.require_master_key(elsewhere)
    assert refused.value.facts["field"] == "BRIDGE_MASTER_KEY_FILE"
    assert not elsewhere.master_key_path.exists()
    other = load_or_create(elsewhere.master_key_path).key_id
    with pytest.raises(ConfigurationError, match=f"{needed}; .*holds {other}"):
        rotation.require_master_key(elsewhere)
