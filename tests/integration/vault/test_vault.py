"""The vault: what is encrypted opens in its place, under its organization's key, and nowhere else."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from uuid import UUID, uuid4

import pytest

from continuitybridge import database
from continuitybridge.errors import ConfigurationError, NotFound, Verdict
from continuitybridge.organizations import Organization
from continuitybridge.settings import Settings
from continuitybridge.vault import DataKeys, Keyring, load_or_create
from continuitybridge.vault.cipher import DecryptionFailed
from continuitybridge.vault.keyring import MasterKeyMissing


def test_the_master_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "master.key"
    first = load_or_create(path)
    assert load_or_create(path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert first.key.hex() not in repr(first)


def make_key(path: str) -> str:
    return load_or_create(Path(path)).key_id


def test_processes_that_start_at_once_get_the_same_master_key(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4) as pool:
        ids = set(pool.map(make_key, [str(tmp_path / "master.key")] * 16))
    assert len(ids) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["master.key"]


def test_a_master_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    load_or_create(path)
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="may be read by others"):
        load_or_create(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"continuitybridge-master-key-1:c2hvcnQ=",
        b"other:" + b"A" * 44,
        b"\xff\xfe of 32 bytes as they are",
    ],
)
def test_a_file_that_is_no_master_key_is_refused_without_showing_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "master.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError) as refused:
        load_or_create(path)
    assert str(path) in str(refused.value)


def test_a_master_key_that_cannot_be_read_is_told_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    path.mkdir()
    with pytest.raises(ConfigurationError, match=rf"{path} cannot be read: Is a directory") as refused:
        load_or_create(path)
    assert refused.value.facts["field"] == "BRIDGE_MASTER_KEY_FILE"


def test_another_master_key_is_named_with_the_one_that_is_needed(
    organization: Organization, keyring: Keyring, tmp_path: Path
) -> None:
    other = Keyring(load_or_create(tmp_path / "master.key"))
    with pytest.raises(MasterKeyMissing) as refused:
        other.encrypt(organization.organization_id, "p", "1", b"x")
    assert refused.value.verdict is Verdict.TRANSIENT, "no message dies of it"
    assert keyring.master_key_id in str(refused.value)
    assert other.master_key_id in str(refused.value)


def test_what_is_encrypted_opens_in_its_place_only(
    make_organization: Callable[[], Organization], keyring: Keyring
) -> None:
    ours, theirs = make_organization().organization_id, make_organization().organization_id
    sealed = keyring.encrypt(ours, "connection", "prod/erp/1", b"secret")
    assert keyring.decrypt(ours, "connection", "prod/erp/1", sealed) == b"secret"
    assert b"secret" not in sealed
    for place in (
        (theirs, "connection", "prod/erp/1"),
        (ours, "endpoint", "prod/erp/1"),
        (ours, "connection", "prod/erp/2"),
        (ours, "connectionp", "rod/erp/1"),
    ):
        with pytest.raises(DecryptionFailed):
            keyring.decrypt(*place, sealed)


def test_every_altered_byte_is_noticed(organization: Organization, keyring: Keyring) -> None:
    sealed = keyring.encrypt(organization.organization_id, "p", "1", b"x")
    assert len(sealed) == 1 + 49
    for position in range(len(sealed)):
        altered = bytearray(sealed)
        altered[position] ^= 1
        with pytest.raises((DecryptionFailed, NotFound)):
            keyring.decrypt(organization.organization_id, "p", "1", bytes(altered))
    for length in range(len(sealed)):
        with pytest.raises(DecryptionFailed):
            keyring.decrypt(organization.organization_id, "p", "1", sealed[:length])


def test_equal_plaintexts_give_other_ciphertexts(organization: Organization, keyring: Keyring) -> None:
    sealed = {keyring.encrypt(organization.organization_id, "p", "1", b"x") for _ in range(1000)}
    assert len(sealed) == 1000
    assert len({each[5:21] for each in sealed}) == 1
    assert len({each[21:33] for each in sealed}) == 1000


def test_a_forked_process_encrypts_under_a_subkey_of_its_own(organization: Organization, keyring: Keyring) -> None:
    def salt() -> bytes:
        return keyring.encrypt(organization.organization_id, "p", "1", b"x")[5:21]

    mine = salt()
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writable, salt())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(readable, 100) != mine
    assert salt() == mine


def test_after_a_rotation_old_data_open_and_new_data_use_the_new_key(
    organization: Organization, keyring: Keyring
) -> None:
    old = keyring.encrypt(organization.organization_id, "p", "1", b"old")
    mark = keyring.fingerprint(organization.organization_id, b"body")
    elsewhere = Keyring.open()
    with database.platform() as connection:
        assert keyring.create_key(connection, organization.organization_id) == 2
    keyring.forget()
    new = keyring.encrypt(organization.organization_id, "p", "1", b"new")
    assert (old[1:5], new[1:5]) == (b"\0\0\0\1", b"\0\0\0\2")
    assert keyring.decrypt(organization.organization_id, "p", "1", old) == b"old"
    assert elsewhere.decrypt(organization.organization_id, "p", "1", new) == b"new"
    assert keyring.matches(organization.organization_id, b"body", mark)
    assert not keyring.matches(organization.organization_id, b"other", mark)


def test_a_process_that_has_not_heard_of_a_rotation_opens_new_data(
    organization: Organization, keyring: Keyring, settings: object
) -> None:
    late = Keyring(load_or_create(database_master(settings)))
    late.encrypt(organization.organization_id, "p", "1", b"x")
    with database.platform() as connection:
        keyring.create_key(connection, organization.organization_id)
    keyring.forget()
    sealed = keyring.encrypt(organization.organization_id, "p", "1", b"new")
    assert late.holds(organization.organization_id)
    assert late.decrypt(organization.organization_id, "p", "1", sealed) == b"new"


def database_master(settings: object) -> Path:
    path: Path = settings.master_key_path  # type: ignore[attr-defined]
    return path


def test_a_worker_gets_the_keys_of_its_organizations_and_no_master_key(
    make_organization: Callable[[], Organization], keyring: Keyring
) -> None:
    ours, theirs = make_organization().organization_id, make_organization().organization_id
    sealed = keyring.encrypt(ours, "p", "1", b"x")
    text = keyring.export(ours).to_json()
    worker = DataKeys.from_json(text)
    assert worker.decrypt(ours, "p", "1", sealed) == b"x"
    assert keyring.decrypt(ours, "p", "1", worker.encrypt(ours, "p", "1", b"y")) == b"y"
    with pytest.raises(NotFound):
        worker.encrypt(theirs, "p", "1", b"x")
    key = worker._key(ours, None).key
    assert repr(worker) == "DataKeys(organizations=1)"
    assert key.hex() not in repr(worker._key(ours, None))


def test_a_swapped_data_key_row_does_not_open(
    make_organization: Callable[[], Organization], keyring: Keyring
) -> None:
    ours, theirs = make_organization().organization_id, make_organization().organization_id
    with database.platform() as connection:
        [(own,)] = connection.execute(
            "SELECT wrapped_key FROM bridge.data_keys WHERE organization_id = %s", (ours,)
        )
        connection.execute(
            "UPDATE bridge.data_keys SET wrapped_key = (SELECT wrapped_key FROM bridge.data_keys"
            " WHERE organization_id = %s) WHERE organization_id = %s",
            (theirs, ours),
        )
    keyring.forget()
    with pytest.raises(DecryptionFailed):
        keyring.encrypt(ours, "p", "1", b"x")
    with database.platform() as connection:
        connection.execute("UPDATE bridge.data_keys SET wrapped_key = %s WHERE organization_id = %s", (own, ours))


def test_an_unknown_organization_has_no_key(keyring: Keyring) -> None:
    nobody: UUID = uuid4()
    with pytest.raises(NotFound):
        keyring.encrypt(nobody, "p", "1", b"x")
    with pytest.raises(NotFound):
        keyring.export(nobody)


def test_keys_are_read_while_every_other_connection_is_held(
    organization: Organization, keyring: Keyring, settings: Settings
) -> None:
    """As when many who write an event, or a mail, come at once and nobody has read the keys yet."""
    held, all_wait = settings.database_pool_size, Barrier(settings.database_pool_size)
    keyring.encrypt(organization.organization_id, "purpose", "first", b"x")
    keyring.forget()

    def write(number: int) -> int:
        role = database.platform() if number % 2 else database.tenant(organization.organization_id)
        other = database.tenant(organization.organization_id) if number % 2 else database.platform()
        with role, other:
            all_wait.wait(30)
            keyring.forget()
            return len(keyring.encrypt(organization.organization_id, "purpose", str(number), b"x"))

    began = time.monotonic()
    with ThreadPoolExecutor(held) as pool:
        assert all(pool.map(write, range(held)))
    assert time.monotonic() - began < 8
