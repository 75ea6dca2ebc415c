"""A master key that a passphrase seals: nothing opens until somebody types it, and everything does then."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from sealing_world import passphrase, vault

from continuitybridge.errors import ConfigurationError, Verdict
from continuitybridge.organizations import Organization
from continuitybridge.runtime import platform
from continuitybridge.settings import Settings, get_settings
from continuitybridge.vault import Keyring, rotation, sealing
from continuitybridge.vault.sealing import MIN_CHARACTERS, Sealed, WrongPassphrase

__all__ = ["passphrase"]


def forget() -> Keyring:
    """What a process that begins now finds."""
    keys = Keyring.open()
    keys.forget()
    return keys


def test_nothing_opens_until_the_passphrase_is_typed(
    make_organization: Callable[[], Organization], settings: Settings, passphrase: str
) -> None:
    o = make_organization().organization_id
    text = forget().encrypt(o, "place", "1", b"text")
    [line] = settings.master_key_path.read_text().splitlines()
    assert line.startswith("continuitybridge-sealed-1:")
    assert vault("seal").exit_code == 0
    with pytest.raises(Sealed) as sealed:
        forget().decrypt(o, "place", "1", text)
    assert sealed.value.verdict is Verdict.TRANSIENT
    assert sealed.value.facts["retry_after_s"] > 0
    with pytest.raises(Sealed):
        rotation.require_keys()
    rotation.check_master_key()
    assert vault("keys").exit_code != 0
    with pytest.raises(WrongPassphrase):
        sealing.unseal(settings.master_key_path, passphrase + "x")
    assert sealing.is_sealed(settings.master_key_path)
    said = vault("unseal", given=f"{passphrase}\n")
    assert said.exit_code == 0, said.output
    assert passphrase not in said.output
    assert forget().decrypt(o, "place", "1", text) == b"text"
    rotation.require_keys()


def test_the_unsealed_key_stands_in_memory_for_its_owner_only(settings: Settings, passphrase: str) -> None:
    directory = get_settings().unsealed_dir
    assert directory is not None
    [held] = directory.iterdir()
    assert stat.S_IMODE(held.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    key = held.read_text().strip().rpartition(":")[2]
    for file in settings.state_dir.rglob("*.key"):
        assert key not in file.read_text()
    directory.chmod(0o755)
    # Anybody may have made it: nothing ends by that, and nothing is unsealed into it.
    with pytest.raises(Sealed, match="mode 0700"):
        rotation.require_master_key()
    assert "mode 0700" in vault("unseal", "--passphrase-file", "-", given=f"{passphrase}\n").output
    directory.chmod(0o700)


def _of_another_user(place: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can make a directory another user's")
    place.mkdir(mode=0o700)
    os.chown(place, 65_534, 65_534)


def _of_all(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)


def _leads_elsewhere(place: Path) -> None:
    (place.parent / "elsewhere").mkdir(mode=0o700)
    place.symlink_to(place.parent / "elsewhere")


@pytest.mark.parametrize("take", [_of_another_user, _of_all, _leads_elsewhere, Path.touch])
def test_who_takes_the_places_name_first_keeps_nothing_sealed(
    settings: Settings, passphrase: str, monkeypatch: pytest.MonkeyPatch, take: Callable[[Path], None]
) -> None:
    given = ("--passphrase-file", "-")
    shared = get_settings().unsealed_dir
    assert shared is not None
    with monkeypatch.context() as patched:
        patched.delenv("BRIDGE_UNSEALED_DIR")
        patched.setattr(sealing, "SHARED", shared)
        get_settings.cache_clear()
        # That name, and one that looks like those which take its place.
        name = f"continuitybridge-{os.getuid()}"
        take(shared / name)
        _of_all(shared / f"{name}-0")
        assert sealing.is_sealed(settings.master_key_path)
        for _ in range(2):
            assert vault("unseal", *given, given=f"{passphrase}\n").exit_code == 0
            rotation.require_keys()
        [held] = [each for each in shared.rglob("*.key") if each.parent != shared]
        assert held.parent.name.startswith(f"{name}-")
        assert stat.S_IMODE(held.parent.stat().st_mode) == 0o700
        assert vault("seal").exit_code == 0
        assert not held.exists()
        with pytest.raises(Sealed):
            rotation.require_master_key()
    get_settings.cache_clear()


@pytest.mark.parametrize("ended", [("seal",), ("rotate-master-key", "--to", "file")], ids=["seal", "rotate"])
def test_what_is_to_be_forgotten_goes_from_where_the_mode_was_changed_too(
    settings: Settings, passphrase: str, monkeypatch: pytest.MonkeyPatch, ended: tuple[str, ...]
) -> None:
    given = ("--passphrase-file", "-")
    shared = get_settings().unsealed_dir
    assert shared is not None
    with monkeypatch.context() as patched:
        patched.delenv("BRIDGE_UNSEALED_DIR")
        patched.setattr(sealing, "SHARED", shared)
        get_settings.cache_clear()
        held = []
        for _ in range(2):
            assert vault("unseal", *given, given=f"{passphrase}\n").exit_code == 0
            held = [each for each in shared.rglob("*.key") if each.parent != shared]
            min(held, key=lambda each: each.stat().st_mtime_ns).parent.chmod(0o750)
        assert len(held) == 2
        done = vault(*ended)
        assert done.exit_code == 0, done.output
        assert not [each for each in held if each.exists()]
        if ended == ("seal",):
            assert vault("unseal", *given, given=f"{passphrase}\n").exit_code == 0
        else:
            again = vault("rotate-master-key", "--to", "passphrase", *given, given=f"{passphrase}\n")
            assert again.exit_code == 0, again.output
    get_settings.cache_clear()


def test_an_unsealed_key_is_never_put_on_a_disk(
    passphrase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    disk = next((each for each in (tmp_path, Path.cwd()) if not _in_memory(each)), None)
    if disk is None:
        pytest.skip("every directory here is in memory")
    with monkeypatch.context() as patched:
        patched.setenv("BRIDGE_UNSEALED_DIR", str(disk / "unsealed"))
        get_settings.cache_clear()
        refused = vault("unseal", "--passphrase-file", "-", given=f"{passphrase}\n")
    get_settings.cache_clear()
    assert refused.exit_code != 0
    assert "is not in memory" in refused.output
    assert not (disk / "unsealed").exists()


def _in_memory(directory: Path) -> bool:
    try:
        sealing._require_memory(directory)
    except ConfigurationError:
        return False
    return True


def test_sealing_again_ends_what_a_process_holds(
    organization: Organization, passphrase: str, settings: Settings
) -> None:
    keys = forget()
    text = keys.encrypt(organization.organization_id, "place", "1", b"text")
    assert vault("seal").exit_code == 0
    assert keys.decrypt(organization.organization_id, "place", "1", text) == b"text"
    keys._loaded.clear()  # as when its minute is over
    with pytest.raises(Sealed):
        keys.decrypt(organization.organization_id, "place", "1", text)


def test_the_status_says_that_it_is_sealed(settings: Settings, passphrase: str) -> None:
    assert not [row for row in platform.status(get_settings()) if row["name"] == "vault"]
    vault("seal")
    [row] = [row for row in platform.status(get_settings()) if row["name"] == "vault"]
    assert row["state"] == "sealed"


def test_another_passphrase_is_a_rotation(settings: Settings, passphrase: str) -> None:
    before = settings.master_key_path.read_text()
    refused = vault("rotate-master-key")
    assert refused.exit_code != 0
    assert "--to passphrase" in refused.output
    short = vault("rotate-master-key", "--to", "passphrase", "--passphrase-file", "-", given="short\n")
    assert short.exit_code != 0
    assert settings.master_key_path.read_text() == before
    again = vault("rotate-master-key", "--to", "passphrase", "--passphrase-file", "-", given=f"{passphrase}\n")
    assert again.exit_code == 0, again.output
    assert settings.master_key_path.read_text() != before
    rotation.require_keys()


@pytest.mark.parametrize("changed", [(1, "f" * 16), (3, "9,8,1"), (3, "40,8,1"), (5, "AAAA")])
def test_an_altered_file_opens_by_no_passphrase(
    settings: Settings, passphrase: str, changed: tuple[int, str], tmp_path: Path
) -> None:
    parts = settings.master_key_path.read_text().strip().split(":")
    parts[changed[0]] = changed[1]
    file = tmp_path / "master.key"
    file.touch(mode=0o600)
    file.write_text(":".join(parts) + "\n")
    with pytest.raises((WrongPassphrase, ConfigurationError)):
        sealing.unseal(file, passphrase)


def held() -> list[Path]:
    directory = get_settings().unsealed_dir
    assert directory is not None
    return list(directory.iterdir())


def test_a_key_that_left_the_file_is_held_in_memory_no_more(settings: Settings, passphrase: str) -> None:
    [place] = held()
    place_before = place.read_text()
    assert vault("rotate-master-key", "--to", "file").exit_code == 0
    assert held() == []
    place.touch(mode=0o600)
    place.write_text(place_before)  # as on another machine
    assert vault("seal").exit_code == 0
    assert held() == []
    assert "no sealed key" in vault("seal").output
    again = vault("rotate-master-key", "--to", "passphrase", "--passphrase-file", "-", given=f"{passphrase}\n")
    assert again.exit_code == 0, again.output


def test_who_is_not_the_platforms_user_is_told_so(
    settings: Settings, passphrase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = settings.master_key_path.read_text()
    with monkeypatch.context() as patched:
        patched.setattr(os, "getuid", lambda: settings.master_key_path.stat().st_uid + 1)
        for command in (["unseal"], ["rotate-master-key", "--to", "passphrase"]):
            refused = vault(*command, "--passphrase-file", "-", given=f"{passphrase}\n")
            assert refused.exit_code != 0
            assert "call it as the platform's user" in refused.output
        for refused in (vault("seal"), vault("rotate-master-key", "--to", "file")):
            assert "call it as the platform's user" in refused.output
    assert settings.master_key_path.read_text() == before
    rotation.require_keys()


@pytest.mark.parametrize("normal", [True, False])
def test_a_passphrase_opens_however_the_keyboard_composes_its_letters(
    settings: Settings, passphrase: str, monkeypatch: pytest.MonkeyPatch, normal: bool
) -> None:
    typed = "e\u0301" * MIN_CHARACTERS
    with monkeypatch.context() as patched:
        if not normal:
            patched.setattr(sealing, "_normal", lambda text: text)  # as before it was minded
        key = sealing.sealed_by(typed, settings.master_key_path)
    assert key.opened(typed).key_id == key.key_id
    if normal:
        assert key.opened("\u00e9" * MIN_CHARACTERS).key_id == key.key_id
