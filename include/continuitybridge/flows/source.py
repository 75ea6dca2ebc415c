"""Reads YAML and JSON text into plain data and remembers where everything stood.

YAML is YAML 1.2 with the core schema: `true` and `false` are the only booleans, a date is a text, keys are always
text. Anchors and aliases work and are counted expanded, so that a small file cannot become a large value. JSON is
RFC 8259. Both refuse what JSON cannot say (NaN, infinities, numbers beyond 64 bits, lone surrogates): a flow is
stored and handed on as JSON.
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from continuitybridge.flows.problems import Problem, refuse, shown

MAX_SOURCE_BYTES = 1024 * 1024
"""Largest flow source; larger ones are refused unread."""
MAX_VALUES = 100_000
"""Most values (aliases counted each time they are used) one source may hold."""
MAX_DEPTH = 100
"""Deepest nesting of mappings and lists."""

Path = tuple[str | int, ...]
"""A way into the data: keys and list indexes from the root."""


@dataclass
class Document:
    """Data with its positions: `positions` maps a path to (line, column) of the key, or of the list item, from 1.
    `texts` holds how a number, boolean or null was written. `problems` are findings that leave the rest readable.
    """

    file: str
    data: Any = None
    positions: dict[Path, tuple[int, int]] = field(default_factory=dict)
    texts: dict[Path, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def position(self, path: Path) -> tuple[int, int]:
        """Where the path stands, or the nearest thing around it."""
        while path and path not in self.positions:
            path = path[:-1]
        return self.positions.get(path, (1, 1))

    def problem(self, path: Path, message: str, value: Any = None, **more: Any) -> Problem:
        """A problem at that path."""
        line, column = self.position(path)
        return Problem(self.file, line, column, dotted(path), value, message, **more)


def dotted(path: Path) -> str:
    """`("steps", 2, "config")` as `steps[2].config`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def parse(text: str, file: str) -> Document:
    """Read JSON (a text that begins with `{` and is JSON, or a file named `.json`) or YAML.

    Raises `ConfigurationError` (facts: problems) when the text cannot be read at all.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_SOURCE_BYTES:
        raise _unreadable(file, 1, 1, f"the source has {size} bytes", valid=f"at most {MAX_SOURCE_BYTES} bytes")
    text = text.removeprefix("\ufeff")
    if file.endswith(".json"):
        return _Json(text, file).document
    if text.lstrip().startswith("{"):
        try:
            return _Json(text, file).document
        except _NotJson:
            pass  # a YAML flow mapping may begin like this; its reader says what is wrong
    return _Yaml(text, file).document


class _NotJson(Exception):
    pass


def _unreadable(file: str, line: int, column: int, message: str, **more: Any) -> Exception:
    return refuse("the source cannot be read", [Problem(file, line, column, "", None, message, **more)])


class _Builder:
    """What both readers share: the limits, and which scalars JSON can hold."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.document = Document(file)
        self.values = 0

    def count(self, values: int, line: int, column: int) -> None:
        self.values += values
        if self.values > MAX_VALUES:
            raise _unreadable(
                self.file, line, column, "the source holds too many values", valid=f"at most {MAX_VALUES} values"
            )

    def check_depth(self, path: Path, line: int, column: int) -> None:
        if len(path) >= MAX_DEPTH:
            raise _unreadable(
                self.file, line, column, "the nesting is too deep", valid=f"at most {MAX_DEPTH} levels"
            )

    def key(self, path: Path, known: dict[str, Any], name: str, line: int, column: int) -> Path:
        at = (*path, name)
        if name in known:
            first_line, first_column = self.document.positions[at]
            self.document.problems.append(
                Problem(
                    self.file,
                    line,
                    column,
                    dotted(at),
                    name,
                    f"the key {shown(name)} stands here twice (first in line {first_line}, column {first_column})",
                    valid="each key once",
                )
            )
            # The first one is kept; the second is read to a path of its own and dropped.
            return (*path, f"{name} (again)")
        self.document.positions[at] = (line, column)
        return at

    def storable(self, path: Path, value: Any) -> Any:
        """The scalar, or None with a problem when JSON cannot hold it."""
        message = None
        if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
            message = "this number is not finite"
        elif isinstance(value, int) and not -(2**63) <= value < 2**64:
            message = "this number needs more than 64 bits"
        elif isinstance(value, str) and not value.isascii() and _SURROGATE.search(value):
            message = "this text holds half of a surrogate pair, which is not a character"
        if message is None:
            return value
        self.document.problems.append(self.document.problem(path, message, shown(value)))
        return None


_SURROGATE = re.compile("[\ud800-\udfff]")


# ---------------------------------------------------------------- YAML
def _integer(text: str) -> int:
    """The number, or any that is beyond 64 bits for one that is: converting it would take quadratic time."""
    digits = text.lstrip("+-").lstrip("0")
    return int(text) if len(digits) <= 20 else 2**64


