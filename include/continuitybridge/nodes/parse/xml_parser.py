"""XML text to values, in the shape that users of older flows know (that of fast-xml-parser).

Reads with Expat, not lxml: Expat stops at the first byte of a document type declaration, before anything in it
is looked at, checks depth element by element, and keeps nothing behind; libxml2 interns every element name for
the life of the thread, so that a sender of ever new names could fill a worker's memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NoReturn
from xml.parsers import expat

from pydantic import Field, field_validator

from continuitybridge.engine.message import Message
from continuitybridge.errors import InvalidPayload, LimitExceeded
from continuitybridge.nodes import _legacy
from continuitybridge.nodes.base import BuildContext, Example, Node, NodeConfig, RunContext, hints
from continuitybridge.nodes.parse._text import payload_bytes

_SEPARATOR = "\x1f"
"""Between namespace and name in what Expat reports; no XML document can hold this character."""

_DECLARATION = re.compile(
    rb"""(?:\xef\xbb\xbf)?<\?xml\s+version\s*=\s*["'](?P<version>[\w.]+)["']"""
    rb"""(?:\s+encoding\s*=\s*["'](?P<encoding>[A-Za-z][\w.-]*)["'])?"""
    rb"""(?:\s+standalone\s*=\s*["'](?P<standalone>yes|no)["'])?\s*\?>"""
)
_CHARSET = re.compile(r""";\s*charset\s*=\s*"?([\w.:-]+)"?""", re.IGNORECASE)
_BOMS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_EXPAT_READS = frozenset({"utf-8", "utf8", "utf-16", "iso-8859-1", "latin1", "us-ascii", "ascii"})
_PYTHON_READS = re.compile(
    r"(?:windows-|cp)125\d|cp\d{3}|iso-8859-\d{1,2}|latin\d|koi8-[ru]|gb2312|gbk|gb18030|big5|shift[_-]jis|"
    r"euc-(?:jp|kr)|macintosh|utf-16[bl]e|utf-32",
    re.IGNORECASE,
)
"""Character sets that Python decodes here: tables only, no codec that computes or unpacks."""

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
_MAX_DIGITS = 15
"""A double keeps so many decimal digits; longer numbers are identifiers more often than amounts."""
_MAX_NUMBER_CHARACTERS = _MAX_DIGITS + 2
_LITERALS = {"true": True, "false": False}


class XmlParserConfig(NodeConfig):
    attribute_prefix: str = Field(default="@_", description="Put in front of an attribute's name to make its key.")
    text_key: str = Field(
        default="#text",
        min_length=1,
        description="Key of an element's text where the element has attributes or child elements as well.",
    )
    attributes: Literal["keep", "ignore"] = Field(default="keep", description="Whether attributes are read.")
    namespaces: Literal["remove", "keep"] = Field(
        default="remove",
        description="`remove` drops prefixes and declarations: `o:Order` becomes `Order`. `keep` leaves names as "
        "written and declarations as attributes.",
    )
    lists: list[str] = Field(
        default_factory=list,
        description="Elements that always make a list, also when only one is there: a name (`Item`) or a path "
        "from the root (`Order/Items/Item`), spelt as in the result.",
        json_schema_extra=hints(placeholder="Order/Items/Item"),
    )
    typed_values: bool = Field(
        default=False,
        description="Turn element text that is a plain decimal number, `true` or `false` into that value. Leading "
        "zeros, a plus sign, exponents and more than 15 digits keep text text.",
    )
    trim: bool = Field(default=True, description="Remove white space around text.")
    declaration: bool = Field(
        default=False, description="Add the XML declaration as `?xml` beside the root element."
    )

    @field_validator("lists")
    @classmethod
    def _paths_have_names(cls, paths: list[str]) -> list[str]:
        for path in paths:
            if not all(path.split("/")):
                raise ValueError(f"{path!r} is not an element's name or a path of names joined by /")
        return paths


