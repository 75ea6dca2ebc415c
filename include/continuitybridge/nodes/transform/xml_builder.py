"""Values to XML text, the inverse of `xml_parser`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from continuitybridge.engine.message import Message
from continuitybridge.errors import InvalidPayload
from continuitybridge.nodes import _legacy
from continuitybridge.nodes.base import Example, Node, NodeConfig, RunContext, hints

_START = (
    "A-Z_a-z\xc0-\xd6\xd8-\xf6\xf8-\u02ff\u0370-\u037d\u037f-\u1fff\u200c-\u200d\u2070-\u218f\u2c00-\u2fef"
    "\u3001-\ud7ff\uf900-\ufdcf\ufdf0-\ufffd\U00010000-\U000effff"
)
_NC_NAME = f"[{_START}][{_START}0-9.\xb7\u0300-\u036f\u203f-\u2040-]*"
_QNAME = re.compile(f"(?:({_NC_NAME}):)?({_NC_NAME})")
_PREFIX = re.compile(_NC_NAME)
_C = r"(?:[A-Za-z0-9._~!$&'()*+,;=@-]|%[0-9A-Fa-f]{2})"
_URI = re.compile(
    rf"""
    (?: [A-Za-z][A-Za-z0-9+.-]*: | (?!{_C}*:) )  # without a scheme no colon before the first slash
    (?: //[A-Za-z0-9._~-]+(?::[0-9]{{1,5}})?(?=[/?\#]|$) | (?!//) )  # host and port
    (?: {_C}|[/:] )*
    (?: \?(?:{_C}|[/:?])* )?
    (?: \#(?:{_C}|[/:?])* )?
    """,
    re.VERBOSE,
)
"""RFC 3986, without user names and literal addresses. Relative ones are deprecated as namespaces, and in use."""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML 1.0 document may hold, not even escaped."""

_TEXT_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"})
_TO_ESCAPE = re.compile("[&<>\r]")
_ATTRIBUTE_ESCAPES = str.maketrans(
    {
        "&": "&amp;",
        "<": "&lt;",
        ">": "&gt;",
        '"': "&quot;",
        "\t": "&#9;",
        "\n": "&#10;",
        "\r": "&#13;",
    }
)
_XML_URI = "http://www.w3.org/XML/1998/namespace"
_XMLNS_URI = "http://www.w3.org/2000/xmlns/"
_XSI_URI = "http://www.w3.org/2001/XMLSchema-instance"


class XmlBuilderConfig(NodeConfig):
    root: str | None = Field(
        default=None,
        description="Name of the root element, put around the value. Without it the value must be an object with "
        "one key, which is the root.",
        json_schema_extra=hints(placeholder="o:Order"),
    )
    namespaces: dict[str, str] = Field(
        default_factory=dict,
        description='Prefix → namespace, declared on the root; the empty prefix `""` is the default namespace.',
    )
    attribute_prefix: str = Field(default="@_", min_length=1, description="Keys that begin so become attributes.")
    text_key: str = Field(
        default="#text", min_length=1, description="Key whose value is the text of the element it stands in."
    )
    item: str = Field(
        default="item", description="Element name for values in a list that stands directly in a list."
    )
    nulls: Literal["omit", "empty", "nil"] = Field(
        default="omit",
        description='What null becomes: nothing, an empty element, or an empty element with `xsi:nil="true"`.',
    )
    declaration: bool = Field(default=True, description="Begin with the XML declaration.")
    pretty: bool = Field(
        default=False, description="Each element on a line of its own; elements with text stay on one."
    )
    indent: int = Field(default=2, ge=1, le=8, description="Spaces per level of `pretty` text.")

    @field_validator("namespaces")
    @classmethod
    def _bindable(cls, namespaces: dict[str, str]) -> dict[str, str]:
        for prefix, uri in namespaces.items():
            _check_binding(prefix, uri)
        return namespaces

    @model_validator(mode="after")
    def _names(self) -> XmlBuilderConfig:
        known = {*self.namespaces, "xml"}
        for field in ("root", "item"):
            name = getattr(self, field)
            if name is None:
                continue
            match = _QNAME.fullmatch(name)
            if match is None:
                raise ValueError(f"{field}: {name!r} is not an XML name")
            if match[1] and match[1] not in known:
                raise ValueError(f"{field}: the prefix {match[1]!r} is not among the namespaces")
        if self.attribute_prefix == self.text_key:
            raise ValueError("attribute_prefix and text_key must differ")
        return self


def _check_binding(prefix: str, uri: str) -> None:
    """Raise `ValueError` where Namespaces in XML 1.0 forbids binding the prefix to the URI."""
    if prefix and not _PREFIX.fullmatch(prefix):
        raise ValueError(f"{prefix!r} is not a namespace prefix")
    if prefix == "xmlns" or uri == _XMLNS_URI or (prefix == "xml") != (uri == _XML_URI):
        raise ValueError(f"the prefix {prefix!r} cannot stand for {uri!r}")
    if prefix and not uri:
        raise ValueError(f"the prefix {prefix!r} needs a namespace")
    if uri and not _URI.fullmatch(uri):
        raise ValueError(f"the namespace of {prefix!r} is not a URI: {uri[:200]!r}")


class XmlBuilder(Node[XmlBuilderConfig]):
    """Writes the message's value as XML 1.0 text (in UTF-8 once it is sent).

    **Shape.** A key is an element, a list the same element several times, text and numbers its content. Keys that
    begin with `attribute_prefix` are attributes of the element they stand in; `text_key` is its text beside
    attributes or child elements. What `xml_parser` reads comes out as it was, except that text between child
    elements moves in front of them. `?xml` beside the root is skipped.

    **Namespaces.** `namespaces` are declared on the root; names use their prefixes (`o:Order`), or none for the
    default namespace. Declarations in the value (`@_xmlns:o`, as `xml_parser` keeps them) work too. A prefix that
    is not declared is refused.

    **Never a broken document.** Names that XML does not allow and characters that it cannot hold, even escaped,
    fail the message with the place. The result is always well-formed, and equal values give equal text: keys
    keep their order, declarations the one configured.

    **Values.** `true`, `false` and numbers are written as XML Schema has them; null as `nulls` says.

    Older names of the keys are read on import: `attributeNamePrefix`, `textNodeName`, `rootElement`, `format`.
    """

    type = "xml_builder"
    category = "transform"
    label = "Build XML"
    summary = "Writes the value as XML text with namespaces and attributes."
    Config = XmlBuilderConfig
    examples = (
        Example(
            "An order with a namespace",
            config={"root": "o:Order", "namespaces": {"o": "urn:example:order"}, "declaration": False},
            input={"@_version": "1", "o:Id": "PO-1", "o:Item": [{"o:Sku": "A"}, {"o:Sku": "B"}]},
            output='<o:Order xmlns:o="urn:example:order" version="1"><o:Id>PO-1</o:Id>'
            "<o:Item><o:Sku>A</o:Sku></o:Item><o:Item><o:Sku>B</o:Sku></o:Item></o:Order>",
        ),
        Example(
            "Indented, with text beside an attribute",
            config={"pretty": True},
            input={"Order": {"Qty": {"@_unit": "EA", "#text": 2}, "Paid": True, "Note": None}},
            output='<?xml version="1.0" encoding="UTF-8"?>\n<Order>\n  <Qty unit="EA">2</Qty>\n'
            "  <Paid>true</Paid>\n</Order>\n",
        ),
        Example(
            "A name that XML does not allow",
            config={"root": "Order"},
            input={"unit price": 3},
            fails="invalid-payload",
        ),
    )

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        ours = _legacy.renamed(
            config,
            {
                "attributeNamePrefix": "attribute_prefix",
                "textNodeName": "text_key",
                "rootElement": "root",
                "rootName": "root",
                "format": "pretty",
            },
        )
        for key in ("ignoreAttributes", "suppressEmptyNode"):
            _legacy.unsupported(ours, key, "xml_builder writes every attribute and element", False)
            ours.pop(key, None)
        return ours

    def process(self, message: Message, context: RunContext) -> Message:
        try:
            text = _Writer(self.config).write(message.body)
        except RecursionError:
            raise InvalidPayload("the value is nested too deeply to be written") from None
        illegal = _NOT_XML.search(text)
        if illegal:
            raise InvalidPayload(
                f"the value holds the character U+{ord(illegal[0]):04X}, which no XML document can hold",
                character=f"U+{ord(illegal[0]):04X}",
            )
        message.body = text
        return message


def _escaped(text: str) -> str:
    return text.translate(_TEXT_ESCAPES) if _TO_ESCAPE.search(text) else text


_Scope = dict[str, str]
"""Prefix → namespace, where one is in force."""


class _Writer:
    """Writes one value. `_names` remembers checked names, for one document only."""

    def __init__(self, config: XmlBuilderConfig) -> None:
        self._config = config
        self._out: list[str] = []
        self._names: dict[str, str] = {}

    def write(self, body: Any) -> str:
        config = self._config
        name, value = self._root(body)
        if config.declaration:
            self._out.append('<?xml version="1.0" encoding="UTF-8"?>')
            self._out.append("\n" if config.pretty else "")
        given = dict(config.namespaces)
        if config.nulls == "nil" and _XSI_URI not in given.values():
            given.setdefault("xsi", _XSI_URI)
        self._nil = next((prefix for prefix, uri in given.items() if prefix and uri == _XSI_URI), "")
        self._element(name, value, {"xml": _XML_URI}, given, 0)
        if config.pretty:
            self._out.append("\n")
        return "".join(self._out)

    def _root(self, body: Any) -> tuple[str, Any]:
        if self._config.root is not None:
            if isinstance(body, bytes):
                raise InvalidPayload("expected a value, found unparsed bytes", found="bytes")
            return self._config.root, {self._config.item: body} if isinstance(body, list) else body
        if not isinstance(body, dict):
            raise InvalidPayload(
                f"expected an object with one key, the root element, found {type(body).__name__}; "
                "set root to put an element around the value",
                found=type(body).__name__,
            )
        elements = [(key, value) for key, value in body.items() if key != "?xml"]
        if len(elements) != 1 or isinstance(elements[0][1], list):
            raise InvalidPayload(
                f"expected one root element, found {len(elements)} keys or a list; "
                "set root to put an element around the value",
                found=[key[:50] for key, _ in elements[:10]],
            )
        return elements[0]

    def _element(self, name: str, value: Any, scope: _Scope, declare: _Scope, level: int) -> None:
        if isinstance(value, dict):
            self._branch(name, value, scope, declare, level)
            return
        attributes: list[tuple[str, str]] = []
        if value is None and self._config.nulls == "nil":
            attributes.append((f"{self._nil}:nil", "true"))
        scope = self._open(name, attributes, scope, declare)
        text = value if isinstance(value, str) else self._scalar(value, name)
        self._out.append(f">{_escaped(text)}</{name}>" if text else "/>")

    def _branch(self, name: str, value: dict[str, Any], scope: _Scope, declare: _Scope, level: int) -> None:
        config, out = self._config, self._out
        attribute_prefix = config.attribute_prefix
        attributes: list[tuple[str, str]] = []
        children: list[tuple[str, Any]] = []
        text = ""
        for key, item in value.items():
            if key == config.text_key:
                text = self._scalar(item, key)
            elif not key.startswith(attribute_prefix):
                children += self._spread(key, item)
            elif item is not None:
                attribute, content = key[len(attribute_prefix) :], self._scalar(item, key)
                if attribute == "xmlns" or attribute.startswith("xmlns:"):
                    declare = {**declare, attribute[6:]: content}
                else:
                    attributes.append((attribute, content))
        scope = self._open(name, attributes, scope, declare)
        if not children and not text:
            out.append("/>")
            return
        out.append(">")
        out.append(_escaped(text))
        # White space beside text would become part of it.
        spread = config.pretty and children and not text
        for child, item in children:
            if spread:
                out.append("\n" + " " * (config.indent * (level + 1)))
            self._element(child, item, scope, {}, level + 1)
        if spread:
            out.append("\n" + " " * (config.indent * level))
        out.append(f"</{name}>")

    def _open(self, name: str, attributes: list[tuple[str, str]], scope: _Scope, declare: _Scope) -> _Scope:
        """Write the start tag but for its end; gives the declarations in force inside."""
        out = self._out
        for prefix, uri in declare.items():
            try:
                _check_binding(prefix, uri)
            except ValueError as error:
                raise InvalidPayload(f"<{name[:100]}>: {error}") from None
        if declare:
            scope = {**scope, **declare}
        self._check_name(name, scope)
        out.append(f"<{name}")
        for prefix, uri in declare.items():
            shown = f"xmlns:{prefix}" if prefix else "xmlns"
            out.append(f' {shown}="{uri.translate(_ATTRIBUTE_ESCAPES)}"')
        if attributes:
            self._check_attributes(name, attributes, scope)
            out += [f' {key}="{content.translate(_ATTRIBUTE_ESCAPES)}"' for key, content in attributes]
        return scope

    def _spread(self, name: str, value: Any) -> list[tuple[str, Any]]:
        """The elements a key stands for: one, one per item of a list, or none for an omitted null."""
        if isinstance(value, list):
            return [
                (name, {self._config.item: item} if isinstance(item, list) else item)
                for item in value
                if item is not None or self._config.nulls != "omit"
            ]
        if value is None and self._config.nulls == "omit":
            return []
        return [(name, value)]

    def _scalar(self, value: Any, name: str) -> str:
        if isinstance(value, str):
            return value
        if value is None:
            return ""
        if isinstance(value, bool):
            return "true" if value else "false"
        try:
            if isinstance(value, int):
                return str(value)
            if isinstance(value, float) and isfinite(value):
                return repr(value)
        except ValueError as error:  # more digits than Python writes
            raise InvalidPayload(f"{name[:100]}: {error}") from None
        found = "NaN or infinity" if isinstance(value, float) else f"a value of type {type(value).__name__}"
        raise InvalidPayload(f"{name[:100]}: expected text, a number, true or false, found {found}")

    def _check_name(self, name: str, scope: _Scope) -> str:
        """The name's prefix ("" without one); raises `InvalidPayload` for what is no name or not declared."""
        prefix = self._names.get(name)
        if prefix is None:
            match = _QNAME.fullmatch(name)
            if match is None:
                raise InvalidPayload(f"{name[:100]!r} is not an XML name", name=name[:100])
            prefix = self._names[name] = match[1] or ""
        if prefix and prefix not in scope:
            raise InvalidPayload(
                f"{name[:100]!r}: the prefix {prefix!r} is not declared; the declared ones are "
                f"{', '.join(sorted(filter(None, scope))) or 'none'}",
                name=name[:100],
            )
        return prefix

    def _check_attributes(self, element: str, attributes: list[tuple[str, str]], scope: _Scope) -> None:
        """Names, and that no two mean the same (the same prefixless name cannot occur twice in an object)."""
        seen: set[tuple[str, str]] = set()
        for name, _ in attributes:
            prefix = self._check_name(name, scope)
            if prefix:
                meant = (scope[prefix], name.partition(":")[2])
                if meant in seen:
                    raise InvalidPayload(
                        f"<{element[:100]}> has the attribute {name[:100]!r} twice", name=name[:100]
                    )
                seen.add(meant)
