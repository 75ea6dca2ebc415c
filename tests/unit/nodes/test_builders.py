"""`json_builder` and `xml_builder`: what they write can be read again, and equals itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree
from node_runs import body_of

from continuitybridge.errors import ConfigurationError, InvalidPayload, NodeError
from continuitybridge.nodes import registry
from continuitybridge.nodes.base import BuildContext

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=15,
)


def build_json(value: Any, **config: Any) -> Any:
    return body_of("json_builder", config, value)


def build_xml(value: Any, **config: Any) -> Any:
    return body_of("xml_builder", config, value)


# -- JSON -------------------------------------------------------------------------------------------------


@given(json_values, st.sampled_from(["string", "pretty"]), st.booleans(), st.integers(1, 8))
def test_json_text_reads_back_as_the_value(value: Any, output: str, sort_keys: bool, indent: int) -> None:
    text = build_json(value, output=output, sort_keys=sort_keys, indent=indent)
    assert json.loads(text) == value
    assert json.dumps(json.loads(text), sort_keys=True) == json.dumps(value, sort_keys=True)


@given(json_values)
def test_sorted_json_does_not_depend_on_the_order_of_keys(value: Any) -> None:
    def reversed_keys(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: reversed_keys(item[key]) for key in reversed(item)}
        return [reversed_keys(element) for element in item] if isinstance(item, list) else item

    for output in ("string", "pretty", "object"):
        config = {"output": output, "sort_keys": True}
        first, second = build_json(value, **config), build_json(reversed_keys(value), **config)
        assert json.dumps(first) == json.dumps(second)


def test_nulls_and_empties_are_dropped_from_the_inside_out_and_lists_keep_their_places() -> None:
    value = {"a": None, "b": {"c": {"d": None}}, "e": ["", None, {"f": None}], "g": 0, "h": False, "i": ""}
    assert build_json(value, output="object", drop_nulls=True) == {
        "b": {"c": {}},
        "e": ["", None, {}],
        "g": 0,
        "h": False,
        "i": "",
    }
    assert build_json(value, output="object", drop_empties=True) == {
        "a": None,
        "b": {"c": {"d": None}},
        "e": ["", None, {"f": None}],
        "g": 0,
        "h": False,
    }
    assert build_json(value, output="object", drop_nulls=True, drop_empties=True) == {
        "e": ["", None, {}],
        "g": 0,
        "h": False,
    }


def test_numbers_that_json_does_not_have_are_null_whichever_writer_writes() -> None:
    assert build_json([float("nan"), float("inf")]) == "[null,null]"
    assert build_json([float("nan"), 2**70]) == f"[null,{2**70}]"


def test_indentation_is_as_configured() -> None:
    assert build_json({"a": [1]}, output="pretty", indent=4) == '{\n    "a": [\n        1\n    ]\n}'


@pytest.mark.parametrize("body", [b"bytes", "\ud800", {"a": "\ud800", "b": 2**70}, {"a": object()}])
def test_what_is_not_json_data_is_refused(body: Any) -> None:
    with pytest.raises(InvalidPayload):
        build_json(body)


def test_a_value_nested_beyond_reason_is_a_typed_refusal() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for config in ({}, {"drop_nulls": True}, {"output": "object", "sort_keys": True}):
        with pytest.raises(NodeError):
            build_json(deep, **config)
    with pytest.raises(NodeError):
        build_xml(deep, root="r")


def test_json_keys_of_older_flows_are_translated() -> None:
    translate = registry.get("json_builder").from_legacy
    assert translate({}) == {"output": "object"}
    assert translate({"outputFormat": "pretty", "indent": "4", "sortKeys": True, "removeNull": True}) == {
        "output": "pretty",
        "indent": 4,
        "sort_keys": True,
        "drop_nulls": True,
    }
    assert translate({"removeEmpty": True}) == {"output": "object", "drop_empties": True}
    assert translate({"sort_keys": True}) == {"sort_keys": True}


# -- XML --------------------------------------------------------------------------------------------------

keys = st.text(max_size=4) | st.sampled_from(
    ["a", "b", "p:c", "@_d", "@_p:e", "#text", "@_xmlns:p", "@_xmlns", "?xml"]
)
xml_values = st.recursive(
    scalars | st.sampled_from(["urn:u", "]]>", "<&>\"'", "\r\n\t", "\x00", "\ufffe"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@given(xml_values, st.sampled_from(["omit", "empty", "nil"]), st.booleans())
def test_the_document_is_always_well_formed_or_refused(value: Any, nulls: str, pretty: bool) -> None:
    config = {"root": "p:r", "namespaces": {"p": "urn:p", "": "urn:d"}, "nulls": nulls, "pretty": pretty}
    try:
        text = build_xml(value, **config)
    except InvalidPayload:
        return
    root = etree.fromstring(text.encode())
    assert etree.QName(root).localname == "r"
    assert text == build_xml(value, **config)


names = st.from_regex(r"[A-Za-z_\u00c0][A-Za-z0-9_.-]{0,5}", fullmatch=True)
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cn"]), min_size=1, max_size=8).map(
    str.strip
)
elements = st.recursive(
    texts,
    lambda inner: (
        st.dictionaries(names, inner | st.lists(inner, min_size=2, max_size=3), min_size=1, max_size=3)
        | st.builds(
            lambda attributes, text: {
                **{f"@_{name}": value for name, value in attributes.items()},
                **({"#text": text} if text else {}),
            },
            st.dictionaries(names.filter(lambda name: not name.lower().startswith("xml")), texts, min_size=1),
            texts,
        )
    ),
    max_leaves=8,
)


@given(st.dictionaries(names, elements, min_size=1, max_size=1), st.booleans())
def test_what_the_parser_reads_the_builder_writes_and_back(document: dict[str, Any], pretty: bool) -> None:
    text = build_xml(document, pretty=pretty)
    assert body_of("xml_parser", {"namespaces": "keep"}, text) == document


def test_a_document_with_namespaces_survives_parsing_and_building() -> None:
    document = (
        '<o:Order xmlns:o="urn:o" xmlns="urn:d" o:v="1"><o:Id xml:lang="de">A &amp; B</o:Id>'
        '<Line xmlns="">&#13;1</Line><Line xmlns="">2</Line></o:Order>'
    )
    parsed = body_of("xml_parser", {"namespaces": "keep", "trim": False}, document)
    assert build_xml(parsed, declaration=False) == document


def test_characters_are_escaped_so_that_they_read_back() -> None:
    value = "<a> & \"b\" ]]> \t\n\r 'c' é 😀"
    root = etree.fromstring(build_xml({"r": {"@_x": value, "y": value}}).encode())
    assert root.get("x") == value
    assert root.findtext("y") == value


def test_nulls_are_left_out_empty_or_nil() -> None:
    value = {"r": {"a": None, "b": [1, None]}}
    assert build_xml(value, declaration=False) == "<r><b>1</b></r>"
    assert build_xml(value, declaration=False, nulls="empty") == "<r><a/><b>1</b><b/></r>"
    nil = build_xml(value, declaration=False, nulls="nil")
    assert nil == (
        '<r xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
        '<a xsi:nil="true"/><b>1</b><b xsi:nil="true"/></r>'
    )


def test_lists_become_repeated_elements() -> None:
    assert build_xml([1, [2, 3], {"a": []}], root="r", declaration=False) == (
        "<r><item>1</item><item><item>2</item><item>3</item></item><item/></r>"
    )


def test_values_are_written_as_xml_schema_has_them() -> None:
    value = {"r": {"t": True, "f": False, "i": 10**20, "d": 1.5, "big": 1e300, "empty": {}}}
    assert build_xml(value, declaration=False) == (
        f"<r><t>true</t><f>false</f><i>{10**20}</i><d>1.5</d><big>1e+300</big><empty/></r>"
    )


def test_pretty_text_adds_no_white_space_to_content() -> None:
    text = build_xml({"r": {"#text": "x", "a": {"b": "1", "c": "2"}}}, pretty=True, declaration=False)
    assert text == "<r>x<a>\n    <b>1</b>\n    <c>2</c>\n  </a></r>\n"


@pytest.mark.parametrize(
    "value",
    [
        {"a b": 1},
        {"1a": 1},
        {"": 1},
        {"a:b:c": 1},
        {":a": 1},
        {"q:a": 1},
        {"xmlns:a": 1},
        {"a": "\x01"},
        {"a": "\ud800"},
        {"@_a b": 1},
        {"@_": 1},
        {"@_a": {"b": 1}},
        {"@_a": [1]},
        {"#text": {"a": 1}},
        {"a": float("nan")},
        {"a": b"bytes"},
        {"@_xmlns:xml": "urn:x"},
        {"@_xmlns:p": ""},
        {"@_xmlns:1": "u"},
        {"@_xmlns:p": "u", "@_xmlns:q": "u", "@_p:a": 1, "@_q:a": 2},
        b"bytes",
    ],
)
def test_what_xml_cannot_say_is_refused(value: Any) -> None:
    with pytest.raises(InvalidPayload):
        build_xml(value, root="r")


@pytest.mark.parametrize("value", [{}, {"a": 1, "b": 2}, [1], "x", None, {"a": [1, 2]}])
def test_without_a_configured_root_the_value_must_have_one(value: Any) -> None:
    with pytest.raises(InvalidPayload, match="root"):
        build_xml(value)


@pytest.mark.parametrize(
    "config",
    [
        {"root": "a b"},
        {"root": "p:a"},
        {"item": "1"},
        {"namespaces": {"xml": "urn:x"}},
        {"namespaces": {"p": ""}},
        {"namespaces": {"p q": "urn:x"}},
        {"namespaces": {"xmlns": "urn:x"}},
        {"attribute_prefix": ""},
        {"attribute_prefix": "#", "text_key": "#"},
    ],
)
def test_a_configuration_that_cannot_work_is_refused_when_built(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        registry.build("xml_builder", config, BuildContext())


def test_xml_keys_of_older_flows_are_translated() -> None:
    translate = registry.get("xml_builder").from_legacy
    assert translate({"attributeNamePrefix": "$", "rootElement": "r", "format": True}) == {
        "attribute_prefix": "$",
        "root": "r",
        "pretty": True,
    }
    with pytest.raises(ConfigurationError, match="ignoreAttributes"):
        translate({"ignoreAttributes": True})
