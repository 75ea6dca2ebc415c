"""Reading the key by which messages are ordered."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from continuitybridge.errors import ConfigurationError
from continuitybridge.flows.ordering import key_reader

XML = b'<?xml version="1.0"?><o:Order xmlns:o="u" id="7"><Head><Id> PO-1 </Id><Id>PO-2</Id></Head></o:Order>'


@pytest.mark.parametrize(
    ("key", "body", "found"),
    [
        ("$.order.id", b'{"order": {"id": "PO-1"}}', "PO-1"),
        ("$['order id'][1]", b'{"order id": [1, 20000000000000000001]}', "20000000000000000001"),
        ("$.paid", b'{"paid": true}', "true"),
        ("$.id", b'{"id": 1.50}', "1.5"),
        ("$.id", b'{"id": null}', None),
        ("$.id", b'{"id": ""}', None),
        ("$.id", b'{"id": {"a": 1}}', None),
        ("$.id[0]", b'{"id": []}', None),
        ("$.id", b"[1]", None),
        ("$.id", b'{"id"', None),
        ("$.id", b"\xff\xfe", None),
        ("$.id", b'{"id": "a\\u0000b"}', "a\ufffdb"),
        ("$.id", b'{"id": "\\ud800"}', None),
        ("/Order/Head/Id", XML, "PO-1"),
        ("/Order/@id", XML, "7"),
        ("/Order/Head", XML, None),
        ("/Order/Head/Id", XML[:-30], "PO-1"),
        ("/Order/Id", XML, None),
        ("/Order/Head/@id", XML, None),
        ("/Order/Head/Id", b"{}", None),
        ("/a", b'<!DOCTYPE a [<!ENTITY x "1">]><a>&x;</a>', None),
        ("/a", '<?xml version="1.0" encoding="iso-8859-1"?><a>é</a>'.encode("latin-1"), "é"),
        ("$.id", b'\xef\xbb\xbf{"id": "PO-1"}', "PO-1"),
        ("/a/@id", b"<a><b/></a>", None),
        ("/a/b/@id", b'<a><b/><b n:id="2" xmlns:n="u"/></a>', "2"),
        ("X-Order", b"", "A-1"),
        ("x-other", b"", None),
    ],
)
def test_a_key_is_read_from_header_json_or_xml(key: str, body: bytes, found: str | None) -> None:
    assert key_reader(key)(body, {"x-order": "A-1", "content-type": "application/xml"}) == found


def test_a_document_that_is_nested_without_end_is_given_up_early() -> None:
    # Followed down, each level takes longer than the one before it.
    body = b"<a>" * 1_000_000
    began = time.process_time()
    assert key_reader("/a/b")(body, {"content-type": "application/xml"}) is None
    assert time.process_time() - began < 2


def test_an_attribute_without_a_prefix_is_the_key_and_no_declaration_is() -> None:
    read = key_reader("/Order/@id")
    body = b'<Order xmlns:id="urn:ids" id:id="ERP" id="42"/>'
    assert read(body, {"content-type": "application/xml"}) == "42"


def test_a_long_key_is_told_apart_by_its_hash() -> None:
    read = key_reader("$.id")
    one, other = (read(b'{"id": "%s"}' % (b"x" * 300 + end), {}) for end in (b"1", b"2"))
    assert one != other
    assert one is not None
    assert one.startswith("sha256:")
    assert len(one) < 100


@pytest.mark.parametrize("key", ["$", "$.a[*]", "$..a", "$.a[?@.b]", "/", "/a/", "//a", "/a/@b/c", "a b", "é", ""])
def test_a_key_that_names_no_one_place_is_refused(key: str) -> None:
    with pytest.raises(ConfigurationError):
        key_reader(key)


@given(st.binary(max_size=200), st.sampled_from(["$.a", "/a/b", "/a/@b"]))
def test_no_body_breaks_the_reader(body: bytes, key: str) -> None:
    found = key_reader(key)(body, {"content-type": body[:20].decode("latin-1")})
    assert found is None or ("\x00" not in found and found.encode())
