"""When a key management service that failed or refused is asked again, by a clock that stands still and a service
that does what a test says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar
from uuid import uuid4

import pytest

from clock import Clock
from continuitybridge.errors import ConfigurationError, Unavailable, Verdict
from continuitybridge.vault import kms
from continuitybridge.vault.cipher import DecryptionFailed
from continuitybridge.vault.kms import KeyServiceRefused, KmsKey, turns
from continuitybridge.vault.wrapping import Place

KEY = b"k" * 32
PLACE = Place(uuid4(), 1)
JUST = 0.001


class House:
    """A service in this process; `does` is what a call to one of its keys does."""

    scheme = "house"
    calls: ClassVar[list[str]] = []
    does: ClassVar[Callable[[str], None]]

    def __init__(self, name: str) -> None:
        self._name = name

    def wrap(self, key: bytes, context: Mapping[str, str]) -> bytes:
        House.calls.append(self._name)
        House.does(self._name)
        return key

    unwrap = wrap


def works(_: str) -> None:
    pass


def fails(_: str) -> None:
    raise Unavailable("house does not answer")


def refuses(_: str) -> None:
    raise KeyServiceRefused("house refuses")


def breaks(_: str) -> None:
    raise ZeroDivisionError("odd")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(kms, "time", clock)
    monkeypatch.setattr(kms, "_given", lambda: {"house": House})
    known = (kms._services, kms._resting, kms._turns)
    for each in known:
        each.clear()
    House.calls, House.does = [], works
    yield clock
    for each in known:
        each.clear()


def wraps(name: str = "a", place: Place = PLACE) -> bool:
    """Whether it worked, by whichever way."""
    try:
        return KmsKey(f"house:{name}").wrap(place, KEY) == KEY
    except Unavailable:
        return False


def test_a_service_that_did_not_answer_rests_for_two_seconds_and_another_does_not(clock: Clock) -> None:
    House.does = fails
    assert not wraps()
    House.does = works
    clock.now += 2.0 - JUST
    with pytest.raises(Unavailable, match="house does not answer"):
        KmsKey("house:a").unwrap(Place(uuid4(), 2), KEY)
    assert House.calls == ["a"]
    assert wraps("b")
    clock.now += JUST
    assert wraps()
    # It answered: nothing is left of it.
    assert wraps()
    assert House.calls == ["a", "b", "a", "a"]


@pytest.mark.parametrize(("after_s", "both"), [(2.0, False), (32.0 - JUST, False), (32.0, True)])
def test_for_half_a_minute_more_one_at_a_time_asks_whether_it_answers(
    clock: Clock, after_s: float, both: bool
) -> None:
    House.does = fails
    assert not wraps()
    clock.now += after_s
    beside: list[bool] = []

    def meanwhile(_: str) -> None:
        House.does = works
        beside.append(wraps())

    House.does = meanwhile
    assert wraps()
    assert beside == [both]


def test_who_was_to_ask_again_and_had_no_turn_leaves_that_to_the_next(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    House.does = fails
    assert not wraps()
    House.does = works
    clock.now += 2.0
    with monkeypatch.context() as patched:
        patched.setattr(turns, "FIRST_PATIENCE_S", 0)
        with pytest.raises(Unavailable, match="takes long"):
            KmsKey("house:a").wrap(PLACE, KEY)
    assert House.calls == ["a"]
    assert wraps()


def test_what_is_refused_is_one_data_keys_and_one_verbs(clock: Clock) -> None:
    key, other = KmsKey("house:a"), Place(PLACE.organization_id, 2)
    House.does = refuses
    for call in (key.wrap, key.unwrap):
        with pytest.raises(KeyServiceRefused):
            call(PLACE, KEY)
    assert len(House.calls) == 2
    House.does = works
    for call in (key.wrap, key.unwrap):
        assert call(other, KEY) == KEY
        with pytest.raises(KeyServiceRefused, match="house refuses"):
            call(PLACE, KEY)
    assert len(House.calls) == 4
    clock.now += 2.0
    assert wraps()
    # And what a service said of altered data is about those alone.

    def altered(_: str) -> None:
        raise DecryptionFailed("altered")

    House.does = altered
    with pytest.raises(DecryptionFailed):
        key.unwrap(PLACE, KEY)
    House.does = works
    assert key.unwrap(PLACE, KEY) == KEY


def test_refusals_are_not_remembered_for_ever(clock: Clock) -> None:
    House.does = refuses
    assert not wraps()
    clock.now += 32.0 - JUST
    assert not wraps(place=Place(uuid4(), 1))
    assert len(kms._resting) == 2
    clock.now += JUST
    assert not wraps(place=Place(uuid4(), 1))
    assert len(kms._resting) == 2


def test_what_somebody_elses_class_raises_is_an_answer_that_did_not_come(caplog: pytest.LogCaptureFixture) -> None:
    House.does = breaks
    for _ in range(2):
        with pytest.raises(Unavailable) as broken:
            KmsKey("house:a").wrap(PLACE, KEY)
        assert str(broken.value) == "house:a cannot be asked: ZeroDivisionError: odd"
        assert broken.value.verdict is Verdict.TRANSIENT
        assert broken.value.facts["retry_after_s"] == 5
    assert House.calls == ["a"]
    [told] = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert "house:a" in told.getMessage()
    assert told.exc_info is not None


def test_calls_to_one_service_take_no_turn_of_anothers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "AT_ONCE", 1)
    monkeypatch.setattr(turns, "FIRST_PATIENCE_S", 0.1)
    beside: list[bool] = []

    def meanwhile(name: str) -> None:
        if name == "a":
            beside.extend(wraps(each) for each in ("b", "a"))

    House.does = meanwhile
    assert wraps()
    assert beside == [True, False]


def test_each_key_has_one_client(clock: Clock) -> None:
    assert kms.service("house:a") is kms.service("house:a")
    assert kms.service("house:a") is not kms.service("house:b")
    with pytest.raises(ConfigurationError, match="'cellar:a' names no key") as unknown:
        kms.service("cellar:a")
    assert str(unknown.value).endswith("valid are aws:…, gcp:…, house:…, transit:…")
    assert unknown.value.facts["field"] == "BRIDGE_MASTER_KEY_KMS"
    assert unknown.value.facts["value"] == "cellar:a"
