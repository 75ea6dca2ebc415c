"""How an endpoint believes a request: one file per way, found here by the name that a trigger gives.

Knows no database and no web server, so that the trigger's configuration can be checked against it anywhere.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import BeforeValidator, Field

from continuitybridge.webhooks.verification.base import (
    Answer,
    Headers,
    Received,
    VerificationSettings,
    Verifier,
)

DEFAULT = "standard_webhooks"


def _found() -> dict[str, type[Verifier[Any]]]:
    found: dict[str, type[Verifier[Any]]] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("_") or module.name == "base":
            continue
        loaded = import_module(f"{__name__}.{module.name}")
        for value in vars(loaded).values():
            if isinstance(value, type) and issubclass(value, Verifier) and value.__module__ == loaded.__name__:
                found[value.name] = value
    return {name: found[name] for name in sorted(found, key=lambda name: (name != DEFAULT, name))}


VERIFIERS: Mapping[str, type[Verifier[Any]]] = _found()
"""Every way by its name, the default first."""


def _by_type(given: Any) -> Any:
    return {"type": given} if isinstance(given, str) else given


if TYPE_CHECKING:
    AnySettings = VerificationSettings
else:
    _Union = Annotated[
        Union[tuple(verifier.Settings for verifier in VERIFIERS.values())],  # noqa: UP007  (made of what there is)
        Field(discriminator="type"),
    ]
    AnySettings = Annotated[
        _Union, BeforeValidator(_by_type, json_schema_input_type=Literal[tuple(VERIFIERS)] | _Union)
    ]
"""The settings of any way, told by their `type`; the name alone will do."""


def verifier(settings: VerificationSettings) -> Verifier[Any]:
    """The way that these settings are for."""
    return VERIFIERS[settings.type](settings)


__all__ = [
    "DEFAULT",
    "VERIFIERS",
    "Answer",
    "AnySettings",
    "Headers",
    "Received",
    "VerificationSettings",
    "Verifier",
    "verifier",
]
