"""The node `xslt`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from built_nodes import Built, problem, problems
from data_strategies import BODIES
from hypothesis import given
from hypothesis import strategies as st

from continuitybridge.errors import ConfigurationError, InvalidPayload, NodeError, TransformFailed
from continuitybridge.nodes import registry

NAMESPACES = (
    'xmlns:xsl="http://www.w3.org/1999/XSL/Transform" xmlns:str="http://exslt.org/strings" '
    'xmlns:exsl="http://exslt.org/common" xmlns:dyn="http://exslt.org/dynamic" '
    'xmlns:func="http://exslt.org/functions" xmlns:my="urn:my"'
)


def sheet(body: str, top: str = "", attributes: str = "") -> str:
    """A stylesheet with one template for the root."""
    return (
        f'<xsl:stylesheet version="1.0" {NAMESPACES} exclude-result-prefixes="str exsl dyn func my" {attributes}>'
        f'{top}<xsl:output omit-xml-declaration="yes"/>'
        f'<xsl:template match="/">{body}</xsl:template></xsl:stylesheet>'
    )


def transformed(stylesheet: str, document: Any = "<r><a>1</a></r>", **config: Any) -> Any:
    return Built("xslt", {"stylesheet": stylesheet, **config}).one(document)


def found_at_check(stylesheet: str, **more: Any) -> str:
    return problem("xslt", {"stylesheet": stylesheet}, **more)


# ---------------------------------------------------------------- results
@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("", '<?xml version="1.0"?>\n<o>é<br/></o>\n'),
        ('<xsl:output omit-xml-declaration="yes"/>', "<o>é<br/></o>\n"),
        ('<xsl:output encoding="UTF-8"/>', '<?xml version="1.0" encoding="UTF-8"?>\n<o>é<br/></o>\n'),
        ('<xsl:output method="text"/>', "é"),
        ('<xsl:output method="html"/>', "<o>é<br></o>\n"),
        (
            '<xsl:output encoding="ISO-8859-1"/>',
            b'<?xml version="1.0" encoding="ISO-8859-1"?>\n<o>\xe9<br/></o>\n',
        ),
    ],
)
def test_the_result_follows_the_declared_output(output: str, expected: Any) -> None:
    stylesheet = (
        f'<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">{output}'
        '<xsl:template match="/"><o>é<br/></o></xsl:template></xsl:stylesheet>'
    )
    assert transformed(stylesheet) == expected


@pytest.mark.parametrize(
    "document",
    [
        "<r><a>é</a></r>",
        "<r><a>é</a></r>".encode(),
        '<?xml version="1.0" encoding="ISO-8859-1"?><r><a>é</a></r>',
        '<?xml version="1.0" encoding="ISO-8859-1"?><r><a>é</a></r>'.encode("latin-1"),
        '<?xml version="1.0" encoding="UTF-16"?><r><a>é</a></r>'.encode("utf-16"),
    ],
)
def test_documents_are_read_as_text_and_as_bytes_in_their_own_encoding(document: Any) -> None:
    assert transformed(sheet('<o><xsl:value-of select="//a"/></o>'), document) == "<o>é</o>\n"


def test_parameters_are_texts_whatever_characters_they_hold() -> None:
    stylesheet = sheet('<o><xsl:value-of select="$p"/></o>', '<xsl:param name="p"/>')
    body = """<r>it's "quoted" &amp; <a/></r>"""
    config = {"stylesheet": stylesheet, "params": {"p": "{{ headers['x-a'] }} {{ message.id }}"}}
    found = Built("xslt", config).one(body, headers={"x-a": """it's "quoted" <&>"""})
    assert found == """<o>it's "quoted" &lt;&amp;&gt; m-1</o>\n"""


def test_exslt_functions_and_functions_of_its_own_are_there() -> None:
    own = '<func:function name="my:twice"><xsl:param name="n"/><func:result select="2 * $n"/></func:function>'
    stylesheet = sheet(
        "<o><xsl:value-of select=\"concat(str:padding(3, 'x'), my:twice(21))\"/></o>",
        own,
        'extension-element-prefixes="func"',
    )
    assert transformed(stylesheet) == "<o>xxx42</o>\n"


def test_entities_that_a_stylesheet_declares_itself_are_known() -> None:
    stylesheet = '<!DOCTYPE xsl:stylesheet [<!ENTITY nbsp "&#160;">]>' + sheet("<o>a&nbsp;b</o>")
    assert transformed(stylesheet) == "<o>a\u00a0b</o>\n"


def test_messages_of_the_stylesheet_go_to_the_log_and_terminating_ones_fail_the_message() -> None:
    node = Built("xslt", {"stylesheet": sheet("<xsl:message>seen</xsl:message><o/>")})
    node.one("<r/>")
    assert [line[:2] for line in node.lines] == [("info", "seen")]
    ends = sheet('<xsl:message terminate="yes">no lines</xsl:message>')
    error = Built("xslt", {"stylesheet": ends}).fails("<r/>")
    assert isinstance(error, TransformFailed)
    assert error.detail == "XSLT: no lines"


