"""Secrets that are references: the vault holds where the value is, and it is read when it is used.

A reference is resolved for its own organization only: what stands in it goes behind that organization's prefix,
out of which no path leads. It never falls through: the store that it names has the value, or nobody does. A value
is kept in memory for `BRIDGE_SECRET_BACKEND_CACHE_S`, so that a changed one is used that much later at most.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

import orjson
from cachetools import TTLCache
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from continuitybridge import database
from continuitybridge.errors import ConfigurationError, ReferenceMissing
from continuitybridge.secrets import backends, types
from continuitybridge.settings import get_settings

MAX_KEPT = 2_000
"""Values that a process keeps."""
ABSENT_S = 3.0
"""So long is known that a store has nothing at a path."""
_DESTINATIONS = frozenset(
    {"host", "port", "testurl", "tokenurl", "authorizationurl", "connectionstring", "connectionurl", "brokers"}
)
_PATH = re.compile(r"(?!\.+(/|$))[A-Za-z0-9_.-]+(/(?!\.+(/|$))[A-Za-z0-9_.-]+)*")


class Reference(BaseModel):
    """Where a secret's value is. What the store holds there is a JSON object with the fields of the type, or, with
    `field`, that field alone, as text; `fields` are the others."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    backend: Annotated[str, Field(min_length=1, max_length=64)]
    path: Annotated[str, Field(max_length=200)]
    field: Annotated[str, Field(pattern=r"^[A-Za-z_]{1,64}$")] | None = None
    fields: dict[str, str | int | bool] = {}


@dataclass(frozen=True, slots=True)
class Referred:
    """A version of a secret that is a reference; `TYPE` as of `types.SecretValue`."""

    TYPE: str
    reference: Reference

    def to_json(self) -> bytes:
        return orjson.dumps({"type": self.TYPE, "reference": self.reference.model_dump(exclude_none=True)})

    def shown(self) -> dict[str, Any]:
        """What may be shown."""
        where = f"{self.reference.backend}: {self.reference.path}"
        return {"reference": where, "field": self.reference.field or "(all)", **self.reference.fields}


def parse(type: str, given: Mapping[str, Any]) -> Referred:
    """A reference that may be stored: of a type that there is, to a store that there is, by a path within. Raises
    `ConfigurationError` naming the bad field. Whether there is something is seen when it is used."""
    types.known(type)
    try:
        reference = Reference.model_validate(dict(given))
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}"
            for each in error.errors(include_input=False, include_url=False, include_context=False)
        )
        raise ConfigurationError(f"the reference is not valid: {told}", field="reference") from None
    check_path(reference.path)
    backends.get(reference.backend)
    secret = types.secret_fields(type)
    if reference.field is not None and secret and _named(reference.field) not in map(_named, secret):
        # In any other a value would be shown, or told to whoever is called.
        valid = ", ".join(sorted(secret))
        raise ConfigurationError(
            f"field {reference.field!r} is no secret one of {type}; valid are {valid}",
            field="reference.field",
            value=reference.field,
            valid=valid,
        )
    return Referred(type, reference)


def not_tried(referred: Referred) -> str | None:
    """Why it is not signed in with, where the value of the store would go to, or be shown by, somebody whom the
    author of the reference chose."""
    reference, secret = referred.reference, types.secret_fields(referred.TYPE)
    if chosen := sorted(name for name in reference.fields if _named(name) in _DESTINATIONS):
        return f"a reference that says itself where to ({', '.join(chosen)}) is not tried: the store has to say it"
    if reference.field is not None and secret and _named(reference.field) not in map(_named, secret):
        return f"the field {reference.field!r} is no secret one"
    return None


def _named(field: str) -> str:
    """`test_url` and `testUrl` are one field."""
    return field.replace("_", "").lower()


def read_stored(text: bytes) -> types.SecretValue | Referred:
    """What `to_json` of either gave."""
    stored = orjson.loads(text)
    if "reference" in stored:
        return Referred(stored["type"], Reference.model_validate(stored["reference"]))
    return types.from_json(text)


