"""What each key management service is asked, and what its answers mean."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from click.testing import CliRunner
from key_services import AwsService, GcpService, Service

from continuitybridge.cli import bridge
from continuitybridge.errors import Unavailable, Verdict
from continuitybridge.settings import Settings
from continuitybridge.vault import PLATFORM, kms
from continuitybridge.vault.cipher import DecryptionFailed
from continuitybridge.vault.kms import KeyServiceRefused, KmsKey
from continuitybridge.vault.wrapping import Place


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
    assert none.value.facts["retry_after_s"] == 5
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


def test_a_reference_is_its_own_id_and_line() -> None:
    key = KmsKey("aws:arn:aws:kms:eu-central-1:123456789012:key/x")
    assert key.key_id == key.reference
    assert key.line() == f"continuitybridge-kms-1:{key.reference}"
