"""Where the key is found that tells a repetition from a new message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from continuitybridge.errors import UnreadableContent
from continuitybridge.nodes.triggers.webhook_trigger import WebhookTriggerConfig
from continuitybridge.webhooks.idempotency import KeySource

HEADERS = {b"webhook-id": b"w", b"idempotency-key": b"i", b"x-order": b"o"}


def source(configured: Any = None, default: Mapping[str, Any] | None = None) -> KeySource:
    config = WebhookTriggerConfig.model_validate({"slug": "s", "idempotency": configured})
    return KeySource.of(config.idempotency, default or {})


def key(configured: Any, body: bytes, headers: Mapping[bytes, bytes] | None = None) -> str | None:
    return source(configured).key(headers or {}, body)


def test_the_key_is_the_configured_header_else_the_webhook_id_else_the_header_of_that_name() -> None:
    assert key("X-Order", b"", HEADERS) == "o"
    assert key({"header": "x-order"}, b"", HEADERS) == "o"
    assert key(None, b"", HEADERS) == "w"
    assert key(None, b"", {b"idempotency-key": b"i"}) == "i"
    assert key(None, b"") is None
    assert key("X-Order", b"", {b"webhook-id": b"w"}) is None


@pytest.mark.parametrize("value", [b"x" * 256, b"a\x01", "ü".encode()])
def test_a_header_that_cannot_be_a_key_is_refused(value: bytes) -> None:
    with pytest.raises(UnreadableContent):
        key(None, b"", {b"idempotency-key": value})


@pytest.mark.parametrize(
    ("path", "body", "found"),
    [
        ("$.id", b'{"id": "evt_1"}', "evt_1"),
        ("$.order.lines[1].id", b'{"order": {"lines": [{}, {"id": 7}]}}', "7"),
        ("$['a b']", '{"a b": "ü\\u0000"}'.encode(), "ü\0"),
        ("$.n", b'{"n": 12345678901234567890}', "12345678901234567890"),
        ("$.n", b'{"n": 123456789012345678901234567890}', "123456789012345678901234567890"),
        ("$.n", b'{"n": 1.50}', "1.50"),
        ("$[0]", b'["x"]', "x"),
        ("$.id", b'\xef\xbb\xbf{"id": "evt_1"}', "evt_1"),
        ("$.id", b'{"id": "' + b"x" * 1000 + b'"}', "x" * 1000),
    ],
)
def test_a_value_of_a_json_body_is_the_key(path: str, body: bytes, found: str) -> None:
    assert key({"json_path": path}, body) == "value:" + found


@pytest.mark.parametrize(
    "body",
    [b"{}", b'{"id": null}', b'{"id": ""}', b'{"id": true}', b'{"id": {}}', b'["id"]', b"{", b"\xff", b"[" * 5000],
)
def test_a_json_body_without_the_value_has_no_key(body: bytes) -> None:
    assert key({"json_path": "$.id"}, body) is None
    assert key({"json_path": "$.id.x[3]"}, body) is None
    with pytest.raises(UnreadableContent):
        key({"json_path": "$.id", "required": True}, body)


@pytest.mark.parametrize(
    ("path", "body", "found"),
    [
        ("/Order/Id", b"<Order><Id> PO-1 </Id><Id>PO-2</Id></Order>", "PO-1"),
        ("/Order/Id", b'<o:Order xmlns:o="urn:o"><o:Id>7</o:Id></o:Order>', "7"),
        ("/Order/@number", b'<Order number="N-1"><Id/></Order>', "N-1"),
        ("/Order/@id", b'<Order xmlns:id="urn:ids" id="7"/>', "7"),
        ("/Order/@id", b'<Order xmlns:a="urn:a" a:id="ERP" id="42"/>', "42"),
        ("/Order/@id", b'<Order xmlns:id="urn:ids" id:id="8"/>', "8"),
        (
            "/Order/Head/Id",
            b"<Order><Line><Id>x</Id></Line><Head><Id>a<!-- -->b<![CDATA[c]]></Id></Head></Order>",
            "abc",
        ),
        ("/Order/Head/Id", b"<Order><Head/><Head><Id>second</Id></Head></Order>", "second"),
        ("/Order/Id", b"<Order><Id>a<x>no</x>b</Id></Order>", "ab"),
        ("/Id", '<?xml version="1.0" encoding="ISO-8859-1"?><Id>\xfc</Id>'.encode("latin-1"), "ü"),
        ("/Order/Id", b"<Order><Id>early</Id><broken", "early"),
    ],
)
def test_an_element_or_attribute_of_an_xml_body_is_the_key(path: str, body: bytes, found: str) -> None:
    assert key({"xml_path": path}, body) == "value:" + found


@pytest.mark.parametrize("charset", ["iso-8859-1", "windows-1252", "ISO-8859-15", '"shift_jis"', "utf-16le"])
def test_the_charset_of_an_xml_body_is_the_headers_as_it_is_for_the_parser(charset: str) -> None:
    text = "<Order><Note>{}</Note><Id>PO-1</Id></Order>".format("\u5b57" if "jis" in charset else "é")
    body = text.encode(charset.strip('"'))
    headers = {b"content-type": f"application/xml; charset={charset}".encode()}
    assert key({"xml_path": "/Order/Id"}, body, headers) == "value:PO-1"


def test_where_the_headers_charset_is_wrong_the_documents_own_is_right() -> None:
    body = '<?xml version="1.0" encoding="ISO-8859-1"?><Order><Note>é</Note><Id>7</Id></Order>'.encode("latin-1")
    headers = {b"content-type": b"text/xml; charset=utf-8"}
    assert key({"xml_path": "/Order/Id"}, body, headers) == "value:7"


@pytest.mark.parametrize(
    "body",
    [
        b"<Order/>",
        b"<Order><Id/></Order>",
        b"<Other><Id>1</Id></Other>",
        b"<Order><Line><Id>1</Id></Line></Order>",
        b'<!DOCTYPE Order [<!ENTITY x "y">]><Order><Id>&x;</Id></Order>',
        b"not xml",
        b'<?xml version="1.0" encoding="klingon"?><Order><Id>1</Id></Order>',
        b"<Order>" + b"<x>" * 1000,
    ],
)
def test_an_xml_body_without_the_element_has_no_key(body: bytes) -> None:
    assert key({"xml_path": "/Order/Id"}, body) is None


@given(st.binary(max_size=80) | st.text("<>/OrderId \"'=&;![]", max_size=60).map(str.encode))
def test_any_body_has_a_key_or_none(body: bytes) -> None:
    for configured in (
        {"json_path": "$.a[0]"},
        {"xml_path": "/Order/Id"},
        {"xml_path": "/O/@I"},
        {"content": True},
    ):
        found = key(configured, body)
        assert found is None or found.startswith(("value:", "body:"))


def test_the_same_bytes_are_the_same_message_where_the_content_is_the_key() -> None:
    assert key({"content": True}, b"a") == key({"content": True}, b"a") != key({"content": True}, b"a ")


def test_a_providers_place_counts_unless_the_trigger_names_another() -> None:
    stripe = {"json_path": "$.id", "changed": "same"}
    body = b'{"id": "evt_1"}'
    found = source(None, stripe)
    assert (found.key({}, body), found.same, found.window_days) == ("value:evt_1", True, None)
    longer = source({"window_days": 30, "changed": "refuse"}, stripe)
    assert (longer.key({}, body), longer.same, longer.window_days) == ("value:evt_1", False, 30)
    own = source("x-order", stripe)
    assert (own.key(HEADERS, body), own.same) == ("o", False)
