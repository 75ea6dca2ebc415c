"""A key management service that is slow, hangs or refuses holds few threads, and nobody for long."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from uuid import uuid4

import pytest
from key_services import TransitService

from continuitybridge.errors import Unavailable, Verdict
from continuitybridge.vault import kms
from continuitybridge.vault.cipher import DecryptionFailed
from continuitybridge.vault.kms import KeyServiceRefused, KmsKey, transit, turns
from continuitybridge.vault.wrapping import Place


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
