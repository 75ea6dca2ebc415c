"""Data keys under master keys that are held by nobody, or cannot be asked now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from continuitybridge import database
from continuitybridge.database.connections import Connection
from continuitybridge.errors import BridgeError, ConfigurationError, Unavailable
from continuitybridge.organizations import Organization
from continuitybridge.settings import Settings
from continuitybridge.vault import Keyring, load_or_create, master
from continuitybridge.vault.cipher import DecryptionFailed
from continuitybridge.vault.keyring import MasterKeyMissing, is_for_now
from continuitybridge.vault.kms import KeyServiceRefused
from continuitybridge.vault.master import MasterKey
from continuitybridge.vault.wrapping import Place, WrappingKey


class Elsewhere:
    """A master key that is kept elsewhere; `asked` counts what it unwrapped, and `away` says that it does not."""

    def __init__(self, key: WrappingKey) -> None:
        self._key = key
        self.key_id = key.key_id
        self.asked, self.away = 0, False

    def line(self) -> str:
        return self._key.line()

    def wrap(self, place: Place, key: bytes) -> bytes:
        return self._key.wrap(place, key)

    def unwrap(self, place: Place, wrapped: bytes) -> bytes:
        self.asked += 1
        if self.away:
            raise Unavailable("it does not answer")
        return self._key.unwrap(place, wrapped)

    def require_ready(self) -> None:
        pass


@pytest.fixture
def master_key(settings: Settings) -> Elsewhere:
    return Elsewhere(load_or_create(settings.master_key_path))


@pytest.fixture
def undone() -> Iterator[Connection]:
    """A transaction of the platform's role that comes to nothing."""
    with database.platform() as connection, connection.transaction(force_rollback=True):
        yield connection


@pytest.mark.parametrize(
    ("error", "for_now"),
    [
        (Unavailable("it does not answer"), True),
        (KeyServiceRefused("no right to it"), False),
        (MasterKeyMissing("nobody has it"), False),
        (DecryptionFailed("altered"), False),
    ],
)
def test_only_who_could_not_be_asked_may_say_later_that_it_opens(error: BridgeError, for_now: bool) -> None:
    assert is_for_now(error) is for_now


def test_a_data_key_is_wrapped_anew_where_it_opens_and_left_alone_where_it_does_not(
    organization: Organization, master_key: Elsewhere, undone: Connection
) -> None:
    o = organization.organization_id
    keys = Keyring(master_key)
    assert keys.rewrap(undone, o, 1) is True
    master_key.away = True
    with pytest.raises(Unavailable, match="does not answer"):
        keys.rewrap(undone, o, 1)
    undone.execute("UPDATE bridge.data_keys SET master_key_id = 'nobody' WHERE organization_id = %s", (o,))
    assert keys.rewrap(undone, o, 1) is False
    [(named,)] = undone.execute("SELECT master_key_id FROM bridge.data_keys WHERE organization_id = %s", (o,))
    assert named == "nobody"


def test_what_was_unwrapped_is_not_asked_for_again_until_it_is_forgotten(
    make_organization: Callable[[], Organization], master_key: Elsewhere
) -> None:
    ours, theirs = (make_organization().organization_id for _ in range(2))
    keys = Keyring(master_key)
    for each in (ours, theirs):
        keys.encrypt(each, "place", "1", b"text")
    assert master_key.asked == 2
    keys._loaded.clear()  # as when their minute is over
    for each in (ours, theirs):
        keys.encrypt(each, "place", "1", b"text")
    assert master_key.asked == 2
    keys.forget(ours)
    for each in (theirs, ours):
        keys.encrypt(each, "place", "1", b"text")
    assert master_key.asked == 3


def test_without_a_file_a_key_is_made_under_the_master_key_in_hand_and_no_other(
    organization: Organization, master_key: Elsewhere, undone: Connection, tmp_path: Path
) -> None:
    assert Keyring(master_key).create_key(undone, organization.organization_id) == 2
    other = MasterKey.new()
    with pytest.raises(ConfigurationError, match=f", here holds {other.key_id}: put the right file there"):
        Keyring(other).create_key(undone, organization.organization_id)
    file = tmp_path / "master.key"
    master.store(file, [other])
    with pytest.raises(ConfigurationError, match=f", {file} holds {other.key_id}"):
        Keyring(other, file).create_key(undone, organization.organization_id)


def test_which_master_key_is_missing_is_told_and_when_to_come_again(
    organization: Organization, master_key: Elsewhere
) -> None:
    other = MasterKey.new()
    with pytest.raises(
        MasterKeyMissing, match=f"{master_key.key_id}, the configured one is {other.key_id}"
    ) as missing:
        Keyring(other).decrypt(
            organization.organization_id, "place", "1", b"\x01" + (1).to_bytes(4, "big") + bytes(44)
        )
    assert missing.value.facts["key"] == master_key.key_id
    assert missing.value.facts["retry_after_s"] == 30