class XmlParser(Node[XmlParserConfig]):
    """Reads the payload as one XML 1.0 document with namespaces and passes it on as objects, lists and text.

    **Shape.** The result is an object with one key, the root element. An element becomes its text if it has
    nothing else (`""` when empty), otherwise an object: one key per attribute (with `attribute_prefix`), one per
    child element name, and `text_key` for text beside them. Elements of one name become a list in document
    order when there are several; name them in `lists` to get a list always. Comments and processing instructions
    are skipped, CDATA is text. The order of different elements among each other is not kept; text between child
    elements is joined.

    **Values are text.** `00123` stays `"00123"` and a GTIN keeps its digits. `typed_values` turns plain numbers
    and booleans into values, except where that would change an identifier.

    **Safe by construction.** A document type declaration is refused before it is read: there are no entities
    to expand and no files or addresses to fetch. Only the five entities of XML and character references exist.
    Nesting deeper than `BRIDGE_MAX_NESTING_DEPTH` fails the message.

    **Encodings.** A byte order mark wins, then the `charset` of the content type, then the XML declaration, then
    UTF-8 (RFC 7303). UTF-8, UTF-16, ISO-8859, Windows and the common East Asian sets are read.

    Older flows' keys are read on import: `attributeNamePrefix`, `textNodeName`, `ignoreAttributes`,
    `removeNSPrefix`, `ignoreDeclaration`. They get `typed_values: true`, since the parser behind them converted;
    unlike that one, `007` stays text.
    """

    type = "xml_parser"
    category = "parse"
    label = "Parse XML"
    summary = "Reads an XML document into objects, lists and text; refuses DTDs and entities."
    Config = XmlParserConfig
    examples = (
        Example(
            "An order",
            config={},
            input=b'<o:Order xmlns:o="urn:example:order" version="1"><o:Id>PO-1</o:Id>'
            b"<o:Item><Sku>A</Sku></o:Item><o:Item><Sku>B</Sku></o:Item></o:Order>",
            output={"Order": {"@_version": "1", "Id": "PO-1", "Item": [{"Sku": "A"}, {"Sku": "B"}]}},
        ),
        Example(
            "A list even of one",
            config={"lists": ["Order/Item"], "typed_values": True},
            input=b'<Order><Item zip="08001"><Qty unit="EA">2</Qty></Item></Order>',
            output={"Order": {"Item": [{"@_zip": "08001", "Qty": {"@_unit": "EA", "#text": 2}}]}},
        ),
        Example(
            "Names as written",
            config={"namespaces": "keep"},
            input=b'<o:Order xmlns:o="urn:example:order"><o:Id>PO-1</o:Id></o:Order>',
            output={"o:Order": {"@_xmlns:o": "urn:example:order", "o:Id": "PO-1"}},
        ),
        Example(
            "Entities are refused",
            config={},
            input=b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
            fails="invalid-payload",
        ),
    )

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        old = not _legacy.has_any(config, XmlParserConfig.model_fields)
        ours = _legacy.renamed(
            config,
            {
                "attributeNamePrefix": "attribute_prefix",
                "textNodeName": "text_key",
                "parseTagValue": "typed_values",
                "trimValues": "trim",
            },
        )
        _legacy.flag(ours, "ignoreAttributes", "attributes", {True: "ignore", False: "keep"})
        _legacy.flag(ours, "removeNSPrefix", "namespaces", {True: "remove", False: "keep"})
        _legacy.flag(ours, "ignoreDeclaration", "declaration", {True: False, False: True})
        if old:
            ours.setdefault("typed_values", True)
        return ours

    def build(self, context: BuildContext) -> None:
        self._list_names = frozenset(path for path in self.config.lists if "/" not in path)
        self._list_paths = frozenset(path for path in self.config.lists if "/" in path)

    def process(self, message: Message, context: RunContext) -> Message:
        data = payload_bytes(message.body, "XML")
        reader = _Reader(self.config, self._list_names, self._list_paths, context.max_nesting_depth)
        if isinstance(message.body, str):
            encoding: str | None = "utf-8"
        else:
            data, encoding = encoding_of(data, message.headers.get("content-type", ""))
        value = reader.read(data, encoding)
        if self.config.declaration:
            value = {**_declaration(data, self.config), **value}
        message.body = value
        return message


