"""Collects what is wrong with a configuration while it is compiled, so that its author is told all of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from continuitybridge.errors import ConfigurationError


class Problems:
    """`with problems.noting(): …` keeps a `ConfigurationError` and goes on; `raise_any` raises one for all."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    @contextmanager
    def noting(self) -> Iterator[None]:
        try:
            yield
        except ConfigurationError as error:
            self.note(error)

    def note(self, error: ConfigurationError) -> None:
        facts = error.facts
        self.found += facts.get("problems") or [
            {
                "field": str(facts.get("field") or ""),
                "value": facts.get("value"),
                "message": error.detail,
                "valid": facts.get("valid", ""),
                "nearest": facts.get("nearest", []),
            }
        ]

    def raise_any(self) -> None:
        """Raises `ConfigurationError` with everything noted in `facts["problems"]`."""
        if self.found:
            texts = "; ".join(problem["message"] for problem in self.found)
            raise ConfigurationError(texts, field=self.found[0]["field"], problems=self.found)