def value_of(organization_id: UUID, environment: str, name: str, referred: Referred) -> types.SecretValue:
    """What the secret refers to, now. Raises `ReferenceMissing`, `ConfigurationError` where it is no value of the
    type, and `Unavailable`."""
    return value_until(organization_id, environment, name, referred)[0]


def value_until(
    organization_id: UUID, environment: str, name: str, referred: Referred
) -> tuple[types.SecretValue, float]:
    """As `value_of`, and when it is to be read again, in seconds since the epoch."""
    reference = referred.reference
    check_path(reference.path)
    text, until = _read(organization_id, environment, reference.backend, reference.path, name=name)
    return typed(referred.TYPE, text, reference), until


def fetch(
    organization_id: UUID,
    environment: str,
    backend: str,
    path: str,
    *,
    name: str,
    within: bool = True,
) -> str:
    """What the store holds at the path, which begins behind the organization's prefix unless `within` is false:
    only an operator may say so."""
    return _read(organization_id, environment, backend, path, name=name, within=within)[0]


def _read(
    organization_id: UUID, environment: str, backend: str, path: str, *, name: str, within: bool = True
) -> tuple[str, float]:
    store = backends.get(backend)
    key = path
    if within:
        check_path(path)
        key = store.declared.place(organization_id, _slug(organization_id), environment) + path
    now, cache_s = time.time(), get_settings().secret_backend_cache_s
    with _lock:
        found, until = _cache().get((organization_id, backend, key), (None, 0.0))
    if not now < until <= now + cache_s:
        found = store.ask(key)
        # As of when it was asked for; that there is nothing is put right by somebody who waits.
        until = now + (min(cache_s, ABSENT_S) if found is None else cache_s)
        with _lock:
            _cache()[(organization_id, backend, key)] = found, until
    if found is None:
        raise ReferenceMissing(
            f"the secret store {backend!r} has nothing at {path!r}", secret=name, backend=backend, path=path
        )
    return found, until


def typed(type: str, text: str, reference: Reference) -> types.SecretValue:
    """The secret of that type in what a store holds."""
    if reference.field is not None:
        return types.parse(type, {**reference.fields, reference.field: text})
    try:
        found = orjson.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        # Nothing of it is repeated: it may be the secret.
        raise ConfigurationError(
            f"{reference.backend}: {reference.path} holds no JSON object; name the field that it is",
            field="reference.field",
        )
    return types.parse(type, {**reference.fields, **found})


def check_path(path: str) -> None:
    """Raise `ConfigurationError` where a path is none, or leads out of where it stands."""
    if not _PATH.fullmatch(path):
        raise ConfigurationError(
            f"path {path!r} is not valid: parts of letters, digits, _, . and -, joined by /, none of dots alone",
            field="reference.path",
            value=path,
        )


def forget(organization_id: UUID | None = None) -> None:
    """Read everything anew when it is used next, of one organization or of all."""
    with _lock:
        for key in [key for key in _cache() if organization_id in (None, key[0])]:
            _cache().pop(key, None)


def _slug(organization_id: UUID) -> str:
    with database.tenant(organization_id) as connection:
        [(slug,)] = connection.execute(
            "SELECT slug FROM bridge.organizations WHERE organization_id = %s", (organization_id,)
        )
    return str(slug)


def _cache() -> TTLCache[tuple[UUID, str, str], tuple[str | None, float]]:
    global _kept
    if _kept is None:
        _kept = TTLCache(MAX_KEPT, get_settings().secret_backend_cache_s)
    return _kept


_kept: TTLCache[tuple[UUID, str, str], tuple[str | None, float]] | None = None
_lock = threading.Lock()


def _forked() -> None:
    global _lock, _kept
    _lock, _kept = threading.Lock(), None


os.register_at_fork(after_in_child=_forked)
