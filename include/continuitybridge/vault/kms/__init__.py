"""Master keys that a key management service keeps: data keys are wrapped and unwrapped by calls to it.

The master key's file then holds no key but the name of one, `<scheme>:<name>`. A service is a class, found by its
scheme: those of this folder, and whatever installed packages give under the entry point group
`continuitybridge.kms` (its name is the scheme, its object a class as `KeyService` says).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Hashable
from copy import copy
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import cast

from continuitybridge.errors import BridgeError, ConfigurationError, Unavailable, Verdict
from continuitybridge.vault.kms.base import KeyService, KeyServiceRefused
from continuitybridge.vault.kms.turns import Turns
from continuitybridge.vault.wrapping import Place

__all__ = ["GROUP", "PREFIX", "KeyService", "KeyServiceRefused", "KmsKey", "service"]

PREFIX = "continuitybridge-kms-1"
GROUP = "continuitybridge.kms"
_BUILT_IN = {
    "aws": "continuitybridge.vault.kms.aws:AwsKms",
    "gcp": "continuitybridge.vault.kms.gcp:GcpKms",
    "transit": "continuitybridge.vault.kms.transit:Transit",
}
REST_S = 2.0
"""A service that did not answer is not asked again for so long: who waits for it holds a thread. One that refused
a data key is not asked for that one again."""
RECENT_S = 30.0
"""So long after it did not answer it is asked by one thread at a time, until it answers."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KmsKey:
    """A key of a service; its `key_id` is its whole name, so that a person reads which one is needed."""

    reference: str

    @property
    def key_id(self) -> str:
        return self.reference

    def line(self) -> str:
        return f"{PREFIX}:{self.reference}"

    def wrap(self, place: Place, key: bytes) -> bytes:
        # Nobody else's: each wrapping is another.
        return self._asked("wrap", place, object(), lambda: service(self.reference).wrap(key, place.context))

    def unwrap(self, place: Place, wrapped: bytes) -> bytes:
        return self._asked(
            "unwrap", place, (place, wrapped), lambda: service(self.reference).unwrap(wrapped, place.context)
        )

    def require_ready(self) -> None:
        """What it unwrapped before goes on while it does not answer."""

    def require_answering(self) -> None:
        with _lock:
            rest = _resting.get(self.reference)
            if rest is not None and (time.monotonic() < rest.until or rest.asking):
                raise copy(rest.error)

    def _asked(self, verb: str, place: Place, what: Hashable, call: Callable[[], bytes]) -> bytes:
        # A right may be one organization's, or one verb's: what is refused holds up nothing else.
        one = (self.reference, verb, place)
        asks_again = _require_rested(one)
        try:
            return _turns_of(self.reference).answer(what, lambda: self._answered(one, call))
        finally:
            if asks_again:
                _asked_again(self.reference)

    def _answered(self, one: _One, call: Callable[[], bytes]) -> bytes:
        failed: Unavailable | None = None
        try:
            return call()
        except Unavailable as error:
            failed = error
            raise
        except BridgeError:
            raise
        except Exception as error:
            # A class of somebody else's, or what surrounds it. Nobody who waits for a key knows its exceptions.
            log.exception("the key management service of %s failed", self.reference)
            told = f"{self.reference} cannot be asked: {type(error).__name__}: {error}"
            failed = Unavailable(told, retry_after_s=5)
            raise failed from error
        finally:
            _note(one, failed)


def service(reference: str) -> KeyService:
    """The process's client of the key `<scheme>:<name>`. Raises `ConfigurationError` where there is no such scheme
    or the name is none of its."""
    with _lock:
        found = _services.get(reference)
    if found is not None:
        return found
    scheme, _, name = reference.partition(":")
    made = _class_of(scheme, reference)(name)
    with _lock:
        return _services.setdefault(reference, made)


@cache
def _given() -> dict[str, type[KeyService]]:
    return {each.name: each.load() for each in entry_points(group=GROUP)}


def _class_of(scheme: str, reference: str) -> type[KeyService]:
    if path := _BUILT_IN.get(scheme):
        module, _, name = path.partition(":")
        return cast("type[KeyService]", getattr(import_module(module), name))
    try:
        return _given()[scheme]
    except KeyError:
        known = ", ".join(f"{each}:…" for each in sorted({*_BUILT_IN, *_given()}))
        raise ConfigurationError(
            f"{reference!r} names no key of a key management service; valid are {known}",
            field="BRIDGE_MASTER_KEY_KMS",
            value=reference,
        ) from None


@dataclass(slots=True)
class _Rest:
    until: float
    error: Unavailable
    asking: bool = False
    """Whether a thread asks again meanwhile."""


_One = tuple[str, str, Place]


def _require_rested(one: _One) -> bool:
    """Raise what was wrong a moment ago; gives whether it is asked whether that is over."""
    reference, now = one[0], time.monotonic()
    with _lock:
        refused = _resting.get(one)
        if refused is not None and now < refused.until:
            raise copy(refused.error)
        rest = _resting.get(reference)
        if rest is None or now >= rest.until + RECENT_S:
            return False
        if now < rest.until or rest.asking:
            raise copy(rest.error)
        rest.asking = True
        return True


def _asked_again(reference: str) -> None:
    with _lock:
        if (rest := _resting.get(reference)) is not None:
            rest.asking = False


def _turns_of(reference: str) -> Turns:
    with _lock:
        return _turns.setdefault(reference, Turns(reference))


def _note(one: _One, error: Unavailable | None) -> None:
    now = time.monotonic()
    with _lock:
        _resting.pop(one, None)
        if error is not None and error.verdict is Verdict.TRANSIENT:
            _resting[one[0]] = _Rest(now + REST_S, error)
            return
        # It answered.
        _resting.pop(one[0], None)
        if error is not None:
            for each in [each for each, rest in _resting.items() if now >= rest.until + RECENT_S]:
                del _resting[each]
            _resting[one] = _Rest(now + REST_S, error)


_lock = threading.Lock()
_services: dict[str, KeyService] = {}
_turns: dict[str, Turns] = {}
_resting: dict[str | _One, _Rest] = {}
"""Services that did not answer, and data keys that one refused: when to ask again, and what was wrong."""


def _forked() -> None:
    # A connection that two processes use gives each the other's answers; a lock may be held by nobody.
    global _lock
    _lock = threading.Lock()
    _services.clear()
    _turns.clear()
    _resting.clear()


os.register_at_fork(after_in_child=_forked)
