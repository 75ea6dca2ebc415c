"""Where each way of verification ends: the last byte, key and second that is taken, and how a refusal is told."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError
from ways import NOW, verify, way

from continuitybridge.errors import ConfigurationError, NotAuthenticated
from continuitybridge.webhooks.verification import VERIFIERS
from continuitybridge.webhooks.verification.base import Example

KEY = "k" * 32


def mac(message: bytes, algorithm: str = "sha256", key: str = KEY) -> bytes:
    return hmac.digest(key.encode(), message, algorithm)


def is_taken(name: str, example: Example, **settings: Any) -> bool:
    try:
        verify(way(name, **settings), example)
    except NotAuthenticated:
        return False
    return True


SETTINGS: dict[str, dict[str, Any]] = {
    "mtls": {"subjects": ["x"]},
    "introspection": {"url": "https://a.example/", "client_id": "c"},
}


@pytest.mark.parametrize("name", VERIFIERS)
def test_a_request_that_shows_nothing_is_refused_and_who_proves_nothing_of_one_takes_no_get(name: str) -> None:
    found = way(name, **SETTINGS.get(name, {}))
    for proxied in (False, True):
        with pytest.raises(NotAuthenticated):
            found.verify(Example("", {}, proxied=proxied), [b"key"], NOW)
    assert found.takes_get() is (name in ("api_key", "bearer", "basic", "twilio", "mtls", "jwt", "introspection"))


@pytest.mark.parametrize(
    ("signed", "takes_get"), [("{url}{body}", True), ("{query}.{body}", True), ("{path}{body}", False)]
)
def test_an_hmac_over_the_query_proves_something_of_a_get(signed: str, takes_get: bool) -> None:
    assert way("hmac", signed=signed).takes_get() is takes_get


SIGNED = [name for name, each in VERIFIERS.items() if any("signature" in h or "hmac" in h for h in each.headers)]
TIMES = {
    "slack": "x-slack-request-timestamp is",
    "stripe": "t in stripe-signature is",
    "standard_webhooks": "webhook-timestamp is",
    "hmac": "x-zm-request-timestamp is",
}


@pytest.mark.parametrize("name", [*SIGNED, "hmac"])
def test_a_refusal_names_the_header_whose_signature_is_wrong_or_old(name: str) -> None:
    [example, *_] = VERIFIERS[name].examples
    found = way(name, **example.settings)
    header = next(each for each in found.headers if "signature" in each or "hmac" in each)
    wrong = "whsec_" + "A" * 43 + "=" if name == "standard_webhooks" else KEY
    with pytest.raises(NotAuthenticated, match=f"no signature in {header} matches"):
        verify(found, example, wrong)
    if name in TIMES:
        with pytest.raises(NotAuthenticated, match=f"^{TIMES[name]}"):
            verify(found, example, at=example.at + 1000)


@pytest.mark.parametrize(
    ("name", "settings", "characters"),
    [
        ("standard_webhooks", {}, len("whsec_") + 44),
        ("github", {}, 43),
        ("hmac", {}, 43),
        ("hmac", {"key_encoding": "hex"}, 64),
        ("hmac", {"key_encoding": "base64"}, 44),
        ("api_key", {}, len("cbh_") + 43),
    ],
)
def test_a_secret_that_is_made_here_has_32_random_bytes(name: str, settings: Any, characters: int) -> None:
    assert len(way(name, **settings).generate()) == characters


# -- Standard Webhooks ----------------------------------------------------------------------------------------

WHSEC = "whsec_" + b64encode(KEY.encode()).decode()


def standard(message_id: bytes, timestamp: bytes, prefix: bytes = b"v1,") -> Example:
    signature = prefix + b64encode(mac(message_id + b"." + timestamp + b".body"))
    headers = {b"webhook-id": message_id, b"webhook-timestamp": timestamp, b"webhook-signature": signature}
    return Example("", {name: value for name, value in headers.items() if value}, b"body", WHSEC)


def test_a_message_id_has_255_bytes_at_most_and_is_there() -> None:
    assert is_taken("standard_webhooks", standard(b"m" * 255, b"1790000000"))
    assert not is_taken("standard_webhooks", standard(b"m" * 256, b"1790000000"))
    assert not is_taken("standard_webhooks", standard(b"", b"1790000000"))
    assert not is_taken("standard_webhooks", standard(b"m", b""))
    assert not is_taken("standard_webhooks", standard(b"m", b"1790000000", b"v2,"))


@pytest.mark.parametrize(("size", "fits"), [(7, False), (8, True), (64, True), (65, False)])
def test_a_standard_secret_has_8_to_64_bytes(size: int, fits: bool) -> None:
    secret = "whsec_" + b64encode(b"k" * size).decode()
    if fits:
        assert way("standard_webhooks").key(secret) == b"k" * size
    else:
        with pytest.raises(ConfigurationError):
            way("standard_webhooks").key(secret)


@pytest.mark.parametrize("text", ["###", b64encode(b"k" * 31).decode(), b64encode(b"k" * 33).decode()])
def test_a_public_key_has_32_bytes(text: str) -> None:
    with pytest.raises(ConfigurationError):
        way("standard_webhooks").key("whpk_" + text)


def test_while_a_key_pair_is_changed_either_is_believed_in_its_own_scheme_only() -> None:
    pairs = [Ed25519PrivateKey.generate() for _ in range(2)]
    secrets = ["whpk_" + b64encode(each.public_key().public_bytes_raw()).decode() for each in pairs]
    for pair in pairs:
        signature = b64encode(pair.sign(b"m.1790000000.body"))
        for scheme, believed in ((b"v1a,", True), (b"v2a,", False), (b"v1,,", False)):
            headers = {
                b"webhook-id": b"m",
                b"webhook-timestamp": b"1790000000",
                b"webhook-signature": b"v1a,AAAA " + scheme + signature,
            }
            request = Example("", headers, b"body", at=NOW)
            if believed:
                verify(way("standard_webhooks"), request, *secrets)
            else:
                with pytest.raises(NotAuthenticated):
                    verify(way("standard_webhooks"), request, *secrets)


# -- HMAC, described ------------------------------------------------------------------------------------------

URL = "https://a.example/p/q?x=1?y"


@pytest.mark.parametrize(
    ("template", "signed"),
    [
        ("{body}", b"body"),
        ("x{body}", b"xbody"),
        ("{body}x", b"bodyx"),
        ("{method}{body}", b"POSTbody"),
        ("{path}|{body}", b"/p/q|body"),
        ("{query}|{body}", b"x=1?y|body"),
        ("{url}|{body}", URL.encode() + b"|body"),
    ],
)
def test_what_is_signed_is_what_the_template_says(template: str, signed: bytes) -> None:
    for shown, taken in ((signed, True), (signed + b"x", False), (b"x" + signed, False)):
        example = Example("", {b"x-s": mac(shown).hex().encode()}, b"body", KEY, url=URL)
        assert is_taken("hmac", example, header="X-S", signed=template) is taken


@pytest.mark.parametrize(("message_id", "taken"), [(b"some-id-7", True), (b"a.b", False), (b"a\xff", True)])
def test_an_id_ends_where_the_template_says(message_id: bytes, taken: bool) -> None:
    headers = {b"x-s": mac(b"id" + message_id + b".body").hex().encode(), b"x-i": message_id}
    example = Example("", headers, b"body", KEY)
    assert is_taken("hmac", example, header="X-S", id_header="X-I", signed="id{id}.{body}") is taken


@pytest.mark.parametrize("signed", ["", "{timestamp}", "{body}{body}", "{body}{other}", "{body}{id}"])
def test_a_template_has_the_body_once_and_known_places(signed: str) -> None:
    with pytest.raises(ValidationError):
        way("hmac", signed=signed, **({"id_header": "X-I"} if "{id}" in signed else {}))


def test_a_template_with_an_unknown_place_is_told_those_there_are() -> None:
    with pytest.raises(
        ValidationError, match=r"of \{timestamp\}, \{id\}, \{method\}, \{url\}, \{path\}, \{query\}"
    ):
        way("hmac", signed="{body}{other}")


@pytest.mark.parametrize("url", ["https://a.example/\ud800", "https://a.example/h?\ud800=\ud800"])
def test_an_address_that_is_no_text_is_refused_like_any_other(url: str) -> None:
    body = {"body": b""}
    for name, settings, headers in (
        ("hmac", {"header": "X-S", "signed": "{url}{path}{query}{body}"}, {b"x-s": b"00"}),
        ("square", {}, {b"x-square-hmacsha256-signature": b"AAAA"}),
        ("twilio", {}, {b"x-twilio-signature": b"AAAA"}),
    ):
        assert not is_taken(name, Example("", headers, **body, secret=KEY, url=url), **settings)


# -- Slack, Twilio --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "is_answered"), [(4096, True), (4097, False)])
def test_a_challenge_of_slack_has_4096_bytes_at_most(size: int, is_answered: bool) -> None:
    body = json.dumps({"type": "url_verification", "challenge": "abc"}).encode()
    answer = way("slack").answer(Example("", {}, body + b" " * (size - len(body))))
    assert (answer is not None) is is_answered


FORM = b"application/x-www-form-urlencoded"


def twilio(
    url: str, parameters: str = "", body: bytes = b"", seen: str | None = None, kind: bytes = FORM
) -> Example:
    headers = {b"x-twilio-signature": b64encode(mac(f"{url}{parameters}".encode(), "sha1"))}
    if kind:
        headers[b"content-type"] = kind
    return Example("", headers, body, KEY, url=seen or url)


@pytest.mark.parametrize(
    ("signed", "seen"),
    [
        ("http://a.example:80/h", "http://a.example/h"),
        ("http://a.example/h", "http://a.example:80/h"),
        ("https://[2001:db8::1]:443/h", "https://[2001:db8::1]/h"),
        ("https://[2001:db8::1]/h", "https://[2001:db8::1]:443/h"),
        ("https://a.example:8443/h?a=b?c", "https://a.example:8443/h?a=b?c"),
    ],
)
def test_twilio_signs_the_default_port_or_not(signed: str, seen: str) -> None:
    assert is_taken("twilio", twilio(signed, seen=seen))
    assert not is_taken("twilio", twilio(signed, seen=seen.replace("/h", ":8080/h", 1)))


def test_twilios_address_that_is_told_keeps_the_requests_query() -> None:
    request = twilio("https://a.example/h?a=b", seen="http://10.0.0.1/x?a=b")
    assert is_taken("twilio", request, url="https://a.example/h")


@pytest.mark.parametrize(("count", "taken"), [(1000, True), (1001, False)])
def test_a_form_of_twilio_has_1000_parameters_at_most(count: int, taken: bool) -> None:
    names = sorted(f"p{number:04}" for number in range(count))
    body = "&".join(f"{name}=v" for name in names).encode()
    assert is_taken("twilio", twilio("https://a.example/h", "v".join([*names, ""]), body)) is taken


def test_what_of_a_form_is_no_text_is_signed_as_its_replacement() -> None:
    assert is_taken("twilio", twilio("https://a.example/h", "a\ufffd", b"a=%ff"))


def test_a_body_without_a_type_is_covered_by_its_digest_alone_wherever_in_the_query_that_stands() -> None:
    body = b'{"sid": 1}'
    assert not is_taken("twilio", twilio("https://a.example/h", "", body, kind=b""))
    url = f"https://a.example/h?bodySHA256={hashlib.sha256(body).hexdigest()}&x=a?b"
    assert is_taken("twilio", twilio(url, "", body, kind=b""))


# -- JSON Web Tokens ------------------------------------------------------------------------------------------


def token(key: Any = KEY, algorithm: str = "HS256", claims: Any = None, **head: Any) -> str:
    return jwt.encode({"exp": NOW + 60, **(claims or {})}, key, algorithm, headers=head)


def bearing(made: str, secret: str = KEY) -> Example:
    return Example("", {b"authorization": b"Bearer " + made.encode()}, secret=secret)


def sized(size: int) -> str:
    """A token of exactly so many characters."""
    for kid in ("", "a", "ab", "abc"):
        shorter = len(token(claims={"x": ""}, kid=kid))
        for pad in range((size - shorter) * 3 // 4 - 4, (size - shorter) * 3 // 4 + 4):
            made = token(claims={"x": "x" * pad}, kid=kid)
            if len(made) == size:
                return made
    raise AssertionError("there is none")


def test_a_token_has_16_kib_at_most() -> None:
    assert is_taken("jwt", bearing(sized(16 * 1024)))
    with pytest.raises(NotAuthenticated, match="a token is needed in Authorization"):
        verify(way("jwt"), bearing(sized(16 * 1024 + 1)))


def test_extensions_that_change_what_a_token_means_are_refused() -> None:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": NOW + 60}).encode()).rstrip(b"=")
    more: dict[str, Any]
    for more, taken in (({}, True), ({"b64": True}, False), ({"crit": ["exp"]}, False), ({"crit": []}, False)):
        head = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", **more}).encode()).rstrip(b"=")
        signature = base64.urlsafe_b64encode(mac(head + b"." + claims)).rstrip(b"=")
        assert is_taken("jwt", bearing(b".".join((head, claims, signature)).decode())) is taken, more


@pytest.mark.filterwarnings("ignore:The RSA key")
@pytest.mark.parametrize("algorithm", ["RS256", "PS256"])
def test_an_rsa_key_has_2048_bits_at_least_and_the_next_one_is_tried(algorithm: str) -> None:
    short, long = (rsa.generate_private_key(65537, bits) for bits in (1024, 2048))
    found = way("jwt", algorithms=[algorithm])
    for key, taken in ((long, True), (short, False)):
        request = bearing(token(key, algorithm))
        publics = [short.public_key(), long.public_key()]
        if taken:
            found.verify(request, publics, NOW)
        else:
            with pytest.raises(NotAuthenticated):
                found.verify(request, publics, NOW)


def test_what_a_key_of_tokens_may_be_is_said_by_their_algorithm() -> None:
    symmetric, with_set = way("jwt"), way("jwt", jwks_url="https://a.example/keys", audience="b", header="X-T")
    for public in ("ssh-rsa AAAA", "-----BEGIN PUBLIC KEY-----"):
        with pytest.raises(ConfigurationError, match="no public key"):
            symmetric.key(public)
    assert "10 bytes" in (symmetric.weakness("x" * 10) or "")
    assert way("jwt", algorithms=["ES256"]).weakness("x") is None
    assert (symmetric.origin, with_set.origin) == ("made", "none")
    assert with_set.headers == ("x-t",)
    assert list(symmetric.settings.addresses()) == []
    assert list(with_set.settings.addresses()) == [("jwks_url", "https://a.example/keys")]


# -- credentials, certificates --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "place"), [({}, "X-API-Key or as Authorization: Bearer"), ({"header": "X-Token"}, "x-token")]
)
def test_who_shows_no_key_is_told_where_one_is_needed(settings: dict[str, Any], place: str) -> None:
    with pytest.raises(NotAuthenticated, match=f"one key is needed, in {place}$"):
        verify(way("api_key", **settings), Example("", {b"x-other": b"x"}, secret=KEY))


BEGINS, ENDS = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def certificate() -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "erp.example")])
    return x509.CertificateBuilder(name, name, key.public_key(), 7, BEGINS, ENDS).sign(key, hashes.SHA256())


@pytest.mark.parametrize(
    ("at", "taken"),
    [
        (BEGINS, True),
        (BEGINS - timedelta(seconds=1), False),
        (ENDS, True),
        (ENDS + timedelta(seconds=1), False),
    ],
)
def test_a_certificate_is_taken_from_its_first_second_to_its_last(
    certificate: x509.Certificate, at: datetime, taken: bool
) -> None:
    der = base64.b64encode(certificate.public_bytes(Encoding.DER))
    request = Example("", {b"client-cert": der}, at=at.timestamp(), proxied=True)
    assert is_taken("mtls", request, subjects=["erp.example"]) is taken


def test_a_certificate_has_32_kib_at_most_and_is_found_however_a_proxy_spells_it(
    certificate: x509.Certificate,
) -> None:
    der = base64.b64encode(certificate.public_bytes(Encoding.DER))
    pem = quote(certificate.public_bytes(Encoding.PEM).decode(), safe="").encode()
    found = way("mtls", subjects=["erp.example"], header="X-Cert")
    assert found.headers == ("x-cert", "client-cert", "client-cert-chain")
    for value, taken in (
        (der + b" " * (32 * 1024 - len(der)), True),
        (der + b" " * (32 * 1024 + 1 - len(der)), False),
        (b'Hash=ab;cert="' + pem + b'"', True),
        (b'CERT="' + pem + b'";Hash=ab', True),
        (b'XCert="' + pem + b'"', False),
        (b"", False),
    ):
        request = Example("", {b"x-cert": value}, at=BEGINS.timestamp(), proxied=True)
        if taken:
            verify(found, request)
        else:
            with pytest.raises(NotAuthenticated, match="X-Cert" if len(value) % 1024 < 2 else "cannot be read"):
                verify(found, request)
