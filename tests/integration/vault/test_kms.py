"""The master key in a key management service: real ones, that stop and refuse."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from click.testing import CliRunner
from key_services import AwsService, GcpService, TransitService, aws_service, gcp_service, transit_service

from continuitybridge import connections, custody, database
from continuitybridge.audit import reading
from continuitybridge.cli import bridge
from continuitybridge.errors import ConfigurationError, Unavailable, Verdict
from continuitybridge.organizations import Organization
from continuitybridge.settings import Settings, get_settings
from continuitybridge.vault import PLATFORM, Keyring, kms, load_or_create, master, rotation
from continuitybridge.vault.cipher import DecryptionFailed
from continuitybridge.vault.kms import KeyServiceRefused, KmsKey, transit, turns
from continuitybridge.vault.wrapping import Place

__all__ = ["aws_service", "gcp_service", "transit_service"]
DEFINITION = {"base_url": "https://erp.example/", "auth": {"type": "bearer", "token": "the-token"}}
Service = AwsService | GcpService | TransitService


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets variables, for this test."""

    def given(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        get_settings.cache_clear()
        kms._services.clear()
        kms._resting.clear()

    yield given
    monkeypatch.undo()
    get_settings.cache_clear()
    kms._services.clear()
    kms._resting.clear()


@pytest.fixture(params=["aws_service", "gcp_service", "transit_service"])
def service(request: pytest.FixtureRequest, environment: Callable[..., None]) -> Service:
    """A service that this process may use, with a key of the test's own."""
    found: Service = request.getfixturevalue(request.param)
    environment(**found.environment)
    found.reference = found.new_key()
    return found


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


def test_a_wrapped_key_opens_as_itself_only(service: Service) -> None:
    key = KmsKey(service.reference)
    place = Place(uuid4(), 1)
    wrapped = key.wrap(place, b"k" * 32)
    assert key.unwrap(place, wrapped) == b"k" * 32
    for other in (Place(place.organization_id, 2), Place(PLATFORM, 1)):
        with pytest.raises(DecryptionFailed):
            key.unwrap(other, wrapped)
    with pytest.raises(DecryptionFailed):
        key.unwrap(place, wrapped[:-6] + bytes(6))


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


def test_a_service_that_is_away_is_told_from_one_that_refuses(
    aws_service: AwsService, environment: Callable[..., None]
) -> None:
    environment(**aws_service.environment)
    key, place = KmsKey(aws_service.reference), Place(uuid4(), 1)
    wrapped = key.wrap(place, b"k" * 32)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        environment(AWS_ENDPOINT_URL_KMS=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(Unavailable, match="does not answer") as away:
            key.unwrap(place, wrapped)
        assert away.value.verdict is Verdict.TRANSIENT
        assert not isinstance(away.value, KeyServiceRefused)
    environment(**aws_service.environment)
    assert key.unwrap(place, wrapped) == b"k" * 32


def test_a_service_that_does_not_answer_is_not_asked_by_everybody(
    environment: Callable[..., None], transit_service: TransitService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transit, "ANSWER_TIMEOUT_S", 0.3)
    environment(**transit_service.environment)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        key = KmsKey(f"transit:http://127.0.0.1:{silent.getsockname()[1]}/transit/bridge")
        started = time.monotonic()
        for _ in range(100):
            with pytest.raises(Unavailable, match="does not answer"):
                key.unwrap(Place(uuid4(), 1), b"vault:v1:x")
        assert time.monotonic() - started < 1.5


def test_a_service_that_hangs_holds_few_threads_before_its_first_time_limit(
    environment: Callable[..., None], transit_service: TransitService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transit, "ANSWER_TIMEOUT_S", 1.5)
    monkeypatch.setattr(turns, "FIRST_PATIENCE_S", 0.3)
    environment(**transit_service.environment)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        silent.setblocking(False)
        key = KmsKey(f"transit:http://127.0.0.1:{silent.getsockname()[1]}/transit/bridge")
        started, took = time.monotonic(), []

        def ask(_: int) -> None:
            with pytest.raises(Unavailable) as hangs:
                key.unwrap(Place(uuid4(), 1), b"vault:v1:x")
            assert hangs.value.verdict is Verdict.TRANSIENT
            took.append(time.monotonic() - started)

        with ThreadPoolExecutor(40) as pool:
            list(pool.map(ask, range(40)))
        at_once = sorted(took)[: 40 - turns.AT_ONCE]
        assert at_once[-1] < 1.2
        called = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                silent.accept()[0].close()
                called += 1
        assert called == turns.AT_ONCE


def test_a_service_that_is_merely_slow_is_waited_for_and_one_that_hangs_then_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "PATIENCE_S", 0.05)
    monkeypatch.setattr(turns, "FIRST_PATIENCE_S", 0.3)
    of_service, over = turns.Turns("transit:slow"), threading.Event()

    def slow(_: int) -> None:
        with of_service.one():
            time.sleep(0.12)

    def hangs(_: int) -> bool:
        try:
            with of_service.one():
                over.wait(5)
        except Unavailable:
            return False
        return True

    with ThreadPoolExecutor(40) as pool:
        list(pool.map(slow, range(40)))
        hanging = [pool.submit(hangs, each) for each in range(40)]
        time.sleep(1)
        refused = [each.result() for each in hanging if each.done()]
        over.set()
    assert refused == [False] * (40 - turns.AT_ONCE)


def test_a_busy_service_is_waited_for_in_turn(
    transit_service: TransitService, environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "AT_ONCE", 2)
    environment(**transit_service.environment)
    key, place = KmsKey(transit_service.new_key()), Place(uuid4(), 1)
    wrapped = key.wrap(place, b"k" * 32)
    with ThreadPoolExecutor(12) as pool:
        assert set(pool.map(lambda _: key.unwrap(place, wrapped), range(24))) == {b"k" * 32}


def test_what_a_service_refused_a_moment_ago_is_not_asked_for_again_and_the_rest_is(
    transit_service: TransitService, environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(**transit_service.environment)
    key, place, calls = KmsKey(transit_service.new_key()), Place(uuid4(), 1), 0
    wrapped = key.wrap(place, b"k" * 32)
    real = transit.Transit.unwrap

    def counted(self: transit.Transit, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        nonlocal calls
        calls += 1
        return real(self, wrapped, context)

    monkeypatch.setattr(transit.Transit, "unwrap", counted)
    transit_service.forbid()
    try:
        for _ in range(100):
            with pytest.raises(KeyServiceRefused):
                key.unwrap(place, wrapped)
    finally:
        transit_service.allow()
    assert calls == 1
    with pytest.raises(DecryptionFailed):
        key.unwrap(Place(uuid4(), 1), wrapped)
    monkeypatch.setattr(kms, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + kms.REST_S))
    assert key.unwrap(place, wrapped) == b"k" * 32


def test_while_one_asks_again_whether_it_answers_the_others_do_not_wait(
    transit_service: TransitService, environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(**transit_service.environment)
    key, place = KmsKey(transit_service.new_key()), Place(uuid4(), 1)
    wrapped = key.wrap(place, b"k" * 32)
    asking, answer, real = threading.Event(), threading.Event(), transit.Transit.unwrap

    def slow(self: transit.Transit, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        asking.set()
        assert answer.wait(20)
        return real(self, wrapped, context)

    monkeypatch.setattr(transit.Transit, "unwrap", slow)
    failed = Unavailable("it does not answer")
    kms._resting[key.reference] = kms._Rest(time.monotonic(), failed)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(key.unwrap, place, wrapped)
        assert asking.wait(20)
        with pytest.raises(Unavailable, match="does not answer"):
            key.unwrap(place, wrapped)
        answer.set()
        assert first.result() == b"k" * 32
    assert key.unwrap(place, wrapped) == b"k" * 32


def test_credentials_that_come_later_are_found(
    aws_service: AwsService, environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key, place = KmsKey(aws_service.reference), Place(uuid4(), 1)
    config = tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = {tmp_path}/none\n")
    environment(
        AWS_ENDPOINT_URL_KMS=aws_service.url,
        AWS_EC2_METADATA_DISABLED="true",
        AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "credentials"),
        AWS_CONFIG_FILE=str(tmp_path / "none"),
    )
    with pytest.raises(Unavailable, match="no credentials") as none:
        key.wrap(place, b"k" * 32)
    assert none.value.verdict is Verdict.TRANSIENT
    client = kms.service(key.reference)
    kms._resting.clear()
    # A profile that is named and is not there.
    with monkeypatch.context() as patched:
        patched.setenv("AWS_PROFILE", "bridge")
        with pytest.raises(KeyServiceRefused, match="bridge"):
            key.wrap(place, b"k" * 32)
    # A program for credentials that fails.
    config.write_text("[default]\ncredential_process = false\n")
    with monkeypatch.context() as patched:
        patched.setenv("AWS_CONFIG_FILE", str(config))
        kms._resting.clear()
        with pytest.raises(Unavailable, match="no credentials"):
            key.wrap(place, b"k" * 32)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, aws_service.environment[name])
    kms._resting.clear()
    assert key.unwrap(place, key.wrap(place, b"k" * 32)) == b"k" * 32
    assert kms.service(key.reference) is client


def test_what_is_garbled_on_the_way_is_neither_kept_nor_used(
    gcp_service: GcpService, environment: Callable[..., None]
) -> None:
    environment(**gcp_service.environment)
    key, place = KmsKey(gcp_service.new_key()), Place(uuid4(), 1)
    wrapped = key.wrap(place, b"k" * 32)
    gcp_service.garbles = True
    try:
        for call in (lambda: key.wrap(place, b"k" * 32), lambda: key.unwrap(place, wrapped)):
            kms._resting.clear()
            with pytest.raises(Unavailable, match="garbled"):
                call()
    finally:
        gcp_service.garbles = False


def test_without_credentials_google_is_not_refusing(
    gcp_service: GcpService, environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key, place = KmsKey(gcp_service.reference), Place(uuid4(), 1)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    environment(CLOUDSDK_CONFIG=str(tmp_path))
    # The library reads that from its environment when it is imported.
    monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", True)
    with pytest.raises(Unavailable, match="no credentials") as none:
        key.wrap(place, b"k" * 32)
    assert none.value.verdict is Verdict.TRANSIENT
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", gcp_service.environment["GOOGLE_APPLICATION_CREDENTIALS"])
    kms._resting.clear()
    assert key.unwrap(place, key.wrap(place, b"k" * 32)) == b"k" * 32


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


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("azure:vault/key", "valid are aws:…, gcp:…, transit:…"),
        ("gcp:projects/p/keys/k", "is not the name of a key"),
        (f"gcp:{'projects/p/locations/l/keyRings/r/cryptoKeys/k'}/cryptoKeyVersions/1", "no version"),
        ("aws:alias/bridge", "is not the ARN of a key"),
        ("aws:arn:aws:kms:eu-central-1:1:key/x", "is not the ARN of a key"),
        ("transit:http://vault.example/transit/bridge", "it has to be https"),
        ("transit:https://vault.example/bridge", "valid is transit:https://"),
    ],
)
def test_a_name_that_is_none_is_refused_before_anything_is_changed(
    reference: str, told: str, settings: Settings
) -> None:
    before = settings.master_key_path.read_text() if settings.master_key_path.exists() else None
    done = CliRunner().invoke(bridge, ["vault", "rotate-master-key", "--to", reference])
    assert done.exit_code != 0
    assert told in done.output
    assert before is None or settings.master_key_path.read_text() == before


def test_a_package_gives_a_service_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: Callable[..., None]
) -> None:
    (tmp_path / "house_kms.py").write_text(
        "class House:\n"
        "    scheme = 'house'\n"
        "    def __init__(self, name): self.name = name.encode()\n"
        "    def wrap(self, key, context): return self.name + context['version'].encode() + key[::-1]\n"
        "    def unwrap(self, wrapped, context): return wrapped[-1:-33:-1]\n"
    )
    metadata = tmp_path / "house_kms-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: house-kms\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[continuitybridge.kms]\nhouse = house_kms:House\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    kms._given.cache_clear()
    try:
        key, place = KmsKey("house:cellar"), Place(uuid4(), 7)
        wrapped = key.wrap(place, bytes(range(32)))
        assert wrapped.startswith(b"cellar7")
        assert key.unwrap(place, wrapped) == bytes(range(32))
    finally:
        kms._given.cache_clear()
