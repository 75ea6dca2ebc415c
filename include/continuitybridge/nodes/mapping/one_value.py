"""One value of a body as it came, for keys that are read before a parser of the flow sees it. What the parsers
take is read here too: a byte order mark, and the charsets of XML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.parsers import expat

from continuitybridge.errors import InvalidPayload
from continuitybridge.nodes.parse.xml_parser import encoding_of

MAX_XML_DEPTH = 200
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def json_of(body: bytes) -> bytes:
    """The JSON text of a body."""
    return body.removeprefix(_BYTE_ORDER_MARK)


def at(value: Any, steps: Sequence[str | int]) -> Any:
    """What stands at a path in JSON data; None for nothing."""
    for step in steps:
        if isinstance(step, str):
            value = value.get(step) if isinstance(value, dict) else None
        else:
            value = value[step] if isinstance(value, list) and step < len(value) else None
    return value


def of_xml(body: bytes, content_type: str, path: str) -> str | None:
    """The text of the first element at `/Order/Id`, without what is around and within, or the attribute at
    `/Order/@id`; names without their namespace, of attributes the one without a prefix before others. None where
    there is none, in a document with a document type declaration, or in one that is nested deeper than
    `MAX_XML_DEPTH` before it. What comes behind is not read."""
    try:
        data, encoding = encoding_of(body, content_type)
        reader = _Reader(path, encoding)
        reader.read(data)
    except _Found as found:
        return found.value.strip()
    except (expat.ExpatError, InvalidPayload, ValueError, LookupError):
        pass
    return None


class _Found(Exception):
    """The value was read: the rest of the document does not matter."""

    def __init__(self, value: str) -> None:
        self.value = value


class _Reader:
    """Reads with Expat: nothing before a document type declaration's first byte can be expanded, nothing is kept
    but the value and how far the path was followed."""

    def __init__(self, path: str, encoding: str | None) -> None:
        *elements, last = path.removeprefix("/").split("/")
        self._attribute = last[1:] if last.startswith("@") else None
        self._wanted = elements if self._attribute is not None else [*elements, last]
        self._depth = 0
        self._matched = 0
        self._texts: list[str] = []
        self._parser = expat.ParserCreate(encoding)
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._doctype
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end

    def read(self, data: bytes) -> None:
        """Raises `_Found`; what Expat raises, or `ValueError`, for what is refused."""
        self._parser.Parse(data, True)

    def _doctype(self, *_: Any) -> None:
        raise ValueError("a document type declaration is refused")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > MAX_XML_DEPTH:
            raise ValueError("nested too deep")
        if self._matched != self._depth - 1 or self._matched == len(self._wanted):
            return
        if _local(name) != self._wanted[self._matched]:
            return
        self._matched += 1
        if self._matched < len(self._wanted):
            return
        if self._attribute is None:
            self._parser.CharacterDataHandler = self._text
            return
        if self._attribute in attributes:
            raise _Found(attributes[self._attribute])
        for given, value in attributes.items():
            # Not what declares a namespace that is called so.
            if _local(given) == self._attribute and not given.startswith("xmlns:"):
                raise _Found(value)

    def _text(self, text: str) -> None:
        if self._depth == len(self._wanted):
            self._texts.append(text)

    def _end(self, name: str) -> None:
        if self._depth == len(self._wanted) == self._matched and self._attribute is None:
            raise _Found("".join(self._texts))
        if self._matched == self._depth:
            self._matched -= 1
        self._depth -= 1


def _local(name: str) -> str:
    return name.rpartition(":")[2]