def test_a_stylesheet_that_calls_itself_for_ever_fails_the_message_and_the_next_one_passes() -> None:
    loop = '<xsl:template name="l"><xsl:call-template name="l"/></xsl:template>'
    calls = '<xsl:if test="//loop"><xsl:call-template name="l"/></xsl:if><o/>'
    node = Built("xslt", {"stylesheet": sheet(calls, loop)})
    assert "infinite template recursion" in node.fails("<loop/>").detail
    assert node.one("<r/>") == "<o/>\n"


# ---------------------------------------------------------------- side files
def test_included_stylesheets_are_found_beside_the_one_that_includes_them() -> None:
    part = f'<xsl:stylesheet version="1.0" {NAMESPACES}><xsl:template name="q">Q</xsl:template></xsl:stylesheet>'
    deep = part.replace("<xsl:template", '<xsl:import href="../b/inner.xsl"/><xsl:template')
    files = {
        "a/main.xsl": sheet('<o><xsl:call-template name="q"/></o>', '<xsl:include href="../b/part.xsl"/>'),
        "b/part.xsl": deep,
        "b/inner.xsl": part,
    }
    assert Built("xslt", {"file": "a/main.xsl"}, files=files).one("<r/>") == "<o>Q</o>\n"
    node = registry.get("xslt")
    assert node.files_within("a/main.xsl", files["a/main.xsl"]) == ("b/part.xsl",)
    assert node.files_within("b/part.xsl", files["b/part.xsl"]) == ("b/inner.xsl",)
    assert node.files_within("x.xsl", "<not xml") == ()
    assert node.files_within("x.xsl", sheet("", '<xsl:include href="http://a/b.xsl"/>')) == ()


def test_a_missing_or_broken_included_file_is_named() -> None:
    stylesheet = sheet("<o/>", '<xsl:include href="part.xsl"/>')
    assert "includes 'part.xsl', which is not a side file" in found_at_check(stylesheet)
    assert "XSLT: part.xsl, " in found_at_check(stylesheet, files={"part.xsl": "<broken"})
    found = found_at_check(stylesheet, files={"part.xsl": sheet("<xsl:foo/>")})
    assert "part.xsl, line 1: xsl:foo is not part of XSLT 1.0" in found


# ---------------------------------------------------------------- walls
@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("instruction", ["include", "import"])
def test_no_stylesheet_of_the_server_can_be_included(tmp_path: Path, scheme: str, instruction: str) -> None:
    (tmp_path / "part.xsl").write_text(f'<xsl:stylesheet version="1.0" {NAMESPACES}/>')
    found = found_at_check(sheet("<o/>", f'<xsl:{instruction} href="{scheme}{tmp_path}/part.xsl"/>'))
    assert "is not a side file of the flow" in found


def test_no_file_and_no_address_can_be_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.xml"
    secret.write_text("<password>do-not-tell</password>")
    for address in (str(secret), f"file://{secret}", "http://127.0.0.1:9/x.xml", ""):
        plain = sheet(f"<xsl:copy-of select=\"document('{address}')\"/>")
        assert "document() reads files and addresses" in found_at_check(plain)
        hidden = sheet(f"<xsl:copy-of select=\"dyn:evaluate(concat('docu', 'ment(&quot;{address}&quot;)'))\"/>")
        error = Built("xslt", {"stylesheet": hidden}).fails("<r/>")
        assert isinstance(error, TransformFailed)
        assert "do-not-tell" not in f"{error.detail}{error.facts}"


@pytest.mark.parametrize(
    "element",
    [
        '<exsl:document href="{file}"><a/></exsl:document>',
        '<saxon:output xmlns:saxon="http://icl.com/saxon" href="{file}"><a/></saxon:output>',
        '<xalan:write xmlns:xalan="org.apache.xalan.xslt.extensions.Redirect" file="{file}"><a/></xalan:write>',
        '<xsl:document href="{file}"><a/></xsl:document>',
        '<xsl:result-document href="{file}"><a/></xsl:result-document>',
        '<o xsl:extension-element-prefixes="exsl"><exsl:document href="{file}"><a/></exsl:document></o>',
    ],
)
def test_no_file_can_be_written(tmp_path: Path, element: str) -> None:
    file = tmp_path / "written.xml"
    declared = (
        'extension-element-prefixes="exsl saxon xalan" xmlns:saxon="http://icl.com/saxon" '
        'xmlns:xalan="org.apache.xalan.xslt.extensions.Redirect"'
    )
    for attributes in ("", declared):
        with contextlib.suppress(ConfigurationError, NodeError):
            Built("xslt", {"stylesheet": sheet(element.format(file=file), "", attributes)}).emits("<r/>")
        assert not file.exists()


