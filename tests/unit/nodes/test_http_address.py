"""Addresses: what is called, what is refused, where a redirect may lead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from continuitybridge.nodes.http.address import Origin, parse, redirected


@pytest.mark.parametrize(
    ("url", "origin", "authority", "target"),
    [
        ("http://a.example", ("http", "a.example", 80), "a.example", "/"),
        ("HTTPS://A.Example:443/x?y=1#z", ("https", "a.example", 443), "a.example", "/x?y=1"),
        ("http://a.example:8080?y", ("http", "a.example", 8080), "a.example:8080", "/?y"),
        ("http://[::1]:81/x", ("http", "::1", 81), "[::1]:81", "/x"),
        (
            "https://bücher.example/ü b",
            ("https", "xn--bcher-kva.example", 443),
            "xn--bcher-kva.example",
            "/%C3%BC%20b",
        ),
        ("http://a/100%/%2F%zz", ("http", "a", 80), "a", "/100%25/%2F%25zz"),
        ("http://a/\r\nx: 1", ("http", "a", 80), "a", "/%0D%0Ax:%201"),
    ],
)
def test_an_address_is_taken_apart(url: str, origin: tuple[str, str, int], authority: str, target: str) -> None:
    address = parse(url)
    assert address.origin == Origin(*origin)
    assert (address.origin.authority, address.target) == (authority, target)


@pytest.mark.parametrize(
    "url",
    [
        "", "a.example/x", "ftp://a/x", "http://", "http:///x", "http://a b/", "http://a:0/", "http://a:65536/",
        "http://a:x/", "http://canary:canary@a/", "http://[::1", "http://a\r\nx/", "http://-\u2028/",
    ],
)  # fmt: skip
def test_what_cannot_be_called_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse(url)
    assert "canary" not in str(refused.value)


@given(st.text())
def test_any_text_gives_one_line_of_ascii_or_is_refused(text: str) -> None:
    try:
        address = parse("http://a.example/" + text)
    except ValueError:
        return
    assert address.target.isascii()
    assert address.target.isprintable()
    assert " " not in address.target


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/y", "/y"),
        ("y?z", "/x/y?z"),
        ("http://a.example/z", "/z"),
        ("http://a.example:80/z", "/z"),
        ("https://a.example/z", None),
        ("http://a.example:81/z", None),
        ("//b.example/z", None),
        ("http://u:p@a.example/z", None),
        ("http://[", None),
    ],
)
def test_a_redirect_leads_to_the_same_origin_or_nowhere(location: str, target: str | None) -> None:
    found = redirected(parse("http://a.example/x/1"), location)
    assert (found.target if found else None) == target
