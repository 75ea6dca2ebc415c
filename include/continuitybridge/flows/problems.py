"""What is wrong with a flow, as people and machines read it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from continuitybridge.errors import ConfigurationError

_LONGEST_NAME = 64
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding. `line` and `column` count from 1; `field` is the path in the source (`steps[2].config.cron`),
    `value` what stands there, `valid` what could stand there, `nearest` the known name most like `value`.
    A `warning` does not stop a deployment."""

    file: str
    line: int
    column: int
    field: str
    value: Any
    message: str
    valid: str = ""
    nearest: str | None = None
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        text = f"{self.file}:{self.line}:{self.column}: {self.severity}: "
        if self.field:
            text += self.field
            if self.value is not None and shown(self.value) not in self.message:
                text += f" = {shown(self.value)}"
            text += ": "
        text += self.message
        if self.nearest is not None:
            text += f"; did you mean {self.nearest!r}?"
        if self.valid:
            text += f" (valid: {self.valid})"
        return text

    def to_dict(self) -> dict[str, Any]:
        """The problem as JSON-able facts."""
        return asdict(self)


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The known name most like a misspelt one, if any is like it."""
    if not isinstance(name, str) or len(name) > _LONGEST_NAME:
        return None
    by_folded = {candidate.casefold().replace("-", "_"): candidate for candidate in known}
    close = difflib.get_close_matches(name.casefold().replace("-", "_"), by_folded, n=1, cutoff=0.6)
    return by_folded[close[0]] if close else None


def shown(value: object) -> str:
    """A value as a message quotes it: cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def refuse(what: str, problems: Iterable[Problem]) -> ConfigurationError:
    """The error that carries the problems (facts: `problems`, a list of JSON-able facts)."""
    problems = list(problems)
    lines = "\n".join(str(problem) for problem in problems)
    return ConfigurationError(f"{what}:\n{lines}", problems=[problem.to_dict() for problem in problems])
