"""The master key in a key management service: moved there, used there and moved back, also while it stops or
refuses."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import pytest
from click.testing import CliRunner
from key_services import Service, TransitService

from continuitybridge import connections, custody, database
from continuitybridge.audit import reading
from continuitybridge.cli import bridge
from continuitybridge.errors import ConfigurationError, Unavailable, Verdict
from continuitybridge.organizations import Organization
from continuitybridge.settings import Settings, get_settings
from continuitybridge.vault import Keyring, kms, load_or_create, master, rotation
from continuitybridge.vault.kms import KeyServiceRefused, KmsKey
from continuitybridge.vault.wrapping import Place

DEFINITION = {"base_url": "https://erp.example/", "auth": {"type": "bearer", "token": "the-token"}}


@pytest.fixture
def moved(service: Service, settings: Settings) -> Iterator[Service]:
    """The service that keeps the master key; afterwards the file does again."""
    run("rotate-master-key", "--to", service.reference)
    yield service
    kms._resting.clear()
    run("rotate-master-key", "--to", "file")


def run(*arguments: str) -> str:
    done = CliRunner().invoke(bridge, ["vault", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def lines(settings: Settings) -> list[str]:
    return settings.master_key_path.read_text().splitlines()


def test_moving_to_a_service_and_back_is_a_rotation_while_everything_runs(
    service: Service, make_organization: Callable[[], Organization], settings: Settings
) -> None:
    organization, later = make_organization(), make_organization()
    o = organization.organization_id
    running = Keyring(load_or_create(settings.master_key_path), settings.master_key_path)
    sealed = running.encrypt(o, "place", "1", b"text")
    said = run("rotate-master-key", "--to", service.reference)
    assert service.reference in said
    assert lines(settings) == [f"continuitybridge-kms-1:{service.reference}"]
    assert {each.master_key_id for each in rotation.check()} == {service.reference}
    assert running.decrypt(o, "place", "1", sealed) == b"text"
    running.forget()
    assert running.decrypt(o, "place", "1", sealed) == b"text"
    with database.platform() as connection:
        assert running.create_key(connection, later.organization_id) == 2
    assert {each.master_key_id for each in rotation.check()} == {service.reference}
    rotation.require_keys()
    run("rotate-master-key", "--to", "file")
    [line] = lines(settings)
    assert line.startswith("continuitybridge-master-key-1:")
    assert all(each.problem is None and each.master_key_id != service.reference for each in rotation.check())
    assert Keyring.open().decrypt(o, "place", "1", sealed) == b"text"


def test_verifying_reencrypting_and_retiring_go_on_under_a_service(
    moved: Service, organization: Organization
) -> None:
    o = organization.organization_id
    connections.put(o, "prod", "erp", DEFINITION, "anna")
    run("rotate-data-key", "-o", organization.slug)
    run("reencrypt", "-o", organization.slug)
    assert custody.retire(o, by="anna", after_s=0).versions == (1,)
    run("verify", "-o", organization.slug)
    found = connections.resolve(o, "prod", "erp", Keyring(KmsKey(moved.reference)))
    assert dict(found.auth)["token"] == "the-token"


def test_what_was_unwrapped_goes_on_while_the_service_refuses(
    moved: Service, make_organization: Callable[[], Organization], settings: Settings
) -> None:
    known, unknown = make_organization().organization_id, make_organization().organization_id
    keys = Keyring(KmsKey(moved.reference), settings.master_key_path)
    sealed = keys.encrypt(known, "place", "1", b"text")
    keys._loaded.clear()
    moved.forbid()
    try:
        assert keys.decrypt(known, "place", "1", sealed) == b"text"
        with pytest.raises(KeyServiceRefused) as refused:
            keys.encrypt(unknown, "place", "1", b"text")
        assert refused.value.verdict is Verdict.TERMINAL
        assert refused.value.facts["retry_after_s"] > 0
        with pytest.raises(ConfigurationError, match=moved.reference.rpartition("/")[2]):
            rotation.require_master_key()
    finally:
        moved.allow()
        kms._resting.clear()
    keys.encrypt(unknown, "place", "1", b"text")


def test_a_task_is_given_the_keys_that_there_are_while_the_service_refuses(
    moved: Service, make_organization: Callable[[], Organization]
) -> None:
    from continuitybridge.airflow.secrets import _keys

    known, unknown = make_organization().organization_id, make_organization().organization_id
    Keyring.open().forget()
    Keyring.open().export(known)
    moved.forbid()
    try:
        assert json.loads(_keys([unknown, known])).keys() == {str(known)}
        with pytest.raises(Unavailable):
            _keys([unknown])
    finally:
        moved.allow()
        kms._resting.clear()


def test_while_the_service_is_down_who_needs_it_is_told_to_come_again(
    transit_service: TransitService,
    environment: Callable[..., None],
    make_organization: Callable[[], Organization],
    settings: Settings,
) -> None:
    environment(**transit_service.environment)
    place = Place(uuid4(), 1)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        dead = KmsKey(f"transit:http://127.0.0.1:{nobody.getsockname()[1]}/transit/bridge")
        with pytest.raises(Unavailable) as down:
            dead.wrap(place, b"k" * 32)
        assert down.value.verdict is Verdict.TRANSIENT
        assert down.value.facts["retry_after_s"] > 0
        before = settings.master_key_path.read_text()
        done = CliRunner().invoke(bridge, ["vault", "rotate-master-key", "--to", dead.reference])
        assert done.exit_code != 0
        assert "does not answer" in done.output
        assert settings.master_key_path.read_text() == before
        # As if it had died behind the first look: it is left for another key.
        master.store(settings.master_key_path, [dead, *master.load_all(settings.master_key_path)])
        assert all(each.problem is None for each in rotation.check())
        run("rotate-master-key", "--to", "file")
    [line] = lines(settings)
    assert line.startswith("continuitybridge-master-key-1:")
    assert all(each.problem is None for each in rotation.check())


def test_a_rotation_that_may_wrap_nothing_says_so(
    transit_service: TransitService,
    environment: Callable[..., None],
    organization: Organization,
    settings: Settings,
) -> None:
    environment(**transit_service.environment)
    refusing = KmsKey(transit_service.new_key())
    before = master.load_all(settings.master_key_path)
    # As when it died behind its first step, and the right was taken away.
    master.store(settings.master_key_path, [refusing, *before])
    transit_service.forbid()
    try:
        done = CliRunner().invoke(bridge, ["vault", "rotate-master-key"])
        assert done.exit_code != 0
        assert "refuses" in done.output
        with pytest.raises(KeyServiceRefused):
            rotation._rewrap_all(Keyring(refusing, settings.master_key_path), every=False)
        assert lines(settings)[1:] == [key.line() for key in before]
        filtered = reading.Filter(action="master_key.rotated")
        assert not reading.search(organization.organization_id, filtered, keys=Keyring(before[0]))
    finally:
        transit_service.allow()
        kms._resting.clear()
        run("rotate-master-key", "--to", "file")


def test_a_service_that_does_not_keep_data_keys_apart_is_refused(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, organization: Organization
) -> None:
    class Careless:
        scheme = "careless"

        def __init__(self, name: str) -> None:
            pass

        def wrap(self, key: bytes, context: Mapping[str, str]) -> bytes:
            return key[::-1]

        def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
            return wrapped[::-1]

    monkeypatch.setattr(kms, "_given", lambda: {"careless": Careless})
    before = settings.master_key_path.read_text()
    done = CliRunner().invoke(bridge, ["vault", "rotate-master-key", "--to", "careless:x"])
    assert done.exit_code != 0
    assert "in another's place" in done.output
    assert settings.master_key_path.read_text() == before


def test_a_key_that_the_service_rotated_wraps_everything_anew(
    transit_service: TransitService,
    environment: Callable[..., None],
    organization: Organization,
    settings: Settings,
) -> None:
    environment(**transit_service.environment)
    transit_service.new_key()
    transit_service.reference = transit_service.new_key()
    run("rotate-master-key", "--to", transit_service.reference)
    try:
        transit_service.rotate()
        run("rotate-master-key")
        assert len(lines(settings)) == 1
        transit_service.drop_versions_before(2)
        assert all(each.problem is None for each in rotation.check())
    finally:
        transit_service.drop_versions_before(1)
        run("rotate-master-key", "--to", "file")


def test_a_new_installation_begins_with_the_key_that_is_named(
    service: Service, environment: Callable[..., None], tmp_path: Path
) -> None:
    file = tmp_path / "keys" / "master.key"
    environment(BRIDGE_MASTER_KEY_FILE=str(file), BRIDGE_MASTER_KEY_KMS=service.reference)
    assert master.open_or_create(get_settings()) == KmsKey(service.reference)
    assert file.read_text() == f"continuitybridge-kms-1:{service.reference}\n"
    assert file.stat().st_mode & 0o777 == 0o600
