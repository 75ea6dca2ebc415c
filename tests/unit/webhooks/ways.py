"""Building a way of verification by its declared settings, as the tests do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from continuitybridge.webhooks.verification import VERIFIERS, Verifier
from continuitybridge.webhooks.verification.base import Example

NOW = 1_790_000_000.0


def way(name: str, **settings: Any) -> Verifier[Any]:
    cls = VERIFIERS[name]
    return cls(cls.Settings.model_validate({"type": name, **settings}))


def verify(found: Verifier[Any], example: Example, *secrets: str, **altered: Any) -> None:
    """Verify an example, altered in these fields, with these secrets or its own."""
    altered = (
        {"headers": {**example.headers, **altered.pop("headers")}, **altered} if "headers" in altered else altered
    )
    request = replace(example, **altered)
    given = secrets or ((example.secret,) if example.secret else ())
    found.verify(request, [found.key(secret) for secret in given], request.at)
