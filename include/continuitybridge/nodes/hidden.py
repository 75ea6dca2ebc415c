"""What of a credential is to be read nowhere: the value, the parts of it that are secrets themselves, and how they
look in the notations in which a destination, or an error, may say them again.

Where it stops: a part that is a plain word (`Bearer`, the name of a table, of a host) stays, as it would be
missing in every text; it is hidden where its name or its place says that it is a secret.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from html.entities import html5
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
_SECRET_NAME = re.compile(
    r"pass(word|wd|phrase)?$|pwd$|secret|token|(?<!s)key$|sig$|signature|sid$|session|credential", re.I
)
"""Names of what is a secret, in a cookie, a connection string or a query."""
_WORDS = re.compile(r"[^\W_]+")
_PLAIN = re.compile(r"[A-Z]?[a-z]{1,12}(?:[A-Z][a-z]{1,12})?\d{0,3}|[A-Z]{1,12}\d{0,3}|\d{1,5}")
"""A word of a language, or a small number: a token has letters and digits in any order."""
_ESCAPES = "%\\&+"
"""With one of these each notation but the plain one begins."""
_NEVER_ESCAPED = re.compile(r"[0-9A-Za-z]+")


def of_connection(connection: ConnectionInfo) -> tuple[str, ...]:
    """What of a connection's credential is not to be told again, the longest first."""
    auth = connection.auth
    values = [value for name, value in auth.items() if name not in _SAID]
    if auth.get("type") == "basic":
        values.append(f"{auth.get('username', '')}:{auth.get('password', '')}")
    return forms(values)


def forms(values: Iterable[str], *, least: int = LEAST_CHARACTERS, all_parts: bool = False) -> tuple[str, ...]:
    """These values and their parts as they are, percent-encoded, in HTML, JSON and Base64, the longest first; of
    at least so many characters. `all_parts`: those too that are no secrets themselves."""
    found = {form for value in values for each in (value, *parts(value, all=all_parts)) for form in _written(each)}
    return tuple(sorted((each for each in found if len(each) >= least), key=lambda each: (-len(each), each)))


def parts(value: str, *, all: bool = False) -> Iterator[str]:
    """What a value is made of and is a secret itself: a token behind its scheme, cookies, the password in a
    connection string. `all`: scheme, hosts, users and the like too."""
    scheme, _, behind = value.strip().partition(" ")
    for each in _BETWEEN.split(value.strip()):
        name, equals, rest = each.partition("=")
        named = bool(equals and _SECRET_NAME.search(name))
        # The one thing behind a scheme is the credential, however it looks.
        named = named or (each == behind and _is_plain(scheme))
        for part in {each, rest if equals else name, rest.strip("'\"")}:
            if LEAST_OF_PART <= len(part) < len(value) and (all or named or not _is_plain(part)):
                yield part
    if "://" in value:
        yield from _of_url(value, all=all)


def without(text: str, hidden: Iterable[str], mark: str) -> str:
    """The text with `mark` in the place of all that is hidden, also where characters of it are escaped as in JSON,
    HTML or an address."""
    escaped = any(each in text for each in _ESCAPES)
    for each in hidden:
        if each in text:
            text = text.replace(each, mark)
        if escaped:
            anchor, pattern = _escaped(each)
            if pattern is not None and anchor in text:
                text = pattern.sub(mark.replace("\\", r"\\"), text)
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


def _is_plain(part: str) -> bool:
    """Whether a part is words and small numbers: a name, a host, an address."""
    words = _WORDS.findall(part)
    # Licence keys are capitals in groups.
    return all(map(_PLAIN.fullmatch, words)) and (len(words) <= 3 or not part.isupper())


def _of_url(url: str, *, all: bool) -> Iterator[str]:
    try:
        found = urlsplit(url)
        user, password, host = found.username, found.password, found.hostname
    except ValueError:
        return
    given = [password, found.netloc.rpartition("@")[0] if password else None]
    others = [user, host, *found.path.split("/")]
    for name, value in parse_qsl(found.query):
        (given if _SECRET_NAME.search(name) else others).append(value)
    given += [each for each in others if each and (all or not _is_plain(each))]
    for each in given:
        if each:
            yield from {each, unquote(each)}


def _written(value: str) -> Iterator[str]:
    yield value
    for quoted in (quote(value, safe=""), quote_plus(value)):
        yield quoted
        yield re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), quoted)
    yield html.escape(value)
    yield json.dumps(value)[1:-1]
    yield json.dumps(value)[1:-1].replace("/", r"\/")
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    # Unless it stands at an edge of three bytes, its Base64 is another.
    yield base64.b64encode(value.encode(errors="replace")).decode().rstrip("=")


@lru_cache(maxsize=4096)
def _escaped(value: str) -> tuple[str, re.Pattern[str] | None]:
    """The longest run of characters in a value that no notation escapes, and what finds the value whichever of the
    others are escaped; None where there are no others."""
    if _NEVER_ESCAPED.fullmatch(value) or len(value) < LEAST_CHARACTERS:
        return value, None
    anchor = max(_NEVER_ESCAPED.findall(value), key=len, default="")
    return anchor, re.compile("".join(map(_notations, value)))


@lru_cache(maxsize=1024)
def _notations(character: str) -> str:
    """A pattern of one character as it is and as it may be escaped."""
    if _NEVER_ESCAPED.fullmatch(character):
        return character
    units = character.encode("utf-16-be", "surrogatepass").hex()
    unicode = "".join(rf"\\u(?i:{units[at : at + 4]})" for at in range(0, len(units), 4))
    percent = "".join(f"%(?i:{each:02x})" for each in character.encode(errors="surrogatepass"))
    numeric = f"&\\#(?:0*{ord(character)}|(?i:x0*{ord(character):x}));"
    named = [f"&{name}" for name, meant in html5.items() if meant == character and name.endswith(";")]
    plain = [
        character,
        json.dumps(character)[1:-1],
        f"\\{character}",
        *(["+"] if character == " " else []),
        *named,
    ]
    return f"(?:{'|'.join([unicode, percent, numeric, *(re.escape(each) for each in dict.fromkeys(plain))])})"
