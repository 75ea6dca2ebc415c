"""What of a credential is to be read nowhere: the value, its parts, and how either looks in the notations in which
a destination, or an error, may say it again."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

from continuitybridge.nodes.base import ConnectionInfo

LEAST_CHARACTERS = 4
"""A value that is shorter stays: it would be found in every text."""
LEAST_OF_PART = 6
"""The same of what a value is made of."""
_SAID = frozenset({"type", "header", "username"})
"""Of `ConnectionInfo.auth`, what is no secret."""
_BETWEEN = re.compile(r"[\s;,&]+")


def of_connection(connection: ConnectionInfo) -> tuple[str, ...]:
    """What of a connection's credential is not to be told again, the longest first."""
    auth = connection.auth
    values = [value for name, value in auth.items() if name not in _SAID]
    if auth.get("type") == "basic":
        values.append(f"{auth.get('username', '')}:{auth.get('password', '')}")
    return forms(values)


def forms(values: Iterable[str], *, least: int = LEAST_CHARACTERS) -> tuple[str, ...]:
    """These values and their parts as they are, percent-encoded, in HTML, JSON and Base64, the longest first; of
    at least so many characters."""
    found = {form for value in values for each in (value, *parts(value)) for form in _written(each)}
    return tuple(sorted((each for each in found if len(each) >= least), key=lambda each: (-len(each), each)))


def parts(value: str) -> Iterator[str]:
    """What a value is made of: a token behind its scheme, cookies, what stands in a connection string."""
    for each in _BETWEEN.split(value.strip()):
        name, equals, rest = each.partition("=")
        for part in (each, rest if equals else name):
            if LEAST_OF_PART <= len(part) < len(value):
                yield part
    if "://" in value:
        yield from _of_url(value)


def without(text: str, hidden: Iterable[str], mark: str) -> str:
    """The text with `mark` in the place of all that is hidden."""
    for each in hidden:
        if each in text:
            text = text.replace(each, mark)
    return text


def without_any(value: Any, hidden: tuple[str, ...], mark: str) -> Any:
    """As `without` for JSON data: all texts in it, names of fields too. Bytes become text."""
    if not hidden:
        return value
    if isinstance(value, str | bytes):
        return without(value if isinstance(value, str) else value.decode(errors="replace"), hidden, mark)
    if isinstance(value, Mapping):
        return {without(str(name), hidden, mark): without_any(each, hidden, mark) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_any(each, hidden, mark) for each in value]
    return value


def _of_url(url: str) -> Iterator[str]:
    try:
        found = urlsplit(url)
        user, password, host = found.username, found.password, found.hostname
    except ValueError:
        return
    given = [user, password, host, found.netloc.rpartition("@")[0], *found.path.split("/")]
    given += [value for _, value in parse_qsl(found.query)]
    for each in given:
        if each:
            yield from {each, unquote(each)}


def _written(value: str) -> Iterator[str]:
    yield value
    yield quote(value, safe="")
    yield quote_plus(value)
    yield html.escape(value)
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    # Unless it stands at an edge of three bytes, its Base64 is another.
    yield base64.b64encode(value.encode(errors="replace")).decode().rstrip("=")
