"""Rotating keys while everything runs, and being killed at it: everything opens at any moment."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner

from continuitybridge import connections, database, organizations
from continuitybridge.cli import bridge
from continuitybridge.errors import ConfigurationError, Unavailable
from continuitybridge.organizations import Organization
from continuitybridge.settings import Settings, get_settings
from continuitybridge.vault import Keyring, load_or_create, master, rotation

DEFINITION = {"base_url": "https://erp.example/", "auth": {"type": "bearer", "token": "the-token"}}


@pytest.fixture
def with_secret(make_organization: Callable[[], Organization]) -> Organization:
    organization = make_organization()
    connections.put(organization.organization_id, "prod", "erp", DEFINITION, "anna")
    return organization


def token_of(organization: Organization, keys: Keyring) -> str:
    keys.forget()
    found = connections.resolve(organization.organization_id, "prod", "erp", keys)
    return str(dict(found.auth)["token"])


def file_of(settings: Settings) -> list[str]:
    return [key.key_id for key in master.load_all(settings.master_key_path)]


def run(*arguments: str) -> str:
    done = CliRunner().invoke(bridge, ["vault", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_after_a_rotation_everything_opens_under_the_new_key_alone(
    with_secret: Organization, make_organization: Callable[[], Organization], settings: Settings
) -> None:
    [before] = file_of(settings)
    running = Keyring(load_or_create(settings.master_key_path), settings.master_key_path)
    assert token_of(with_secret, running) == "the-token"
    said = run("rotate-master-key")
    [after] = file_of(settings)
    assert after != before
    assert after in said
    assert before in said
    assert settings.master_key_path.stat().st_mode & 0o777 == 0o600
    assert {each.master_key_id for each in rotation.check()} == {after}
    assert "yes" in run("keys")
    # What began before it goes on.
    assert token_of(with_secret, running) == "the-token"
    slug = f"org-{uuid4().hex[:12]}"
    made = organizations.create(slug, slug, keyring=running)
    assert {each.master_key_id for each in rotation.check() if each.organization == slug} == {after}
    connections.put(made.organization_id, "prod", "erp", DEFINITION, "anna", keyring=running)
    assert token_of(made, Keyring.open()) == "the-token"


def test_an_interrupted_rotation_leaves_everything_open_and_goes_on(
    with_secret: Organization, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    [before] = file_of(settings)
    real, turns = rotation._rewrap_next, iter(range(100))

    def some(keyring: Keyring, after: UUID | None, every: bool) -> tuple[UUID, bool] | None:
        if next(turns) == 1:
            raise KeyboardInterrupt
        return real(keyring, after, every)

    monkeypatch.setattr(rotation, "_rewrap_next", some)
    with pytest.raises(KeyboardInterrupt):
        rotation.rotate_master_key()
    current, former = file_of(settings)
    assert former == before
    assert all(each.problem is None for each in rotation.check())
    assert token_of(with_secret, Keyring.open()) == "the-token"
    monkeypatch.undo()
    assert rotation.rotate_master_key().key_id == current
    assert file_of(settings) == [current]
    assert token_of(with_secret, Keyring.open()) == "the-token"


def test_a_rotation_killed_again_and_again_under_load_comes_to_its_end(
    with_secret: Organization, settings: Settings
) -> None:
    [before] = file_of(settings)
    ending, made, failed = threading.Event(), [], []

    def make() -> None:
        while not ending.is_set():
            slug = f"org-{uuid4().hex[:12]}"
            try:
                made.append(organizations.create(slug, slug))
            except Exception as error:
                failed.append(error)

    maker = threading.Thread(target=make)
    maker.start()
    command = [sys.executable, "-m", "continuitybridge.cli", "vault", "rotate-master-key"]
    try:
        for _ in range(4):
            rotating = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(random.uniform(0.4, 0.9))
            rotating.kill()
            rotating.wait()
            assert token_of(with_secret, Keyring.open()) == "the-token"
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)
    finally:
        ending.set()
        maker.join()
    assert failed == []
    assert made
    [after] = file_of(settings)
    assert after != before
    states = rotation.check()
    assert {each.master_key_id for each in states} == {after}
    assert all(each.problem is None for each in states)


def test_rotations_at_once_come_one_after_the_other(with_secret: Organization, settings: Settings) -> None:
    [before] = file_of(settings)
    done, failed = [], []

    def rotate() -> None:
        try:
            done.append(rotation.rotate_master_key())
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=rotate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len({each.key_id for each in done}) == 4
    [after] = file_of(settings)
    assert {each.master_key_id for each in rotation.check()} == {after}
    assert all(each.problem is None for each in rotation.check())
    assert before not in {after}
    assert token_of(with_secret, Keyring.open()) == "the-token"


def test_a_data_key_that_does_not_open_is_named_and_holds_up_no_other(
    with_secret: Organization, make_organization: Callable[[], Organization], settings: Settings
) -> None:
    damaged = make_organization()
    place = "WHERE organization_id = %s"
    with database.platform() as connection:
        [(own,)] = connection.execute(
            f"SELECT wrapped_key FROM bridge.data_keys {place}", (damaged.organization_id,)
        )
        connection.execute(
            f"UPDATE bridge.data_keys SET wrapped_key = %s {place}", (own[:-1] + b"x", damaged.organization_id)
        )
    [before] = file_of(settings)
    done = CliRunner().invoke(bridge, ["vault", "rotate-master-key"])
    assert done.exit_code == 1
    assert f"{damaged.slug}, version 1" in done.stderr
    current, former = file_of(settings)
    assert former == before, "the key that it names stays"
    by_slug = {each.organization: each for each in rotation.check()}
    assert by_slug[damaged.slug].master_key_id == before
    assert by_slug[with_secret.slug].master_key_id == current
    with database.platform() as connection:
        connection.execute(f"UPDATE bridge.data_keys SET wrapped_key = %s {place}", (own, damaged.organization_id))
    assert rotation.rotate_master_key().broken == ()
    assert file_of(settings) == [current]


def test_a_rotation_whose_lock_is_lost_takes_no_other_rotations_key_out_of_the_file(
    with_secret: Organization, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, theirs = rotation._rewrap_all, master.MasterKey.new()

    def overtaken(keyring: Keyring, *, every: bool) -> int:
        done = real(keyring, every=every)
        with database.platform() as connection:
            # As when PostgreSQL is started again: the lock is free, and another rotation begins.
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks"
                " WHERE locktype = 'advisory' AND objid::bigint = %s",
                (rotation.ALONE_LOCK,),
            )
        master.store(settings.master_key_path, [theirs, *master.load_all(settings.master_key_path)])
        with pytest.raises(Unavailable, match="another rotation"):
            real(keyring, every=True)
        return done

    monkeypatch.setattr(rotation, "_rewrap_all", overtaken)
    with pytest.raises(Unavailable, match="call it again"):
        rotation.rotate_master_key()
    assert file_of(settings)[0] == theirs.key_id
    monkeypatch.undo()
    assert rotation.rotate_master_key().key_id == theirs.key_id
    assert file_of(settings) == [theirs.key_id]
    assert token_of(with_secret, Keyring.open()) == "the-token"


def test_a_key_that_another_put_into_the_file_stays_there(
    with_secret: Organization, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, theirs = rotation._rewrap_all, master.MasterKey.new()

    def joined(keyring: Keyring, *, every: bool) -> int:
        done = real(keyring, every=every)
        master.store(settings.master_key_path, [*master.load_all(settings.master_key_path), theirs])
        return done

    monkeypatch.setattr(rotation, "_rewrap_all", joined)
    done = CliRunner().invoke(bridge, ["vault", "rotate-master-key"])
    assert done.exit_code == 1
    assert theirs.key_id in done.stderr
    current, other = file_of(settings)
    assert other == theirs.key_id
    monkeypatch.undo()
    assert rotation.rotate_master_key().key_id == current
    assert file_of(settings) == [current]


def test_no_data_key_is_made_under_a_master_key_that_none_is_under(
    with_secret: Organization, settings: Settings, other_key: Path
) -> None:
    [needed] = file_of(settings)
    slug = f"org-{uuid4().hex[:12]}"
    with pytest.raises(ConfigurationError, match=f"wrapped by master key {needed}, {other_key} holds"):
        organizations.create(slug, slug)


@pytest.fixture
def other_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """As if the file of the master key were lost, and another made."""
    path = tmp_path / "master.key"
    load_or_create(path)
    monkeypatch.setenv("BRIDGE_MASTER_KEY_FILE", str(path))
    get_settings.cache_clear()
    yield path
    monkeypatch.undo()
    get_settings.cache_clear()


def test_nothing_starts_under_another_master_key(
    with_secret: Organization, settings: Settings, other_key: Path
) -> None:
    [needed] = file_of(settings)
    with pytest.raises(ConfigurationError) as refused:
        rotation.require_keys()
    assert needed in str(refused.value)
    assert load_or_create(other_key).key_id in str(refused.value)
    done = CliRunner().invoke(bridge, ["vault", "keys"])
    assert done.exit_code == 1
    before = other_key.read_bytes()
    with pytest.raises(ConfigurationError, match="no data key opens"):
        rotation.rotate_master_key()
    assert other_key.read_bytes() == before


@pytest.mark.parametrize("command", ["stream", "intake", "dispatch"])
def test_what_works_or_serves_ends_at_once_and_names_the_key_that_it_needs(
    with_secret: Organization, settings: Settings, tmp_path: Path, command: str
) -> None:
    [needed] = file_of(settings)
    missing, wrong = tmp_path / "missing.key", tmp_path / "wrong.key"
    other = load_or_create(wrong).key_id
    cases = ((missing, "none"), (wrong, other))
    for file, told in cases if command == "stream" else cases[1:]:
        done = subprocess.run(
            [sys.executable, "-m", "continuitybridge.cli", command],
            env={**os.environ, "BRIDGE_MASTER_KEY_FILE": str(file)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2, done.stderr
        assert f"wrapped by master key {needed}; {file} holds {told}" in done.stderr
    assert not missing.exists()


def test_the_api_server_gets_no_applications_without_its_key(
    with_secret: Organization, settings: Settings, other_key: Path
) -> None:
    from continuitybridge.airflow.plugin import ContinuityBridgePlugin

    [needed] = file_of(settings)
    with pytest.raises(ConfigurationError, match=needed):
        _ = ContinuityBridgePlugin().fastapi_apps


def test_a_rotated_data_key_encrypts_and_the_former_opens_what_it_encrypted(with_secret: Organization) -> None:
    o = with_secret.organization_id
    keys = Keyring.open()
    old = keys.encrypt(o, "place", "1", b"before")
    assert "under version 2" in run("rotate-data-key", "-o", with_secret.slug)
    new = keys.encrypt(o, "place", "1", b"after")
    assert (old[1:5], new[1:5]) == (b"\0\0\0\1", b"\0\0\0\2")
    assert keys.decrypt(o, "place", "1", old) == b"before"
    assert Keyring.open().decrypt(o, "place", "1", new) == b"after"
    assert token_of(with_secret, keys) == "the-token"
    assert [each.version for each in rotation.check() if each.organization == with_secret.slug] == [1, 2]
