"""`xml_parser`: the shape that users know, and none of XML's traps."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_runs import body_of

from continuitybridge.errors import InvalidPayload, LimitExceeded, NodeError
from continuitybridge.nodes import registry


def parse(text: Any, *, charset: str | None = None, **config: Any) -> Any:
    headers = {"content-type": f"application/xml; charset={charset}"} if charset else {}
    return body_of("xml_parser", config, text, headers=headers)


@given(st.binary(max_size=80))
def test_any_bytes_give_a_value_or_a_typed_refusal(data: bytes) -> None:
    for document in (data, b"<a>" + data + b"</a>", b'<?xml version="1.0" encoding="' + data + b'"?><a/>'):
        with contextlib.suppress(NodeError):
            parse(document)


@given(st.text(st.sampled_from("<>/&;:ab \"'=?![]-CDAT\ud800\x00"), max_size=60))
def test_any_text_of_markup_gives_a_value_or_a_typed_refusal(text: str) -> None:
    with contextlib.suppress(NodeError):
        parse(text, namespaces="keep", lists=["a", "a/b"], typed_values=True, trim=False)


@given(st.text(max_size=20))
def test_any_charset_in_the_content_type_gives_a_value_or_a_typed_refusal(charset: str) -> None:
    with contextlib.suppress(NodeError):
        parse(b"<a/>", charset=charset)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"<a/>", {"a": ""}),
        (b"<a>  </a>", {"a": ""}),
        (b"<a> x </a>", {"a": "x"}),
        (b'<a b="1"/>', {"a": {"@_b": "1"}}),
        (b'<a b="1">x</a>', {"a": {"@_b": "1", "#text": "x"}}),
        (b"<a><b>1</b><b>2</b><c/></a>", {"a": {"b": ["1", "2"], "c": ""}}),
        (b"<a><b>1</b><c/><b>2</b><b/></a>", {"a": {"b": ["1", "2", ""], "c": ""}}),
        (b"<a><!-- x --><b>1<!-- y -->2</b><?pi z?></a>", {"a": {"b": "12"}}),
        (b"<a><![CDATA[<x> & y]]></a>", {"a": "<x> & y"}),
        (b"<a>&lt;&amp;&#x41;&#233;</a>", {"a": "<&A\u00e9"}),
        (b"<a>Hello <b>big</b> world</a>", {"a": {"b": "big", "#text": "Hello  world"}}),
        (b'<p:a xmlns:p="u"><p:b xmlns="v" p:x="1" y="2"/></p:a>', {"a": {"b": {"@_x": "1", "@_y": "2"}}}),
        (b'<?xml version="1.0"?>\n<a xml:lang="de">x</a>\n', {"a": {"@_lang": "de", "#text": "x"}}),
    ],
)
def test_the_shape_is_the_one_users_know(text: bytes, value: Any) -> None:
    assert parse(text) == value


def test_names_stay_as_written_on_request() -> None:
    document = b'<p:a xmlns:p="u" xmlns="d"><b xmlns="" p:x="1"/><xml:c xml:space="preserve">z</xml:c></p:a>'
    assert parse(document, namespaces="keep") == {
        "p:a": {
            "@_xmlns:p": "u",
            "@_xmlns": "d",
            "b": {"@_xmlns": "", "@_p:x": "1"},
            "xml:c": {"@_xml:space": "preserve", "#text": "z"},
        }
    }


def test_attributes_prefixes_and_text_keys_are_as_configured() -> None:
    document = b'<a b="1">x</a>'
    assert parse(document, attribute_prefix="$", text_key="_") == {"a": {"$b": "1", "_": "x"}}
    assert parse(document, attributes="ignore") == {"a": "x"}
    assert parse(b'<a b="1"><b>2</b></a>', attribute_prefix="") == {"a": {"b": ["1", "2"]}}


def test_named_elements_are_lists_even_of_one() -> None:
    document = b"<a><b><i>1</i></b><c><i>2</i></c></a>"
    assert parse(document, lists=["i"]) == {"a": {"b": {"i": ["1"]}, "c": {"i": ["2"]}}}
    assert parse(document, lists=["a/b/i"]) == {"a": {"b": {"i": ["1"]}, "c": {"i": "2"}}}
    assert parse(document, lists=["a"]) == {"a": [{"b": {"i": "1"}, "c": {"i": "2"}}]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-12.50", -12.5),
        ("0", 0),
        ("true", True),
        ("false", False),
        ("007", "007"),
        ("+5", "+5"),
        ("1e5", "1e5"),
        ("0x1f", "0x1f"),
        ("True", "True"),
        ("\u0665", "\u0665"),
        ("123456789012345", 123456789012345),
        ("-12345678901234.5", -12345678901234.5),
        ("1234567890123456", "1234567890123456"),
        ("Infinity", "Infinity"),
        ("", ""),
    ],
)
def test_typed_values_never_change_an_identifier(text: str, value: Any) -> None:
    parsed = parse(f"<a>{text}</a>", typed_values=True)["a"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_text_is_text_unless_asked_otherwise() -> None:
    assert parse(b'<a b="5">5</a>') == {"a": {"@_b": "5", "#text": "5"}}
    assert parse(b'<a b="5">5</a>', typed_values=True) == {"a": {"@_b": "5", "#text": 5}}


def test_white_space_is_kept_on_request_but_not_between_elements() -> None:
    assert parse(b"<a>\n <b> x </b>\n</a>", trim=False) == {"a": {"b": " x "}}


def test_the_declaration_is_added_on_request() -> None:
    document = b'<?xml version="1.0" encoding="UTF-8" standalone="yes"?><a/>'
    assert parse(document, declaration=True) == {
        "?xml": {"@_version": "1.0", "@_encoding": "UTF-8", "@_standalone": "yes"},
        "a": "",
    }
    assert parse(b"<a/>", declaration=True) == {"a": ""}


BOMB = b"""<!DOCTYPE b [<!ENTITY l0 "lol">%s]><b>&l9;</b>""" % b"".join(
    b'<!ENTITY l%d "%s">' % (n, b"&l%d;" % (n - 1) * 10) for n in range(1, 10)
)


@pytest.mark.parametrize(
    "document",
    [
        BOMB,
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "http://127.0.0.1:1/x">]><a>&x;</a>',
        b'<!DOCTYPE a SYSTEM "http://127.0.0.1:1/x.dtd"><a/>',
        b'<!DOCTYPE a PUBLIC "-//X//Y" "x.dtd"><a/>',
        b'<!DOCTYPE a [<!ATTLIST a b CDATA "injected">]><a/>',
        b'<!DOCTYPE a [<!ENTITY %% p SYSTEM "file:///dev/zero"> %%p;]><a/>',
        b"<!DOCTYPE a><a/>",
        '<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>'.encode("utf-16"),
        b"<a>&undefined;</a>",
        b"<a><p:b/></a>",
        b'<a b="1" b="2"/>',
        b'<a xmlns:p="u" xmlns:q="u" p:b="1" q:b="2"/>',
        b"<a/><b/>",
        b"<a>",
        b"<a>\x00</a>",
        b"<a>\xff</a>",
        b"",
        b"plain text",
        b'<?xml version="1.0" encoding="utf-7"?><a/>',
        b'<?xml version="1.0" encoding="zlib"?><a/>',
        b'<?xml version="1.0" encoding="idna"?><a/>',
    ],
)
def test_what_is_dangerous_or_not_well_formed_is_refused(document: bytes) -> None:
    with pytest.raises(InvalidPayload):
        parse(document)


def test_an_external_file_is_never_opened(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("do not read")
    with pytest.raises(InvalidPayload) as refused:
        parse(f'<!DOCTYPE a [<!ENTITY x SYSTEM "{secret.as_uri()}">]><a>&x;</a>'.encode())
    assert "do not read" not in str(refused.value.facts) + refused.value.detail


def test_a_refusal_says_where() -> None:
    with pytest.raises(InvalidPayload) as refused:
        parse(b"<a>\n  <b>\n</a>")
    assert refused.value.facts["line"] == 3
    assert "line 3, column" in refused.value.detail


def test_nesting_is_limited_by_the_setting() -> None:
    assert parse(b"<a>" * 200 + b"</a>" * 200)
    for depth in (201, 300, 100_000):
        with pytest.raises(LimitExceeded) as refused:
            parse(b"<a>" * depth)
        assert refused.value.facts["limit"] == "max_nesting_depth"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1", "windows-1252", "iso-8859-15", "gb18030"])
def test_the_declared_encoding_is_read(encoding: str) -> None:
    document = f'<?xml version="1.0" encoding="{encoding}"?><a b="ä">Zürich</a>'
    assert parse(document.encode(encoding)) == {"a": {"@_b": "ä", "#text": "Zürich"}}


@pytest.mark.parametrize("charset", ["iso-8859-1", "windows-1252", "UTF-8"])
def test_the_charset_of_the_content_type_wins_over_the_declaration(charset: str) -> None:
    document = '<?xml version="1.0" encoding="koi8-r"?><a>ä</a>'.encode(charset)
    assert parse(document, charset=charset) == {"a": "ä"}


def test_a_byte_order_mark_wins_over_everything() -> None:
    document = b"\xef\xbb\xbf" + '<?xml version="1.0" encoding="iso-8859-1"?><a>ä</a>'.encode()
    assert parse(document, charset="iso-8859-1") == {"a": "ä"}


def test_text_is_read_whatever_it_declares() -> None:
    assert parse('<?xml version="1.0" encoding="utf-16"?><a>ä</a>') == {"a": "ä"}


def test_keys_of_older_flows_are_translated() -> None:
    translate = registry.get("xml_parser").from_legacy
    assert translate(
        {
            "ignoreAttributes": True,
            "attributeNamePrefix": "_",
            "textNodeName": "t",
            "ignoreDeclaration": False,
            "removeNSPrefix": "false",
        }
    ) == {
        "attributes": "ignore",
        "attribute_prefix": "_",
        "text_key": "t",
        "declaration": True,
        "namespaces": "keep",
        "typed_values": True,
    }
    assert translate({}) == {"typed_values": True}
    assert translate({"lists": ["a"]}) == {"lists": ["a"]}
