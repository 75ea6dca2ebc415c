"""XSLT 1.0 stylesheets by libxslt, with nothing but their own text and the flow's side files within reach.

What libxslt would only notice while a message runs, or ignore, is looked for here: elements and functions that do
not exist, undeclared variables, templates that are called and not there, versions it does not implement.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lxml import etree

from continuitybridge.errors import ConfigurationError, InvalidPayload, TransformFailed
from continuitybridge.nodes.language import side_file
from continuitybridge.nodes.language.problems import Problems

XSL = "http://www.w3.org/1999/XSL/Transform"
_FUNC = "http://exslt.org/functions"
_FILES = "side-file:///"
_LIBRARIES = ("http://exslt.org/", "http://icl.com/saxon", "http://xmlsoft.org/XSLT/namespace")
_ELEMENTS = frozenset(
    """
    apply-imports apply-templates attribute attribute-set call-template choose comment copy copy-of
    decimal-format element fallback for-each if import include key message namespace-alias number otherwise
    output param preserve-space processing-instruction sort strip-space stylesheet template text transform
    value-of variable when with-param
    """.split()  # noqa: SIM905
)
_FUNCTIONS = frozenset(
    """
    last position count id local-name namespace-uri name string concat starts-with contains substring-before
    substring-after substring string-length normalize-space translate boolean not true false lang number sum
    floor ceiling round key format-number current unparsed-entity-uri generate-id system-property
    element-available function-available
    """.split()  # noqa: SIM905
)
_NOT_FUNCTIONS = frozenset({"text", "node", "comment", "processing-instruction", "and", "or", "div", "mod"})
_EXPRESSIONS = frozenset({"select", "test", "match", "use", "count", "from", "value"})
_LITERAL = re.compile(r"\"[^\"]*\"|'[^']*'")
_CALL = re.compile(r"(?<![\w$.:-])(?:([A-Za-z_][\w.-]*):)?([A-Za-z_][\w.-]*)\s*\(")
_VARIABLE = re.compile(r"\$((?:[A-Za-z_][\w.-]*:)?[A-Za-z_][\w.-]*)")
_BRACES = re.compile(r"\{([^{}]*)\}")


class _SideFiles(etree.Resolver):
    """Answers `xsl:include` and `xsl:import` from side files, and everything else with nothing."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = files
        self.missing: list[str] = []

    def resolve(self, system_url: Any, public_id: Any, context: Any) -> Any:  # type: ignore[override]
        url = system_url or ""
        text = self.files.get(url.removeprefix(_FILES)) if url.startswith(_FILES) else None
        if text is None:
            self.missing.append(url.removeprefix(_FILES))
            return self.resolve_empty(context)  # type: ignore[attr-defined]
        return self.resolve_string(text.encode(), context, base_url=url)


def _parser(*, entities: Any = False, encoding: str | None = None) -> etree.XMLParser:
    return etree.XMLParser(resolve_entities=entities, no_network=True, load_dtd=False, encoding=encoding)


def _read(text: str, *, name: str, resolver: etree.Resolver | None = None) -> Any:
    """A stylesheet's root. Entities that it declares itself are known; none is fetched. The text is what counts,
    whatever encoding its declaration names."""
    parser = _parser(entities="internal", encoding="utf-8")
    if resolver is not None:
        parser.resolvers.add(resolver)
    return etree.fromstring(text.encode(), parser, base_url=_FILES + name)