_PLAIN: tuple[tuple[re.Pattern[str], Any], ...] = (
    (re.compile(r"~|null|Null|NULL|"), lambda text: None),
    (re.compile(r"true|True|TRUE"), lambda text: True),
    (re.compile(r"false|False|FALSE"), lambda text: False),
    (re.compile(r"[-+]?[0-9]+"), _integer),
    (re.compile(r"0o[0-7]+"), lambda text: int(text, 8)),
    (re.compile(r"0x[0-9a-fA-F]+"), lambda text: int(text, 16)),
    (re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"), float),
    (re.compile(r"[-+]?\.(?:inf|Inf|INF)"), lambda text: float(text.replace(".", "").lower())),
    (re.compile(r"\.(?:nan|NaN|NAN)"), lambda text: float("nan")),
)
"""The core schema of YAML 1.2.2, section 10.3.2."""
_MAYBE_NOT_TEXT = frozenset("~ntfNTF+-.0123456789")

_TAG = "tag:yaml.org,2002:"
_TAGGED = {"null": (0,), "bool": (1, 2), "int": (3, 4, 5), "float": (3, 6, 7, 8)}


def resolve_plain(text: str) -> Any:
    """What an unquoted YAML scalar means under the core schema."""
    if text and text[0] not in _MAYBE_NOT_TEXT:
        return text
    for pattern, convert in _PLAIN:
        if pattern.fullmatch(text):
            return convert(text)
    return text


class _Yaml(_Builder):
    """Builds from libyaml's events: unlike composing, that takes no C stack, so that depth is ours to limit."""

    def __init__(self, text: str, file: str) -> None:
        super().__init__(file)
        self.anchors: dict[str, tuple[Any, int]] = {}
        try:
            self.events: Iterator[yaml.Event] = iter(yaml.parse(text, Loader=yaml.CSafeLoader))
            next(self.events)  # stream start
            start = next(self.events)
            if isinstance(start, yaml.StreamEndEvent):
                raise _unreadable(file, 1, 1, "the source is empty")
            self.document.data = self.build(next(self.events), ())
            next(self.events)  # document end
            end = next(self.events)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            message = " ".join(part for part in (error.context, error.problem) if part)
            raise _unreadable(file, line, column, f"not YAML: {message}") from None
        except yaml.reader.ReaderError as error:
            at = error.position if isinstance(error.position, int) else 0
            line = text.count("\n", 0, at) + 1
            column = at - (text.rfind("\n", 0, at) + 1) + 1
            raise _unreadable(file, line, column, f"not YAML: {error.reason}") from None
        except UnicodeEncodeError:
            raise _unreadable(file, 1, 1, "not YAML: the text holds half of a surrogate pair") from None
        if not isinstance(end, yaml.StreamEndEvent):
            line, column = _mark(end)
            raise _unreadable(file, line, column, "a second document begins here", valid="one flow per file")

    def build(self, event: yaml.Event, path: Path) -> Any:
        line, column = _mark(event)
        self.document.positions.setdefault(path, (line, column))
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, path, line, column)
        before = self.values
        self.count(1, line, column)
        anchor = event.anchor if isinstance(event, yaml.NodeEvent) else None
        if anchor is not None:
            # Not yet to be referred to: a value cannot contain itself.
            self.anchors.pop(anchor, None)
        value: Any
        if isinstance(event, yaml.ScalarEvent):
            value = self.scalar(event, path)
        elif isinstance(event, yaml.SequenceStartEvent):
            self.tag(event, "seq", path)
            self.check_depth(path, line, column)
            value = []
            while not isinstance(item := next(self.events), yaml.SequenceEndEvent):
                value.append(self.build(item, (*path, len(value))))
        elif isinstance(event, yaml.MappingStartEvent):
            self.tag(event, "map", path)
            self.check_depth(path, line, column)
            value = self.mapping(path)
        else:
            raise _unreadable(self.file, line, column, "a value must stand here")
        if anchor is not None:
            self.anchors[anchor] = (value, self.values - before)
        return value

    def mapping(self, path: Path) -> dict[str, Any]:
        value: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            line, column = _mark(event)
            name = self.key_text(event, path, line, column)
            if name == "<<" and isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
                self.document.problems.append(
                    Problem(
                        self.file,
                        line,
                        column,
                        dotted((*path, name)),
                        name,
                        "YAML 1.2 has no merge keys",
                        valid="the keys themselves",
                    )
                )
            at = self.key(path, value, name, line, column)
            item = self.build(next(self.events), at)
            value.setdefault(name, item)
        return value

    def key_text(self, event: yaml.Event, path: Path, line: int, column: int) -> str:
        if isinstance(event, yaml.AliasEvent):
            known = self.alias(event, path, line, column)
            if isinstance(known, str):
                return known
        elif isinstance(event, yaml.ScalarEvent):
            if event.anchor is not None:
                self.anchors[event.anchor] = (event.value, 1)
            return str(self.storable(path, event.value) or "")
        raise _unreadable(self.file, line, column, "a key must be a text")

    def alias(self, event: yaml.AliasEvent, path: Path, line: int, column: int) -> Any:
        if event.anchor not in self.anchors:
            raise _unreadable(self.file, line, column, f"the alias *{event.anchor} refers to nothing before it")
        value, weight = self.anchors[event.anchor]
        self.count(weight, line, column)
        return value

    def scalar(self, event: yaml.ScalarEvent, path: Path) -> Any:
        text = event.value
        tag = event.tag
        if tag is None or tag == "!":
            value = resolve_plain(text) if event.implicit[0] else text
        elif tag == _TAG + "str":
            value = text
        else:
            patterns = _TAGGED.get(tag.removeprefix(_TAG), ()) if tag.startswith(_TAG) else ()
            for index in patterns:
                if _PLAIN[index][0].fullmatch(text):
                    value = _PLAIN[index][1](text)
                    if tag == _TAG + "float":
                        value = float(value)
                    break
            else:
                self.document.problems.append(
                    self.document.problem(
                        path,
                        f"the tag {shown(tag)} does not fit {shown(text)}",
                        text,
                        valid="no tag, or !!str, !!int, !!float, !!bool, !!null with a fitting value",
                    )
                )
                value = text
        if not isinstance(value, str):
            self.document.texts[path] = text
        return self.storable(path, value)

    def tag(self, event: yaml.CollectionStartEvent, kind: str, path: Path) -> None:
        if event.tag not in (None, "!", _TAG + kind):
            self.document.problems.append(
                self.document.problem(path, f"the tag {shown(event.tag)} has no meaning here", valid="no tag")
            )


