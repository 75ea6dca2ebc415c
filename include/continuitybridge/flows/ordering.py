"""The order of messages that belong together: which they are, and what a dead letter among them means."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from xml.parsers import expat

from continuitybridge.errors import ConfigurationError, InvalidPayload
from continuitybridge.nodes.language import json_text
from continuitybridge.nodes.mapping.paths import singular_steps
from continuitybridge.nodes.parse.xml_parser import encoding_of

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
_SEPARATOR = "\x0c"
"""Between namespace and name in what Expat reports; no XML document can hold this character."""


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
            names = tuple(key[1:].split("/"))
            return lambda body, headers: _shortened(_of_xml(body, headers, names))
    elif _HEADER.fullmatch(key):
        name = key.lower()
        return lambda body, headers: _shortened(headers.get(name))
    raise ConfigurationError(
        f"{key!r} names no place of a key; valid: {VALID_KEY}", field="key", value=key, valid=VALID_KEY
    )


def _of_json(body: bytes, steps: list[str | int]) -> str | None:
    try:
        here: Any = json_text.loads(body.decode())
    except ValueError:
        return None
    for step in steps:
        if isinstance(step, str):
            here = here.get(step) if isinstance(here, dict) else None
        else:
            here = here[step] if isinstance(here, list) and step < len(here) else None
    if isinstance(here, bool | int | float):
        return json_text.dumps(here)
    return here if isinstance(here, str) else None


class _Found(Exception):
    pass


def _of_xml(body: bytes, headers: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    """The text of the first element of these local names, or its attribute; what comes behind it is not read."""
    attribute = names[-1][1:] if names[-1].startswith("@") else None
    elements = names[:-1] if attribute is not None else names
    above: list[str] = []
    texts: list[str] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        above.append(name.rpartition(_SEPARATOR)[2])
        if tuple(above) == elements and attribute is not None and attribute in attributes:
            texts.append(attributes[attribute])
            raise _Found

    def end(name: str) -> None:
        if tuple(above) == elements and attribute is None:
            raise _Found
        above.pop()

    def text(data: str) -> None:
        if attribute is None and tuple(above) == elements:
            texts.append(data)

    def refuse(*_: Any) -> None:
        raise InvalidPayload("the document has a document type declaration")

    try:
        data, encoding = encoding_of(body, headers.get("content-type", ""))
        parser = expat.ParserCreate(encoding, _SEPARATOR)
        parser.StartElementHandler = start
        parser.EndElementHandler = end
        parser.CharacterDataHandler = text
        parser.StartDoctypeDeclHandler = refuse
        parser.Parse(data, True)
    except _Found:
        return "".join(texts).strip()
    except (expat.ExpatError, InvalidPayload, ValueError, LookupError):
        return None
    return None


def _shortened(key: str | None) -> str | None:
    """The key as a database takes it: no NUL, no lone surrogates, of bounded length."""
    if not key:
        return None
    if len(key) > MAX_KEY_CHARACTERS:
        return "sha256:" + hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
    return key.encode(errors="replace").decode().replace("\x00", "\ufffd")