@pytest.mark.parametrize(
    "document",
    [
        '<!DOCTYPE r [<!ENTITY a "x">]><r>&a;</r>',
        '<!DOCTYPE r SYSTEM "file:///etc/passwd"><r/>',
        '<!DOCTYPE r [<!ENTITY a SYSTEM "file:///etc/passwd">]><r>&a;</r>',
        '<!DOCTYPE r [<!ENTITY % a SYSTEM "http://127.0.0.1:9/x"> %a;]><r/>',
        '<!DOCTYPE r [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">'
        '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]><r x="&c;">&c;</r>',
        "<!DOCTYPE r><r/>",
    ],
)
def test_documents_with_a_document_type_are_refused(document: str) -> None:
    for body in (document, document.encode(), document.encode("utf-16")):
        node = Built("xslt", {"stylesheet": sheet("<xsl:copy-of select='.'/>")})
        assert isinstance(node.fails(body), InvalidPayload)


# ---------------------------------------------------------------- what is found when the flow is checked
@pytest.mark.parametrize(
    ("stylesheet", "reason"),
    [
        ("", "Document is empty"),
        ("<a", "line 1"),
        ("<a/>", "document is not a stylesheet"),
        (sheet("<xsl:value-of select='//['/>"), "could not compile select expression '//['"),
        (sheet("<xsl:value-of/>"), "select"),
        (sheet("<xsl:foo/>"), "xsl:foo is not part of XSLT 1.0"),
        (sheet("<xsl:for-each-group select='a' group-by='b'/>"), "xsl:for-each-group is not part of XSLT 1.0"),
        (sheet("<xsl:value-of select=\"upper-case('a')\"/>"), "the function upper-case() does not exist"),
        (sheet("<o a='{lower-case(.)}'/>"), "the function lower-case() does not exist in XSLT 1.0"),
        (sheet("<xsl:value-of select='my:nothing(1)'/>"), "the function my:nothing() does not exist"),
        (sheet("<xsl:value-of select='$nothing'/>"), "the variable $nothing is nowhere declared"),
        (sheet("<xsl:call-template name='nothing'/>"), "no template is named 'nothing'"),
        (sheet("<o/>").replace('version="1.0"', 'version="2.0"'), "XSLT 2.0 is not implemented"),
    ],
)
def test_a_wrong_stylesheet_is_found_when_the_flow_is_checked(stylesheet: str, reason: str) -> None:
    found = found_at_check(stylesheet)
    assert found.startswith("stylesheet: XSLT: ")
    assert reason in found


def test_names_of_nodes_operators_and_texts_are_not_taken_for_functions() -> None:
    nodes = ("text()", "node() | comment()", "self::node()")
    for expression in (*nodes, "//a and (1)", "2 div (1) mod (2)", "'upper-case($x)'"):
        transformed(sheet(f'<xsl:value-of select="{expression}"/>'))


def test_parameters_and_their_templates_are_checked_too() -> None:
    params = {"sendr": "x", "sender": "{{ y }}"}
    found = problems("xslt", {"stylesheet": sheet("<o/>", '<xsl:param name="sender"/>'), "params": params})
    assert "it has sender" in found["params.sendr"]
    assert "y is not known here" in found["params.sender"]
    assert "give either file or stylesheet" in problem("xslt", {})


@pytest.mark.parametrize(
    "body", [None, 5, {"a": 1}, [], "", b"", "text", "<a>", b"\xff\xfe\x00", "<a>\x00</a>", "\ud800"]
)
def test_what_is_not_xml_is_refused(body: Any) -> None:
    assert isinstance(Built("xslt", {"stylesheet": sheet("<o/>")}).fails(body), InvalidPayload)


@given(BODIES | st.text(alphabet="<>/a=\"'&;! \n?[]-", max_size=40).map("<a>{}</a>".format))
def test_whatever_a_message_holds_it_is_transformed_or_fails_typed(body: Any) -> None:
    with contextlib.suppress(NodeError):
        Built("xslt", {"stylesheet": sheet("<o><xsl:copy-of select='/*/*'/></o>")}).emits(body)


@given(st.text(alphabet="<>/xsl:abc=\"'{}$() \n", max_size=40))
def test_any_text_is_a_stylesheet_or_refused(text: str) -> None:
    for stylesheet in (text, sheet(text), sheet(f"<xsl:value-of select='{text}'/>")):
        with contextlib.suppress(ConfigurationError, NodeError):
            Built("xslt", {"stylesheet": stylesheet}).emits("<r/>")


def test_older_names_are_read() -> None:
    assert registry.canonical_name("xslt_transform") == "xslt"
    translated = registry.get("xslt").from_legacy({"xslt": "<a/>", "parameters": {"p": "1"}})
    assert translated == {"stylesheet": "<a/>", "params": {"p": "1"}}
    assert registry.get("xslt").from_legacy({"stylesheetRef": "a.xsl"}) == {"file": "a.xsl"}
