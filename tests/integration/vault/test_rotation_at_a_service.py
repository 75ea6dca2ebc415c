"""What a rotation asks of a key's service, counted: which data keys are wrapped anew, and what is tried before."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import orjson
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from continuitybridge import database
from continuitybridge.errors import ConfigurationError, Unavailable
from continuitybridge.organizations import Organization
from continuitybridge.settings import Settings
from continuitybridge.vault import PLATFORM, Keyring, kms, load_or_create, master, rotation
from continuitybridge.vault.cipher import DecryptionFailed
from continuitybridge.vault.kms import KmsKey


class House:
    """A service in this process, which notes for what it was asked; those of `careless` bind nothing."""

    scheme = "house"
    wrapped: ClassVar[list[dict[str, str]]] = []
    tried: ClassVar[list[tuple[dict[str, str], int]]] = []
    away: ClassVar[bool] = False
    key: ClassVar[bytes] = secrets.token_bytes(32)

    def __init__(self, name: str) -> None:
        self._careless = name == "careless"

    def _bound(self, context: Mapping[str, str]) -> bytes:
        return b"" if self._careless else orjson.dumps(dict(context), option=orjson.OPT_SORT_KEYS)

    def wrap(self, key: bytes, context: Mapping[str, str]) -> bytes:
        House.wrapped.append(dict(context))
        nonce = secrets.token_bytes(12)
        return nonce + AESGCM(House.key).encrypt(nonce, key, self._bound(context))

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        if House.away:
            raise Unavailable("house does not answer")
        try:
            key = AESGCM(House.key).decrypt(wrapped[:12], wrapped[12:], self._bound(context))
        except InvalidTag:
            House.tried.append((dict(context), 0))
            raise DecryptionFailed("altered, or in another's place") from None
        House.tried.append((dict(context), len(key)))
        return key


@pytest.fixture(autouse=True)
def _house(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Iterator[None]:
    monkeypatch.setattr(kms, "_given", lambda: {"house": House})
    House.wrapped, House.tried, House.away = [], [], False
    yield
    House.away = False
    kms._resting.clear()
    if any(isinstance(key, KmsKey) for key in master.load_all(settings.master_key_path)):
        rotation.rotate_master_key(to=master.MasterKey.new())
    kms._services.clear()


def kept() -> tuple[int, int]:
    """How many data keys there are, and of how many organizations."""
    with database.platform() as connection:
        [row] = connection.execute(
            "SELECT count(*), count(DISTINCT organization_id) FROM bridge.data_keys"
        ).fetchall()
    return row[0], row[1]


def test_a_services_own_rotation_wraps_every_data_key_anew_by_the_key_that_stays(
    make_organization: Callable[[], Organization], settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    make_organization(), make_organization()
    Keyring(load_or_create(settings.master_key_path)).encrypt(PLATFORM, "place", "1", b"text")
    to = KmsKey("house:a")
    first = rotation.rotate_master_key(to=to)
    assert (first.key_id, first.remaining, first.broken) == ("house:a", (), ())
    data_keys, organizations = kept()
    assert first.rewrapped == organizations
    # One more is what it is tried with.
    assert len(House.wrapped) == data_keys + 1
    House.wrapped.clear()
    again = rotation.rotate_master_key()
    assert (again.key_id, again.former, again.remaining) == ("house:a", (), ())
    assert again.rewrapped == organizations
    assert len(House.wrapped) == data_keys + 1
    assert [key.key_id for key in master.load_all(settings.master_key_path)] == ["house:a"]
    # The same key by its name is the same.
    House.wrapped.clear()
    assert rotation.rotate_master_key(to=to).rewrapped == organizations
    # The platform, which has no trail, is no trail that could not be written.
    assert not [each for each in caplog.records if str(PLATFORM) in each.getMessage()]


def test_a_rotation_that_goes_on_wraps_only_what_is_left(organization: Organization, settings: Settings) -> None:
    file, to = settings.master_key_path, KmsKey("house:a")
    before = load_or_create(file)
    rotation.rotate_master_key(to=to)
    # As when it died before the former key left the file.
    master.store(file, [to, before])
    House.wrapped.clear()
    gone_on = rotation.rotate_master_key()
    assert (gone_on.key_id, gone_on.former, gone_on.rewrapped) == ("house:a", (before.key_id,), 0)
    assert len(House.wrapped) == 1
    master.store(file, [to, before])
    House.wrapped.clear()
    assert rotation.rotate_master_key(to=to).rewrapped == 0


def test_before_anything_depends_on_a_key_it_is_tried_in_its_place_and_in_two_others(
    organization: Organization, settings: Settings
) -> None:
    load_or_create(settings.master_key_path)
    rotation.rotate_master_key(to=KmsKey("house:a"))
    platform = str(PLATFORM)
    assert (House.wrapped[0]["organization"], House.wrapped[0]["version"]) == (platform, "0")
    [its, later, other] = House.tried[:3]
    assert (its[0], its[1]) == (House.wrapped[0], 32)
    assert (later[0]["organization"], later[0]["version"], later[1]) == (platform, "1", 0)
    assert other[0]["organization"] != platform
    assert (other[0]["version"], other[1]) == ("0", 0)


def test_a_rotation_under_way_to_a_key_that_binds_nothing_goes_no_further(
    organization: Organization, settings: Settings
) -> None:
    file = settings.master_key_path
    before = load_or_create(file)
    master.store(file, [KmsKey("house:careless"), before])
    try:
        with pytest.raises(ConfigurationError, match="in another's place") as careless:
            rotation.rotate_master_key()
        assert careless.value.facts["value"] == "house:careless"
        assert {each.master_key_id for each in rotation.check()} == {before.key_id}
    finally:
        master.store(file, [before])


def test_of_keys_that_cannot_be_asked_for_now_nothing_is_said(
    organization: Organization, settings: Settings
) -> None:
    rotation.rotate_master_key(to=KmsKey("house:a"))
    House.away = True
    with pytest.raises(Unavailable, match="does not answer"):
        rotation.check()


def test_a_setting_that_names_another_key_than_the_file_is_told_and_changes_nothing(
    organization: Organization, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    def told(named: str | None) -> list[str]:
        caplog.clear()
        rotation.require_master_key(settings.model_copy(update={"master_key_kms": named}))
        return [each.getMessage() for each in caplog.records]

    before = load_or_create(settings.master_key_path).key_id
    [other] = told("house:a")
    assert other.startswith(f"the master key is {before}, BRIDGE_MASTER_KEY_KMS says house:a")
    assert told(None) == []
    rotation.rotate_master_key(to=KmsKey("house:a"))
    assert told("house:a") == []
    assert told(None) == []
    assert [key.key_id for key in master.load_all(settings.master_key_path)] == ["house:a"]