class _Reader:
    """Builds the value of one document from Expat's events.

    `_value` is the element being read; `_texts` its text since the last tag, filled by Expat directly; `_above`
    the elements around it, each with the pieces of text before (in a list: gluing text to text for each child
    would take time by the square of their number).
    """

    __slots__ = (
        "_above",
        "_config",
        "_declared",
        "_keep",
        "_list_names",
        "_list_paths",
        "_max_depth",
        "_path",
        "_pieces",
        "_texts",
        "_value",
    )

    def __init__(
        self, config: XmlParserConfig, list_names: frozenset[str], list_paths: frozenset[str], max_depth: int
    ) -> None:
        self._config = config
        self._list_names = list_names
        self._list_paths = list_paths
        self._max_depth = max_depth
        self._keep = config.namespaces == "keep"
        self._value: dict[str, Any] = {}
        self._pieces: list[str] = []
        self._texts: list[str] = []
        self._above: list[tuple[dict[str, Any], list[str]]] = []
        self._path: list[str] = []
        self._declared: dict[str, str] = {}

    def read(self, data: bytes, encoding: str | None) -> dict[str, Any]:
        parser = expat.ParserCreate(encoding, _SEPARATOR)
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = _refuse_doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._texts.append
        if self._keep:
            parser.namespace_prefixes = True
            parser.StartNamespaceDeclHandler = self._declare
        try:
            parser.Parse(data, True)
        except expat.ExpatError as error:
            raise _refusal(error) from None
        except (ValueError, LookupError) as error:  # an encoding that Expat does not read
            raise InvalidPayload(f"the document's encoding is not readable: {error}") from None
        return self._value

    def _name(self, reported: str) -> str:
        if not self._keep:
            return reported.rpartition(_SEPARATOR)[2]
        parts = reported.split(_SEPARATOR)
        return f"{parts[2]}:{parts[1]}" if len(parts) == 3 else parts[-1]

    def _start(self, reported: str, attributes: dict[str, str]) -> None:
        if self._texts:
            self._pieces += self._texts
            self._texts.clear()
        above = self._above
        above.append((self._value, self._pieces))
        if len(above) > self._max_depth:
            raise LimitExceeded(
                f"the document is nested more than {self._max_depth} levels deep",
                limit="max_nesting_depth",
                allowed=self._max_depth,
                found=len(above),
            )
        value: dict[str, Any] = {}
        self._value = value
        self._pieces = []
        if self._list_paths:
            self._path.append(self._name(reported))
        if self._declared or attributes:
            self._read_attributes(value, attributes)

    def _read_attributes(self, value: dict[str, Any], attributes: dict[str, str]) -> None:
        if self._config.attributes == "ignore":
            return
        prefix = self._config.attribute_prefix
        for name, uri in self._declared.items():
            value[prefix + name] = uri
        self._declared.clear()
        for name, content in attributes.items():
            key = prefix + self._name(name)
            if key in value:
                _add(value, key, content)
            else:
                value[key] = content

    def _end(self, reported: str) -> None:
        texts = self._texts
        if self._pieces:
            self._pieces += texts
            text: Any = "".join(self._pieces)
        else:
            text = "".join(texts)
        texts.clear()
        value: Any = self._value
        if text:
            config = self._config
            if config.trim:
                text = text.strip()
            elif value and not text.strip():
                text = ""
            if config.typed_values:
                text = _typed(text)
            if value and text != "":
                value[config.text_key] = text
        if not value:
            value = text
        parent, self._pieces = self._above.pop()
        self._value = parent
        name = self._name(reported) if self._keep else reported.rpartition(_SEPARATOR)[2]
        if name in parent:
            _add(parent, name, value)
        elif name in self._list_names or (self._list_paths and "/".join(self._path) in self._list_paths):
            parent[name] = [value]
        else:
            parent[name] = value
        if self._list_paths:
            self._path.pop()

    def _declare(self, prefix: str | None, uri: str | None) -> None:
        self._declared[f"xmlns:{prefix}" if prefix else "xmlns"] = uri or ""


def _add(parent: dict[str, Any], name: str, value: Any) -> None:
    present = parent[name]
    if present.__class__ is list:
        present.append(value)
    else:
        parent[name] = [present, value]


def _typed(text: str) -> Any:
    if text in _LITERALS:
        return _LITERALS[text]
    if len(text) > _MAX_NUMBER_CHARACTERS or not _NUMBER.fullmatch(text):
        return text
    if sum(character.isdigit() for character in text) > _MAX_DIGITS:
        return text
    return float(text) if "." in text else int(text)


def encoding_of(data: bytes, content_type: str) -> tuple[bytes, str | None]:
    """The document and the encoding to tell Expat, None where the declaration tells it (RFC 7303, 3)."""
    for mark, marked in _BOMS.items():
        if data.startswith(mark):
            return data, marked
    charset = _CHARSET.search(content_type)
    declared = None if charset else _DECLARATION.match(data)
    name = charset[1] if charset else (declared["encoding"] or b"").decode() if declared else ""
    if not name or name.lower() in _EXPAT_READS:
        return data, name.lower() if charset else None
    if not _PYTHON_READS.fullmatch(name):
        raise InvalidPayload(f"the encoding {name!r} is not one that is read here", encoding=name)
    try:
        return data.decode(name).removeprefix("\ufeff").encode(), "utf-8"
    except LookupError:
        raise InvalidPayload(f"the encoding {name!r} is not one that is read here", encoding=name) from None
    except UnicodeError as error:
        raise InvalidPayload(f"the payload is not {name}: {error}", encoding=name) from None


def _declaration(data: bytes, config: XmlParserConfig) -> dict[str, Any]:
    found = _DECLARATION.match(data)
    if found is None:
        return {}
    if config.attributes == "ignore":
        return {"?xml": ""}
    return {
        "?xml": {config.attribute_prefix + key: text.decode() for key, text in found.groupdict().items() if text}
    }


def _refuse_doctype(*_: Any) -> NoReturn:
    raise InvalidPayload("the document has a document type declaration (<!DOCTYPE>), which is refused")


def _refusal(error: expat.ExpatError) -> InvalidPayload:
    reason = expat.ErrorString(error.code) or "not well-formed"
    line, column = error.lineno, error.offset + 1
    return InvalidPayload(f"line {line}, column {column}: {reason}", line=line, column=column)
