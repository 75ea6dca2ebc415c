"""Conditions: jq expressions that answer yes or no. Plain comparisons run without jq, a hundred times faster,
with the same answers.

The fast path takes `PATH OP LITERAL` and bare `PATH`s joined by `and`, `or` and parentheses, where PATH is
`.a.b`, `."a b"`, `.["a"]` or such a path below `$headers`, `$vars` or `$message`, OP one of `==` `!=` `<` `<=`
`>` `>=`, and LITERAL a string without escapes, a number of up to 15 digits, `true`, `false` or `null`.
Everything else, and every message that leaves what the fast path knows (a field of something that is no
object), is answered by the jq program.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from operator import ge, gt, le, lt
from typing import Any

from continuitybridge.engine.message import Message
from continuitybridge.nodes.language.jq_program import JqProgram

_Test = Callable[[Message], bool]


class Condition:
    """A compiled condition; calling it with a message tells whether it holds.

    It holds when the expression's first output is neither `false` nor `null`; no output means it does not.
    Raises as `JqProgram` does: `ConfigurationError` when built, `InvalidPayload` or `TransformFailed` when
    called.
    """

    __slots__ = ("_fast", "_program", "text")

    def __init__(self, text: str, *, field: str) -> None:
        self.text = text
        self._program = JqProgram(text, field=field)
        self._fast = _Parser(text).parse()

    def __call__(self, message: Message) -> bool:
        if self._fast is not None:
            try:
                return self._fast(message)
            except _Beyond:
                pass
        return self.by_jq(message)

    @property
    def is_fast(self) -> bool:
        """Whether messages of the expected shape are answered without jq."""
        return self._fast is not None

    def by_jq(self, message: Message) -> bool:
        """The answer of jq itself, which the fast path must agree with."""
        result = self._program.first(message)
        return result is not None and result is not False


class Expression:
    """A jq expression that gives a value: its first output, null when it has none. Plain paths are followed
    without jq, with the same answers. Raises as `Condition` does."""

    __slots__ = ("_fetch", "_program", "text")

    def __init__(self, text: str, *, field: str) -> None:
        self.text = text
        self._program = JqProgram(text, field=field)
        plain = _TOKEN.fullmatch(text.strip())
        self._fetch = _fetch(plain["path"] or ".") if plain and plain.lastgroup in ("path", "this") else None

    def __call__(self, message: Message) -> Any:
        if self._fetch is not None:
            try:
                return self._fetch(message)
            except _Beyond:
                pass
        return self._program.first(message)


class _Beyond(Exception):
    """The message is not as the fast path needs it; jq decides."""


_TOKEN = re.compile(
    r"""\s*(?:
    (?P<path>(?:\$(?:headers|vars|message)|(?=\.))
        (?:\.?\["[^"\\]*"\]|\.(?:[A-Za-z_][A-Za-z_0-9]*|"[^"\\]*"))+)
    |(?P<this>\.(?![\w."\[]))
    |(?P<op>==|!=|<=|>=|<|>)
    |(?P<string>"[^"\\\x00-\x1f]*")
    |(?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?![\w.]))
    |(?P<word>and|or|true|false|null)\b
    |(?P<open>\()|(?P<close>\))
    )""",
    re.VERBOSE | re.ASCII,
)
_SEGMENT = re.compile(r'\["([^"\\]*)"\]|\.([A-Za-z_][A-Za-z_0-9]*)|\."([^"\\]*)"')
_MAX_DIGITS = 15
"""Up to so many digits a decimal number and its nearest float order alike against any other float."""
_MAX_DEPTH = 50


class _NotPlain(Exception):
    """The expression is more than the fast path's grammar."""


class _Parser:
    """Recursive descent over `or` > `and` > comparison, the precedence jq gives them."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, str]] = []
        self._at = 0
        self._depth = 0

    def parse(self) -> _Test | None:
        try:
            self._tokenise()
            test = self._either()
            if self._at != len(self._tokens):
                return None
        except _NotPlain:
            return None
        return test

    def _tokenise(self) -> None:
        text, at = self._text.rstrip(), 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None or match.lastgroup is None:
                raise _NotPlain
            self._tokens.append((match.lastgroup, match[match.lastgroup]))
            at = match.end()

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def _take(self) -> tuple[str, str]:
        token = self._peek()
        self._at += 1
        return token

    def _either(self) -> _Test:
        tests = [self._both()]
        while self._peek() == ("word", "or"):
            self._at += 1
            tests.append(self._both())
        return _any_of(tests)

    def _both(self) -> _Test:
        tests = [self._comparison()]
        while self._peek() == ("word", "and"):
            self._at += 1
            tests.append(self._comparison())
        return _all_of(tests)

    def _comparison(self) -> _Test:
        kind, text = self._take()
        if kind == "open":
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise _NotPlain
            test = self._either()
            if self._take()[0] != "close" or self._peek()[0] == "op":
                raise _NotPlain
            self._depth -= 1
            return test
        if kind not in ("path", "this"):
            raise _NotPlain
        fetch = _fetch(text)
        if self._peek()[0] != "op":
            return _truth(fetch)
        operator = self._take()[1]
        return _compare(fetch, operator, self._literal())

    def _literal(self) -> Any:
        kind, text = self._take()
        if kind == "word" and text in ("true", "false", "null"):
            return {"true": True, "false": False, "null": None}[text]
        if kind == "string":
            return text[1:-1]
        if kind == "number" and sum(map(str.isdigit, text)) <= _MAX_DIGITS:
            return json.loads(text)
        raise _NotPlain


def _all_of(tests: list[_Test]) -> _Test:
    if len(tests) == 1:
        return tests[0]
    return lambda message: all(test(message) for test in tests)


def _any_of(tests: list[_Test]) -> _Test:
    if len(tests) == 1:
        return tests[0]
    return lambda message: any(test(message) for test in tests)


_JSON_TYPES = frozenset({str, int, float, bool, type(None), dict, list})
_VARIABLE = re.compile(r"\$\w+")


def _fetch(path: str) -> Callable[[Message], Any]:
    """The value at a path. As in jq a missing field, and a field of null, is null."""
    variable = _VARIABLE.match(path)
    root = variable[0] if variable else ""
    keys = tuple("".join(match.groups("")) for match in _SEGMENT.finditer(path, len(root)))
    if root == "$message":
        return lambda message: _dig({"id": message.id, "generation": message.generation}, keys)
    if root == "$headers":
        return lambda message: _dig(message.headers, keys)
    if root == "$vars":
        return lambda message: _dig(message.vars, keys)
    return lambda message: _dig(message.body, keys)


def _dig(value: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        if type(value) is dict:
            value = value.get(key)
        elif value is not None:
            raise _Beyond
    if type(value) not in _JSON_TYPES:
        raise _Beyond
    if type(value) is float and value - value != 0:
        raise _Beyond  # NaN and infinities are null to jq
    return value


def _truth(fetch: Callable[[Message], Any]) -> _Test:
    def holds(message: Message) -> bool:
        value = fetch(message)
        return value is not None and value is not False

    return holds


_RANK = {type(None): 0, bool: 1, int: 3, float: 3, str: 4, list: 5, dict: 6}
"""jq's order of types: null, false, true, numbers, strings, arrays, objects."""
_ORDERED: dict[str, Callable[[Any, Any], bool]] = {"<": lt, "<=": le, ">": gt, ">=": ge}


def _rank(value: Any) -> int:
    return 2 if value is True else _RANK[type(value)]


def _compare(fetch: Callable[[Message], Any], operator: str, literal: Any) -> _Test:
    rank = _rank(literal)
    if operator in ("==", "!="):
        wanted = operator == "=="

        def equal(message: Message) -> bool:
            value = fetch(message)
            return (_rank(value) == rank and value == literal) is wanted

        return equal
    order = _ORDERED[operator]

    def ordered(message: Message) -> bool:
        value = fetch(message)
        found = _rank(value)
        return order(value, literal) if found == rank and rank >= 3 else order(found, rank)

    return ordered
