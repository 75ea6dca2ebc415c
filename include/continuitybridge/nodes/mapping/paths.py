"""Paths of a mapping, compiled. RFC 9535 JSONPath; paths that name one place (`$.a.b`, `$['a b'][0]`) run as
plain dictionary look-ups.

`$` is where the mapping stands: the message's body, or one element inside an `itemMapping`. `$body`, `$headers`,
`$vars` and `$message` (`id`, `generation`) are reachable from everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from jsonpath import JSONPathEnvironment
from jsonpath.exceptions import JSONPathError

from continuitybridge.engine.message import Message
from continuitybridge.errors import ConfigurationError, TransformFailed

Getter = Callable[[Any, Message], Any]
"""(where the mapping stands, the message) → the value, None when there is none."""

_ENVIRONMENT = JSONPathEnvironment(strict=True)
_ROOT = re.compile(r"\$(body|headers|vars|message)(?=[.\[]|$)")
_STEP = re.compile(
    r"""\.([A-Za-z_\u0080-\U0010ffff][\w\u0080-\U0010ffff]*)   # .name, as RFC 9535 lets it be written
    |\['([^'\\]*)'\]|\["([^"\\]*)"\]|\[(0|[1-9][0-9]{0,14})\]""",
    re.VERBOSE,
)


def compile_path(text: str, *, field: str) -> Getter:
    """The value at a path: for a path that names one place, what stands there; for any other (wildcards, slices,
    filters), the list of what it finds, None when that is nothing. Raises `ConfigurationError`."""
    root, rest = _split(text, field)
    steps = singular_steps(rest)
    if steps is None:
        return _rooted(root, _general(rest, text, field))
    if all(isinstance(step, str) for step in steps):
        return _rooted(root, _by_names(tuple(map(str, steps))))
    return _rooted(root, _by_steps(tuple(steps)))


def compile_elements(text: str, *, field: str) -> Callable[[Any, Message], list[Any] | None]:
    """The elements that an `arrayPath` selects; None when the list is absent or null. A single value where a
    list is expected (what XML parsers make of one element) counts as a list of one; a trailing `[*]` may be left
    out."""
    root, rest = _split(text, field)
    base = rest.removesuffix("[*]")
    steps = singular_steps(base)
    if steps is None:
        return _rooted(root, _general(rest, text, field))
    get = compile_path(text.removesuffix("[*]"), field=field)

    def elements(here: Any, message: Message) -> list[Any] | None:
        value = get(here, message)
        if value is None or value.__class__ is list:
            return value
        return [value]

    return elements


def singular_steps(text: str) -> list[str | int] | None:
    """The names and indexes of a path that names one place; None for any other."""
    if not text.startswith("$"):
        return None
    steps: list[str | int] = []
    at = 1
    while at < len(text):
        match = _STEP.match(text, at)
        if match is None:
            return None
        dotted, single, double, index = match.groups()
        names = (dotted, single, double)
        steps.append(int(index) if index is not None else next(name for name in names if name is not None))
        at = match.end()
    return steps


def single_name(text: Any) -> str | None:
    """The name, of a path that is just one (`$.sku`)."""
    steps = singular_steps(text) if isinstance(text, str) else None
    return steps[0] if steps is not None and len(steps) == 1 and isinstance(steps[0], str) else None


def _split(text: str, field: str) -> tuple[str, str]:
    """The root's name ("" for here) and the path from it, beginning with $."""
    if not isinstance(text, str) or not text.startswith("$"):
        raise ConfigurationError(
            f"{text!r} is no path: a path begins with $; {{constant: …}} gives a fixed value",
            field=field,
            value=text,
            valid="$.order.id, $.items[*], $['a b']",
        )
    match = _ROOT.match(text)
    return (match[1], "$" + text[match.end() :]) if match else ("", text)


def _rooted(root: str, get: Getter) -> Getter:
    match root:
        case "body":
            return lambda here, message: get(message.body, message)
        case "headers":
            return lambda here, message: get(message.headers, message)
        case "vars":
            return lambda here, message: get(message.vars, message)
        case "message":
            return lambda here, message: get({"id": message.id, "generation": message.generation}, message)
    return get


def _by_names(names: tuple[str, ...]) -> Getter:
    """Unrolled for the common lengths: a mapping is mostly this."""
    match names:
        case ():
            return lambda here, message: here
        case (a,):
            return lambda here, message: here.get(a) if here.__class__ is dict else None
        case (a, b):

            def two(here: Any, message: Message) -> Any:
                if here.__class__ is dict:
                    inner = here.get(a)
                    if inner.__class__ is dict:
                        return inner.get(b)
                return None

            return two

    def many(here: Any, message: Message) -> Any:
        for name in names:
            if here.__class__ is not dict:
                return None
            here = here.get(name)
        return here

    return many


def _by_steps(steps: tuple[str | int, ...]) -> Getter:
    def get(here: Any, message: Message) -> Any:
        for step in steps:
            if isinstance(step, str):
                if here.__class__ is not dict:
                    return None
                here = here.get(step)
            elif here.__class__ is list and step < len(here):
                here = here[step]
            else:
                return None
        return here

    return get


def _general(path: str, text: str, field: str) -> Getter:
    try:
        compiled = _ENVIRONMENT.compile(path)
    except (JSONPathError, RecursionError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ConfigurationError(f"{text!r} is no JSONPath: {reason}", field=field, value=text) from None

    def get(here: Any, message: Message) -> Any:
        if here.__class__ is not dict and here.__class__ is not list:
            return None
        try:
            return compiled.findall(here) or None
        except (JSONPathError, RecursionError, ValueError, TypeError) as error:
            raise TransformFailed(f"{text}: {str(error).splitlines()[0]}", path=text) from None

    return get