class Stylesheet:
    """A compiled stylesheet. `name` is its side file ("" when it stands in the configuration), `field` names
    where it stands, `params` are the parameters that will be given."""

    __slots__ = ("_bytes_parser", "_encoding", "_text_parser", "_transform")

    def __init__(
        self, text: str, *, field: str, name: str = "", files: Mapping[str, str], params: frozenset[str]
    ) -> None:
        """Raises `ConfigurationError` with every problem found."""
        resolver = _SideFiles(files)
        try:
            root = _read(text, name=name, resolver=resolver)
        except (etree.XMLSyntaxError, ValueError) as error:
            raise _refused(field, name, _syntax(error)) from None
        _Checks(root, field=field, name=name, files=files, params=params).run()
        try:
            deny_all = etree.XSLTAccessControl.DENY_ALL  # type: ignore[attr-defined]
            self._transform: Any = etree.XSLT(root, access_control=deny_all)
        except etree.XSLTParseError as error:
            if resolver.missing:
                raise _refused(
                    field, name, f"it includes {resolver.missing[0]!r}, which is not a side file of the flow"
                ) from None
            raise _refused(field, name, _reasons(error)) from None
        encodings = [str(output.get("encoding", "")) for output in root.findall(f"{{{XSL}}}output")]
        self._encoding = ([name for name in encodings if name] or ["utf-8"])[-1].lower()
        self._text_parser = _parser(encoding="utf-8")
        self._bytes_parser = _parser()

    def apply(self, body: Any, params: Mapping[str, str]) -> tuple[str | bytes, list[str]]:
        """The result and what `xsl:message` said. Text when the output's encoding is UTF-8, else bytes in that
        encoding. Raises `InvalidPayload` for what is not XML, `TransformFailed` when the stylesheet fails."""
        document = self._parse(body)
        arguments: dict[str, Any] = {name: etree.XSLT.strparam(value) for name, value in params.items()}
        try:
            result = self._transform(document, **arguments)
            raw = bytes(result)
        except etree.XSLTError as error:
            raise TransformFailed(f"XSLT: {_reasons(error)}") from None
        messages = [entry.message for entry in self._transform.error_log]
        return (raw.decode() if self._encoding in ("utf-8", "utf8") else raw), messages

    def _parse(self, body: Any) -> Any:
        try:
            if isinstance(body, str):
                document = etree.fromstring(body.encode(), self._text_parser)
            elif isinstance(body, bytes):
                document = etree.fromstring(body, self._bytes_parser)
            else:
                raise InvalidPayload(
                    f"a stylesheet reads XML as text or bytes, and the message holds {type(body).__name__}: "
                    "an xml_builder belongs before it",
                    found=type(body).__name__,
                )
        except (etree.XMLSyntaxError, ValueError) as error:
            raise InvalidPayload(f"the message is not well-formed XML: {_syntax(error)}") from None
        if document.getroottree().docinfo.internalDTD is not None:
            raise InvalidPayload("the document has a document type declaration, which is not accepted")
        return document


def included(name: str, text: str) -> tuple[str, ...]:
    """The side files that a stylesheet includes or imports by relative names."""
    try:
        root = _read(text, name=name)
    except (etree.XMLSyntaxError, ValueError):
        return ()
    return tuple(side_file.beside(name, href) for href in _includes(root) if ":" not in href)


def _includes(root: Any) -> Iterator[str]:
    for element in root.iter(f"{{{XSL}}}include", f"{{{XSL}}}import"):
        if element.get("href"):
            yield element.get("href")


