"""The line of a sealed key, and the places where it stands unsealed: of files of the test's own, of which the
platform knows nothing."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sealing_world import SHM, in_memory

from continuitybridge.errors import ConfigurationError
from continuitybridge.settings import get_settings
from continuitybridge.vault import master, sealing
from continuitybridge.vault.sealing import Sealed, SealedKey


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of this test's in memory."""
    monkeypatch.setattr(sealing, "LOG2_N", 10)
    directory = in_memory()
    yield directory
    monkeypatch.undo()
    get_settings.cache_clear()
    shutil.rmtree(directory)


@pytest.fixture
def shared(memory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What all users may write into; no directory is configured."""
    monkeypatch.delenv("BRIDGE_UNSEALED_DIR", raising=False)
    # Nothing is written into that of the machine: a platform of this user's may run beside.
    assert sealing.SHARED == SHM
    monkeypatch.setattr(sealing, "SHARED", memory)
    get_settings.cache_clear()
    return memory


@pytest.fixture
def configured(memory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that is configured, below one that is not there yet."""
    place = memory / "bridge" / "unsealed"
    monkeypatch.setenv("BRIDGE_UNSEALED_DIR", str(place))
    get_settings.cache_clear()
    return place


def passphrase(characters: int = 24) -> str:
    return secrets.token_hex(characters)[:characters]


def sealed_into(file: Path, phrase: str) -> SealedKey:
    """A file whose key is sealed by the passphrase, and unsealed now."""
    key = sealing.sealed_by(phrase, file)
    file.touch(mode=0o600)
    master.store(file, [key])
    return key


def is_open(key: SealedKey) -> bool:
    try:
        key.require_ready()
    except Sealed:
        return False
    return True


def line(phrase: str, **changed: str) -> str:
    """A line as the format says, by another implementation of scrypt."""
    key, salt, nonce = (secrets.token_bytes(size) for size in (32, 16, 12))
    key_id = hashlib.sha256(b"continuitybridge master key id" + key).hexdigest()[:16]
    bound = f"continuitybridge-sealed-1:{key_id}:scrypt:10,8,2".encode()
    derived = hashlib.scrypt(phrase.encode(), salt=salt, n=1024, r=8, p=2, dklen=32)
    box = nonce + AESGCM(derived).encrypt(nonce, key, bound)
    parts = {
        "id": key_id,
        "kind": "scrypt",
        "numbers": "10,8,2",
        "salt": b64encode(salt).decode(),
        "box": b64encode(box).decode(),
    }
    return ":".join({**parts, **changed}.values())


def test_a_line_that_another_program_wrote_opens_by_its_passphrase_and_is_written_as_it_was(
    tmp_path: Path,
) -> None:
    phrase = passphrase()
    text = line(phrase)
    key = sealing.parse(text, tmp_path / "master.key")
    assert key is not None
    assert key.opened(phrase).key_id == key.key_id == text.partition(":")[0]
    assert key.line() == f"continuitybridge-sealed-1:{text}"


def test_a_line_is_a_sealed_key_to_the_letter_or_none(tmp_path: Path) -> None:
    for changed, valid in (
        ({"numbers": "22,32,16"}, True),
        ({"numbers": "1,1,1"}, True),
        # Nobody makes this take all memory, or no time.
        ({"numbers": "23,8,1"}, False),
        ({"numbers": "17,33,1"}, False),
        ({"numbers": "17,8,17"}, False),
        ({"numbers": "0,8,1"}, False),
        ({"numbers": "17,8"}, False),
        ({"kind": "argon2"}, False),
        ({"salt": "A" * 20}, False),
        ({"salt": "-" + b64encode(bytes(16)).decode()}, False),
        ({"box": b64encode(bytes(59)).decode()}, False),
        ({"box": "-" + b64encode(bytes(60)).decode()}, False),
    ):
        found = sealing.parse(line(passphrase(), **changed), tmp_path / "master.key")
        assert (found is not None) is valid, changed


def test_a_passphrase_has_fifteen_characters(configured: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has 14 characters; valid are 15 and more") as short:
        sealing.sealed_by(passphrase(14), tmp_path / "master.key")
    assert short.value.facts["field"] == "passphrase"
    phrase = passphrase(15)
    assert sealing.sealed_by(phrase, tmp_path / "master.key").opened(phrase)


def test_who_needs_a_sealed_key_is_told_which_it_is_and_how_it_opens(configured: Path, tmp_path: Path) -> None:
    file, phrase = tmp_path / "master.key", passphrase()
    key = sealed_into(file, phrase)
    assert is_open(key)
    sealing.seal(file)
    with pytest.raises(Sealed, match=f"master key {key.key_id} is sealed: bridge vault unseal") as sealed:
        key.require_ready()
    assert sealed.value.facts["key"] == key.key_id
    assert sealed.value.facts["retry_after_s"] == 30
    assert sealing.unseal(file, phrase) == [key.key_id]
    assert is_open(key)


def test_keys_of_another_file_stay_unsealed_when_this_ones_are_sealed(configured: Path, tmp_path: Path) -> None:
    ours, theirs = (tmp_path / name for name in ("a.key", "b.key"))
    keys = [sealed_into(file, passphrase()) for file in (ours, theirs)]
    sealing.seal(ours)
    assert [is_open(key) for key in keys] == [False, True]
    assert [sealing.is_sealed(file) for file in (ours, theirs)] == [True, False]


def test_a_file_that_is_none_is_not_sealed(configured: Path, tmp_path: Path) -> None:
    file = tmp_path / "master.key"
    assert not sealing.is_sealed(file)
    file.touch(mode=0o600)
    file.write_text("no key\n")
    assert not sealing.is_sealed(file)


def test_where_the_directory_is_a_file_nothing_stands_and_nothing_is_to_be_forgotten(
    configured: Path, tmp_path: Path
) -> None:
    file = tmp_path / "master.key"
    key = sealed_into(file, passphrase())
    shutil.rmtree(configured)
    configured.touch()
    sealing.seal(file)
    assert not is_open(key)


def test_a_link_in_the_keys_place_is_not_followed(configured: Path, tmp_path: Path) -> None:
    file = tmp_path / "master.key"
    key = sealed_into(file, passphrase())
    [held] = configured.iterdir()
    held.rename(configured / "elsewhere")
    held.symlink_to(configured / "elsewhere")
    with pytest.raises(Sealed, match="could not be looked up"):
        key.require_ready()


def test_what_left_the_file_is_forgotten_behind_a_place_that_cannot_be_read(shared: Path, tmp_path: Path) -> None:
    file = tmp_path / "master.key"
    sealed_into(file, passphrase())
    [held] = shared.rglob("*.key")
    before = shared / f"{held.parent.name}-0"
    before.mkdir(mode=0o700)
    held.parent.rename(shared / f"{before.name}1")
    (before / held.name).symlink_to("nowhere")
    sealing.keep_only(file, [])
    assert not list(shared.rglob(f"{before.name}1/*.key"))


def test_where_nothing_is_configured_it_stands_in_this_users_directory_of_the_shared_memory(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "master.key"
    key = sealed_into(file, passphrase())
    [held] = shared.rglob("*.key")
    assert held.parent == shared / f"continuitybridge-{os.getuid()}"
    assert stat.S_IMODE(held.parent.stat().st_mode) == 0o700
    assert is_open(key)


def test_the_innermost_file_system_that_is_seen_says_whether_it_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = [
        *(("zfs", "/", "ext4"), ("none", "/memory", "tmpfs"), ("disk", "/memory/disk", "ext4")),
        # The last one over a place is seen.
        *(
            ("disk", "/twice", "ext4"),
            ("a", "/twice", "ramfs"),
            ("none", "/again", "tmpfs"),
            ("a", "/again", "xfs"),
        ),
    ]
    found = [SimpleNamespace(device=a, mountpoint=b, fstype=c, opts="") for a, b, c in mounts]
    monkeypatch.setattr(sealing.psutil, "disk_partitions", lambda all: found)
    for place in ("/memory/unsealed", "/memory", "/memory/diskless", "/twice/unsealed"):
        sealing._require_memory(Path(place))
    for place, kind in (("/memory/disk/unsealed", "ext4"), ("/unsealed", "ext4"), ("/again/unsealed", "xfs")):
        with pytest.raises(ConfigurationError, match=f"its file system is {kind}") as refused:
            sealing._require_memory(Path(place))
        assert refused.value.facts["field"] == "BRIDGE_UNSEALED_DIR"
        assert refused.value.facts["value"] == place
