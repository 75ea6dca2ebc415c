"""Master keys that a key management service keeps: data keys are wrapped and unwrapped by calls to it.

The master key's file then holds no key but the name of one, `<scheme>:<name>`. A service is a class, found by its
scheme: those of this folder, and whatever installed packages give under the entry point group
`continuitybridge.kms` (its name is the scheme, its object a class as `KeyService` says).
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import cast

from continuitybridge.errors import ConfigurationError, Unavailable, Verdict
from continuitybridge.vault.kms.base import KeyService, KeyServiceRefused
from continuitybridge.vault.wrapping import Place

__all__ = ["GROUP", "PREFIX", "KeyService", "KeyServiceRefused", "KmsKey", "service"]

PREFIX = "continuitybridge-kms-1"
GROUP = "continuitybridge.kms"
_BUILT_IN = {
    "aws": "continuitybridge.vault.kms.aws:AwsKms",
    "transit": "continuitybridge.vault.kms.transit:Transit",
}
REST_S = 2.0
"""A service that did not answer is not asked again for so long: who waits for it holds a thread."""


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
        _require_rested(self.reference)
        try:
            return service(self.reference).wrap(key, place.context)
        except Unavailable as error:
            raise _noted(self.reference, error) from error.__cause__

    def unwrap(self, place: Place, wrapped: bytes) -> bytes:
        _require_rested(self.reference)
        try:
            return service(self.reference).unwrap(wrapped, place.context)
        except Unavailable as error:
            raise _noted(self.reference, error) from error.__cause__

    def require_ready(self) -> None:
        """What it unwrapped before goes on while it does not answer."""


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


def _require_rested(reference: str) -> None:
    rest = _resting.get(reference)
    if rest is not None and time.monotonic() < rest[0]:
        raise Unavailable(rest[1], retry_after_s=REST_S)


def _noted(reference: str, error: Unavailable) -> Unavailable:
    if error.verdict is Verdict.TRANSIENT:
        _resting[reference] = (time.monotonic() + REST_S, error.detail)
    return error


_lock = threading.Lock()
_services: dict[str, KeyService] = {}
_resting: dict[str, tuple[float, str]] = {}
"""When a service may be asked again, and what was wrong."""


def _forked() -> None:
    # A connection that two processes use gives each the other's answers; a lock may be held by nobody.
    global _lock
    _lock = threading.Lock()
    _services.clear()


os.register_at_fork(after_in_child=_forked)