class _Checks:
    """Looks through a stylesheet and what it includes for what would fail only at run time."""

    def __init__(
        self, root: Any, *, field: str, name: str, files: Mapping[str, str], params: frozenset[str]
    ) -> None:
        self.field, self.name, self.params = field, name, params
        self.problems = Problems()
        self.parts = list(self._parts(root, name, files))
        elements = [element for _, part in self.parts for element in part.iter(etree.Element)]
        self.variables = {
            element.get("name") for element in elements if element.tag in (f"{{{XSL}}}variable", f"{{{XSL}}}param")
        }
        self.templates = {element.get("name") for element in elements if element.tag == f"{{{XSL}}}template"}
        self.functions = {
            element.get("name", "").partition(":")[2]
            for element in elements
            if element.tag == f"{{{_FUNC}}}function"
        }
        self.declared = {child.get("name") for _, part in self.parts for child in part.findall(f"{{{XSL}}}param")}

    def _parts(self, root: Any, name: str, files: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
        waiting, seen = [(name, root)], {name}
        while waiting:
            at, part = waiting.pop()
            yield at, part
            for href in _includes(part):
                inner = side_file.beside(at, href)
                if inner in files and inner not in seen:
                    seen.add(inner)
                    try:
                        waiting.append((inner, _read(files[inner], name=inner)))
                    except (etree.XMLSyntaxError, ValueError) as error:
                        self.problems.note(_refused(self.field, inner, _syntax(error)))

    def run(self) -> None:
        """Raises `ConfigurationError` with everything found."""
        for unknown in sorted(self.params - self.declared):
            known = ", ".join(sorted(filter(None, self.declared))) or "none"
            self.problems.note(
                ConfigurationError(
                    f"the stylesheet has no parameter {unknown!r}; it has {known}",
                    field=f"params.{unknown}",
                    valid=known,
                )
            )
        for name, part in self.parts:
            extensions = set(part.get("extension-element-prefixes", "").split())
            namespaces = {part.nsmap.get(prefix) for prefix in extensions} - {_FUNC}
            for element in part.iter(etree.Element):
                self._element(name, element, namespaces)
        self.problems.raise_any()

    def _element(self, name: str, element: Any, extensions: set[str | None]) -> None:
        tag = etree.QName(element)
        if tag.namespace == XSL:
            self._instruction(name, element, tag.localname)
        elif tag.namespace in extensions:
            self._note(name, element, f"the extension element {tag.localname} is not available")
        version = element.get("version") if tag.namespace == XSL else element.get(f"{{{XSL}}}version")
        if version is not None and tag.localname not in ("output",) and version not in ("1.0", "1.1"):
            self._note(name, element, f"XSLT {version} is not implemented: this is an XSLT 1.0 processor")
        for attribute, value in element.attrib.items():
            if tag.namespace == XSL and attribute in _EXPRESSIONS:
                self._expression(name, element, value)
            else:
                for inner in _BRACES.findall(value):
                    self._expression(name, element, inner)

    def _instruction(self, name: str, element: Any, instruction: str) -> None:
        if instruction not in _ELEMENTS:
            self._note(name, element, f"xsl:{instruction} is not part of XSLT 1.0")
        elif instruction == "call-template" and element.get("name") not in self.templates:
            self._note(name, element, f"no template is named {element.get('name')!r}")

    def _expression(self, name: str, element: Any, expression: str) -> None:
        text = _LITERAL.sub("''", expression)
        for prefix, function in _CALL.findall(text):
            if prefix:
                namespace = element.nsmap.get(prefix) or ""
                known = namespace.startswith(_LIBRARIES) or function in self.functions
            else:
                known = function in _FUNCTIONS or function in _NOT_FUNCTIONS
            if not known:
                reason = (
                    "document() reads files and addresses, which a stylesheet cannot here; pass it in params"
                    if function == "document"
                    else f"the function {prefix + ':' if prefix else ''}{function}() does not exist in XSLT 1.0"
                )
                self._note(name, element, reason)
        for variable in _VARIABLE.findall(text):
            if variable not in self.variables:
                self._note(name, element, f"the variable ${variable} is nowhere declared")

    def _note(self, name: str, element: Any, reason: str) -> None:
        self.problems.note(_refused(self.field, name, f"line {element.sourceline}: {reason}"))


def _refused(field: str, name: str, reason: str) -> ConfigurationError:
    where = f"{name}, " if name else ""
    return ConfigurationError(f"XSLT: {where}{reason.replace(_FILES, '')}", field=field, value=name or None)


def _syntax(error: Exception) -> str:
    return re.sub(r"\s*\([^()]*, line \d+\)$", "", str(error)).replace("\n", " ")


def _reasons(error: etree.XSLTError) -> str:
    """What libxslt said, without its notes on where it stood in its own code."""
    noise = ("unknown error", "runtime error", "compilation error")
    texts = [entry.message for entry in error.error_log if not entry.message.startswith(noise)]
    return "; ".join(dict.fromkeys(texts[-3:])) or str(error)