def _mark(event: yaml.Event) -> tuple[int, int]:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


# ---------------------------------------------------------------- JSON
_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_CONSTANTS = {"t": ("true", True), "f": ("false", False), "n": ("null", None)}


class _Json(_Builder):
    """A reader of RFC 8259 that knows where it is; the standard library's tells only where it failed."""

    def __init__(self, text: str, file: str) -> None:
        super().__init__(file)
        self.text = text
        self.at = 0
        self.line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self.decoder = json.JSONDecoder()
        self.document.data = self.build(())
        self.space()
        if self.at != len(text):
            raise self.wrong("more text after the end of the value")

    def place(self, at: int) -> tuple[int, int]:
        line = bisect.bisect_right(self.line_starts, at)
        return line, at - self.line_starts[line - 1] + 1

    def wrong(self, message: str, at: int | None = None) -> Exception:
        line, column = self.place(self.at if at is None else at)
        if self.file.endswith(".json"):
            return _unreadable(self.file, line, column, f"not JSON: {message}")
        return _NotJson(message)

    def space(self) -> str:
        if match := _SPACE.match(self.text, self.at):
            self.at = match.end()
        return self.text[self.at : self.at + 1]

    def take(self, character: str) -> bool:
        if self.space() == character:
            self.at += 1
            return True
        return False

    def build(self, path: Path) -> Any:
        first = self.space()
        line, column = self.place(self.at)
        self.document.positions.setdefault(path, (line, column))
        self.count(1, line, column)
        if first == "{":
            self.check_depth(path, line, column)
            return self.object(path)
        if first == "[":
            self.check_depth(path, line, column)
            return self.array(path)
        if first == '"':
            return self.storable(path, self.string())
        return self.scalar(first, path)

    def object(self, path: Path) -> dict[str, Any]:
        value: dict[str, Any] = {}
        self.at += 1
        if self.take("}"):
            return value
        while True:
            if self.space() != '"':
                raise self.wrong("a key in double quotes must stand here")
            line, column = self.place(self.at)
            name = str(self.storable(path, self.string()) or "")
            if not self.take(":"):
                raise self.wrong("a colon must stand here")
            at = self.key(path, value, name, line, column)
            item = self.build(at)
            value.setdefault(name, item)
            if self.take("}"):
                return value
            if not self.take(","):
                raise self.wrong("a comma or a closing brace must stand here")

    def array(self, path: Path) -> list[Any]:
        value: list[Any] = []
        self.at += 1
        if self.take("]"):
            return value
        while True:
            value.append(self.build((*path, len(value))))
            if self.take("]"):
                return value
            if not self.take(","):
                raise self.wrong("a comma or a closing bracket must stand here")

    def string(self) -> str:
        try:
            value, self.at = self.decoder.raw_decode(self.text, self.at)
        except json.JSONDecodeError as error:
            raise self.wrong(error.msg, error.pos) from None
        return str(value)

    def scalar(self, first: str, path: Path) -> Any:
        word, constant = _CONSTANTS.get(first, ("", None))
        if word and self.text.startswith(word, self.at):
            self.document.texts[path] = word
            self.at += len(word)
            return constant
        match = _NUMBER.match(self.text, self.at)
        if match is None:
            raise self.wrong("a value must stand here")
        self.at = match.end()
        self.document.texts[path] = match[0]
        if match[1] or match[2]:
            return self.storable(path, float(match[0]))
        return self.storable(path, _integer(match[0]))
