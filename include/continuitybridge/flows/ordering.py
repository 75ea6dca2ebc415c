"""The order of messages that belong together: which they are, and what a dead letter among them means."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from continuitybridge.errors import ConfigurationError
from continuitybridge.nodes.language import json_text
from continuitybridge.nodes.mapping import one_value
from continuitybridge.nodes.mapping.paths import singular_steps

HOLD = "hold"
"""At its head's dead letter a key waits until somebody replays or discards it."""
CONTINUE = "continue"
"""At its head's dead letter a key goes on with the next message."""
AFTER_DEAD_LETTER = (HOLD, CONTINUE)

MAX_KEY_CHARACTERS = 200
"""A longer key is told apart by its hash."""

VALID_KEY = "a header's name (x-order-id), a path into JSON ($.order.id) or into XML (/Order/Id, /Order/@id)"

KeyReader = Callable[[bytes, Mapping[str, str]], str | None]
"""(body, headers with lower-case names) → the key, None for a message that has none."""

_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_ELEMENTS = re.compile(r"(?:/[\w.-]+)+(?:/@[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Ordering:
    """Messages with one value of `key` run one after the other, in the order in which they were accepted."""

    key: str
    after_dead_letter: str = HOLD

    def written(self) -> dict[str, str]:
        """As every format holds it."""
        return {"key": self.key, "after_dead_letter": self.after_dead_letter}


@lru_cache(maxsize=1024)
def key_reader(key: str) -> KeyReader:
    """What reads a message's key. Raises `ConfigurationError` for what is no place of a key.

    The reader never raises: a body that is not in the format, or has nothing or no single value there, has no key.
    Numbers and booleans count as they are written in JSON. It reads the body anew, so that it costs what parsing
    costs.
    """
    if key.startswith("$"):
        steps = singular_steps(key)
        if steps:
            return lambda body, headers: _shortened(_of_json(body, steps))
    elif key.startswith("/"):
        if _ELEMENTS.fullmatch(key):
            return lambda body, headers: _shortened(one_value.of_xml(body, headers.get("content-type", ""), key))
    elif _HEADER.fullmatch(key):
        name = key.lower()
        return lambda body, headers: _shortened(headers.get(name))
    raise ConfigurationError(
        f"{key!r} names no place of a key; valid: {VALID_KEY}", field="key", value=key, valid=VALID_KEY
    )


def _of_json(body: bytes, steps: list[str | int]) -> str | None:
    try:
        here = one_value.at(json_text.loads(one_value.json_of(body).decode()), steps)
    except ValueError:
        return None
    if isinstance(here, bool | int | float):
        return json_text.dumps(here)
    return here if isinstance(here, str) else None


def _shortened(key: str | None) -> str | None:
    """The key as a database takes it: no NUL, no lone surrogates, of bounded length."""
    if not key:
        return None
    if len(key) > MAX_KEY_CHARACTERS:
        return "sha256:" + hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
    return key.encode(errors="replace").decode().replace("\x00", "\ufffd")
