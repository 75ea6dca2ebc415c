"""What intake looks at beside the body's bytes."""

from __future__ import annotations

import pytest

from continuitybridge.errors import UnreadableContent, UnsupportedContent
from continuitybridge.webhooks import content

JSON_AND_XML = frozenset({"application/json", "application/xml"})


@pytest.mark.parametrize(
    ("header", "valid", "expected"),
    [
        (b"application/json", JSON_AND_XML, ("application/json", None)),
        (b"Application/JSON; Charset=UTF-8", JSON_AND_XML, ("application/json", "utf-8")),
        (b'application/xml; charset="iso-8859-1"; x=y', JSON_AND_XML, ("application/xml", "iso-8859-1")),
        (b"application/cloudevents+json", JSON_AND_XML, ("application/cloudevents+json", None)),
        (b"application/atom+xml", JSON_AND_XML, ("application/atom+xml", None)),
        (b"text/csv", frozenset({"text/*"}), ("text/csv", None)),
        (b"image/png", frozenset({"*/*"}), ("image/png", None)),
    ],
)
def test_a_listed_content_type_is_taken(header: bytes, valid: frozenset[str], expected: tuple[str, str]) -> None:
    assert content.media_type({b"content-type": header}, valid) == expected


@pytest.mark.parametrize(
    "header",
    [
        b"text/plain",
        b"",
        b"application/jsonx",
        b"json",
        b"application/*",
        b"\xff",
        b"image/svg+xml",
        b"text/+json",
    ],
)
def test_an_unlisted_content_type_is_refused_with_those_that_are_valid(header: bytes) -> None:
    with pytest.raises(UnsupportedContent) as refused:
        content.media_type({b"content-type": header}, JSON_AND_XML)
    assert refused.value.facts["valid"] == ["application/json", "application/xml"]


def test_an_encoded_body_is_refused() -> None:
    headers = {b"content-type": b"application/json", b"content-encoding": b"gzip"}
    with pytest.raises(UnsupportedContent, match="Content-Encoding"):
        content.media_type(headers, JSON_AND_XML)


@pytest.mark.parametrize(
    ("body", "kind", "charset"),
    [
        (b"", "application/json", None),
        (b"\xff{}", "application/json", None),
        (b"\xff{}", "application/vnd.x+json", None),
        (b"\xff\xfe", "application/xml", "us-ascii"),
        (b"{}", "application/json", "no-such-charset"),
        (b"{}", "application/json", "a\0b"),
        (b"{}", "application/json", "punycode"),
        (b"{}", "application/json", "zlib"),
        (b"{}", "application/json", ""),
    ],
)
def test_a_body_that_cannot_be_what_is_declared_is_refused(body: bytes, kind: str, charset: str | None) -> None:
    with pytest.raises(UnreadableContent):
        content.check_readable(body, kind, charset)


@pytest.mark.parametrize(
    ("body", "kind", "charset"),
    [
        (b"not well-formed: the flow says", "application/json", None),
        ("ü".encode("latin-1"), "application/xml", "iso-8859-1"),
        ("ü".encode("cp1252"), "text/csv", "windows-1252"),
        ("ü".encode("utf-16"), "application/xml", "utf-16"),
        (b"\xff\x00", "application/xml", None),
        (b"\xff\x00", "application/octet-stream", None),
    ],
)
def test_a_body_that_can_be_what_is_declared_is_taken(body: bytes, kind: str, charset: str | None) -> None:
    content.check_readable(body, kind, charset)


def test_no_credential_and_no_address_of_a_person_is_kept_with_a_message() -> None:
    secret = {
        name.encode(): b"secret"
        for name in [
            "authorization",
            "proxy-authorization",
            "cookie",
            "set-cookie",
            "x-api-key",
            "x-auth-token",
            "x-access-token",
            "webhook-signature",
            "x-hub-signature-256",
            "x-shopify-hmac-sha256",
            "x-amz-security-token",
            "x-csrf-token",
            "x-client-secret",
            "x-forwarded-for",
            "x-real-ip",
            "forwarded",
            "host",
            "connection",
            "x-goog-api-key",
            "x-password",
        ]
    }
    assert content.kept_headers(secret) == {}
    kept = {
        b"content-type": b"application/json",
        b"user-agent": b"erp/1",
        b"webhook-id": b"m",
        b"webhook-timestamp": b"1",
        b"x-github-event": b"push",
        b"ce-type": b"order",
        b"traceparent": b"00-1",
    }
    assert content.kept_headers({**secret, **kept}) == {k.decode(): v.decode() for k, v in kept.items()}


def test_kept_headers_are_bounded() -> None:
    many = {f"x-{n}".encode(): b"v" for n in range(1000)}
    assert len(content.kept_headers(many)) == content.MAX_HEADERS
    assert content.kept_headers({b"x-long": b"v" * 5000}) == {}


def test_what_the_endpoints_own_verification_reads_is_not_kept_either() -> None:
    headers = {b"x-carrier-proof": b"secret", b"x-carrier": b"v", b"webhook-id": b"m"}
    hidden = frozenset({b"x-carrier-proof", b"webhook-id"})
    assert content.kept_headers(headers, hidden) == {"x-carrier": "v", "webhook-id": "m"}
