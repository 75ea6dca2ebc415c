"""The search keys that a flow declares (`index`), read from the message on its way.

A key is read where its path first leads to a text, a number or a boolean in a body that is JSON data: right behind
the parser, mostly; behind a later node where only that one makes the form that the path speaks of. One message has
one value per key, the first found. A message that has none is found by the others; reading a key fails no message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from continuitybridge.engine.message import Message
from continuitybridge.errors import BridgeError
from continuitybridge.nodes.language.jq_program import JqProgram

MAX_VALUE_CHARACTERS = 500
"""A longer text is no search key."""

Read = Callable[[Message], Any]

_STEP = re.compile(
    r"""\.([A-Za-z_]\w*) | \.?\["([^"\\]*)"\] | \."([^"\\]*)" | \.?\[([0-9]{1,9})\]""", re.VERBOSE | re.ASCII
)


class Index:
    """The declared keys, compiled. Raises `ConfigurationError` for what is no jq program."""

    def __init__(self, declared: Mapping[str, str]) -> None:
        self._readers = {name: _reader(path, name) for name, path in declared.items()}

    def search(self) -> Search | None:
        """A search for the keys of one message; None when none are declared."""
        return Search(self._readers) if self._readers else None


class Search:
    """Looks for the keys of one message in the forms it takes."""

    __slots__ = ("_missing", "_seen", "found")

    def __init__(self, readers: Mapping[str, Read]) -> None:
        self._missing = dict(readers)
        self._seen: Any = None
        self.found: dict[str, Any] = {}

    def look(self, message: Message) -> None:
        """Read from the message as it is now what has not been found; once for each body."""
        body = message.body
        if body is self._seen or not self._missing or not isinstance(body, dict | list):
            return
        self._seen = body
        for name, read in list(self._missing.items()):
            value = read(message)
            if _is_key(value):
                self.found[name] = value
                del self._missing[name]


def _is_key(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_VALUE_CHARACTERS
    # PostgreSQL takes numbers of any length; nobody searches for those.
    return isinstance(value, bool | float) or (isinstance(value, int) and value.bit_length() <= 128)


def _reader(path: str, name: str) -> Read:
    """What jq says of a path, None where it leads nowhere. Plain paths, which most are, need no jq."""
    steps = _plain_steps(path.strip())
    if steps is not None:
        return lambda message: _follow(message.body, steps)
    program = JqProgram(path, field=name)

    def read(message: Message) -> Any:
        try:
            return program.first(message)
        except BridgeError:
            return None

    return read


def _plain_steps(path: str) -> list[str | int] | None:
    steps: list[str | int] = []
    at = 0
    while at < len(path):
        match = _STEP.match(path, at)
        if match is None or (at == 0 and path[0] != "."):
            return None
        identifier, bracketed, quoted, number = match.groups()
        names = (identifier, bracketed, quoted)
        steps.append(int(number) if number is not None else next(each for each in names if each is not None))
        at = match.end()
    return steps or None


def _follow(here: Any, steps: list[str | int]) -> Any:
    for step in steps:
        if isinstance(step, str):
            if not isinstance(here, dict):
                return None
            here = here.get(step)
        elif isinstance(here, list) and step < len(here):
            here = here[step]
        else:
            return None
    return here
