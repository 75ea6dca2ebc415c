"""Credentials that are shown as they are: keys, tokens, passwords, certificates; and JSON Web Tokens."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from ways import NOW, verify, way

from continuitybridge.errors import ConfigurationError, NotAuthenticated
from continuitybridge.webhooks.verification.base import Example

SECRET = "cbh_1f9mJZ0sQp4eUJ8n2b7VvKx3YtRwLqGd"


def shown(**headers: bytes) -> Example:
    return Example("", {name.replace("_", "-").encode(): value for name, value in headers.items()}, secret=SECRET)


# -- API key, bearer, basic -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"x_api_key": SECRET.encode()},
        {"authorization": b"Bearer " + SECRET.encode()},
        {"authorization": b"bearer  " + SECRET.encode()},
        {"authorization": b"Bearer " + SECRET.encode(), "x_api_key": SECRET.encode()},
    ],
)
def test_an_api_key_is_taken_from_either_header(headers: dict[str, bytes]) -> None:
    verify(way("api_key"), shown(**headers))
    with pytest.raises(NotAuthenticated):
        verify(way("api_key"), shown(**headers), SECRET[:-1])


def test_two_different_keys_in_one_request_and_other_schemes_are_refused() -> None:
    for headers in (
        {"x_api_key": SECRET.encode(), "authorization": b"Bearer other"},
        {"authorization": b"Basic " + SECRET.encode()},
        {"authorization": SECRET.encode()},
    ):
        with pytest.raises(NotAuthenticated):
            verify(way("api_key"), shown(**headers))


def test_an_api_key_in_a_header_of_its_own_is_taken_from_there_only() -> None:
    found = way("api_key", header="X-Token", prefix="Token ")
    verify(found, shown(x_token=b"Token " + SECRET.encode()))
    assert found.headers == ("x-token",)
    for headers in ({"x_token": SECRET.encode()}, {"x_api_key": SECRET.encode()}):
        with pytest.raises(NotAuthenticated):
            verify(found, shown(**headers))


@pytest.mark.parametrize("name", ["api_key", "bearer", "basic"])
def test_a_credential_of_8_to_512_characters_is_taken_and_one_that_is_made_here_can_be_told(name: str) -> None:
    found = way(name)
    for secret in ("x" * 8, "x" * 512):
        assert found.key(secret)
    made = {found.generate() for _ in range(2)}
    assert len(made) == 2
    assert all(each.startswith("cbh_") and found.key(each) for each in made)
    assert found.takes_get()


@pytest.mark.parametrize("secret", ["short", "x" * 7, "with space " * 4, "ö" * 30, "x" * 513])
def test_an_unfit_credential_is_refused(secret: str) -> None:
    for name in ("api_key", "bearer"):
        with pytest.raises(ConfigurationError, match="8 to 512 printable ASCII characters and no spaces"):
            way(name).key(secret)


@pytest.mark.parametrize(
    "secret", ["short", "x" * 7, "x" * 513, " leading blank", "with\na break", "no \ud800 text"]
)
def test_an_unfit_password_is_refused(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="8 to 512 characters, none of them a control character"):
        way("basic").key(secret)


@pytest.mark.parametrize("secret", ["Käse:und Wörter", "пароль для заказов", ":" * 8, "ö" * 512])
def test_a_password_has_any_characters_in_utf_8(secret: str) -> None:
    found = way("basic", username="größer")
    pair = base64.b64encode(f"größer:{secret}".encode())
    verify(found, shown(authorization=b"Basic " + pair), secret)
    other = base64.b64encode(f"größer:{secret}".encode("utf-16"))
    with pytest.raises(NotAuthenticated):
        verify(found, shown(authorization=b"Basic " + other), secret)


def test_a_bearer_token_is_no_api_key_header() -> None:
    verify(way("bearer"), shown(authorization=b"Bearer " + SECRET.encode()))
    with pytest.raises(NotAuthenticated):
        verify(way("bearer"), shown(x_api_key=SECRET.encode()))


def test_a_basic_credential_has_the_name_webhook_unless_the_trigger_says_another() -> None:
    for name, settings in (("webhook", {}), ("erp", {"username": "erp"})):
        pair = base64.b64encode(f"{name}:{SECRET}".encode())
        verify(way("basic", **settings), shown(authorization=b"Basic " + pair))
        with pytest.raises(NotAuthenticated):
            verify(way("basic", username="other"), shown(authorization=b"Basic " + pair))


@pytest.mark.parametrize("shown_text", ["erp:" + SECRET + "x", "ERP:" + SECRET, SECRET, ":" + SECRET, "erp"])
def test_basic_needs_the_right_name_and_password(shown_text: str) -> None:
    found = way("basic", username="erp")
    verify(found, shown(authorization=b"basic " + base64.b64encode(f"erp:{SECRET}".encode())))
    with pytest.raises(NotAuthenticated) as refused:
        verify(found, shown(authorization=b"Basic " + base64.b64encode(shown_text.encode())))
    assert refused.value.facts["scheme"].startswith("Basic realm=")


# -- JSON Web Tokens ------------------------------------------------------------------------------------------

HS = "an-hs256-secret-of-at-least-32-bytes"
RSA = rsa.generate_private_key(65537, 2048)
PUBLIC = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def token(claims: dict[str, Any] | None = None, key: Any = HS, algorithm: str = "HS256", **head: Any) -> Example:
    claims = {"exp": int(NOW) + 60, **(claims or {})}
    made = jwt.encode({k: v for k, v in claims.items() if v is not None}, key, algorithm, headers=head or None)
    return Example("", {b"authorization": b"Bearer " + made.encode()}, secret=HS)


@pytest.mark.parametrize(
    ("claims", "settings"),
    [
        ({"exp": int(NOW) - 59}, {}),
        ({"exp": NOW + 0.5}, {}),
        ({"nbf": int(NOW) + 60, "iat": int(NOW)}, {}),
        ({"iss": "a"}, {}),
        ({"iss": "a", "aud": "b"}, {"issuer": "a", "audience": "b"}),
        ({"aud": ["x", "b"]}, {"audience": "b"}),
        ({"n": 1, "ok": True, "s": "x"}, {"claims": {"n": 1, "ok": True, "s": "x"}}),
    ],
)
def test_a_token_whose_claims_hold_is_believed(claims: dict[str, Any], settings: dict[str, Any]) -> None:
    verify(way("jwt", **settings), token(claims))


@pytest.mark.parametrize(
    ("claims", "settings"),
    [
        ({"exp": None}, {}),
        ({"exp": int(NOW) - 60}, {}),
        ({"exp": "soon"}, {}),
        ({"exp": True}, {}),
        ({"nbf": int(NOW) + 61}, {}),
        ({"nbf": [1]}, {}),
        ({"iat": int(NOW) + 61}, {}),
        ({}, {"issuer": "a"}),
        ({"iss": "b"}, {"issuer": "a"}),
        ({}, {"audience": "b"}),
        ({"aud": "bb"}, {"audience": "b"}),
        ({"aud": {"b": 1}}, {"audience": "b"}),
        ({"aud": "b"}, {}),
        ({"n": "1"}, {"claims": {"n": 1}}),
        ({"n": True}, {"claims": {"n": 1}}),
        ({}, {"claims": {"n": 1}}),
    ],
)
def test_a_token_whose_claims_do_not_hold_is_refused(claims: dict[str, Any], settings: dict[str, Any]) -> None:
    with pytest.raises(NotAuthenticated):
        verify(way("jwt", **settings), token(claims))


def test_a_claim_of_another_type_is_not_what_is_needed() -> None:
    payload = json.dumps({"exp": NOW + 60, "iss": ["a"]}).encode()
    made = jwt.PyJWS().encode(payload, HS, "HS256")
    with pytest.raises(NotAuthenticated):
        verify(way("jwt", issuer="a"), Example("", {b"authorization": b"Bearer " + made.encode()}, secret=HS))
    for payload in (b"[]", b"7", b"{", b"\xff"):
        made = jwt.PyJWS().encode(payload, HS, "HS256")
        with pytest.raises(NotAuthenticated):
            verify(way("jwt"), Example("", {b"authorization": b"Bearer " + made.encode()}, secret=HS))


def unsigned(head: dict[str, Any], claims: Any = None) -> bytes:
    def part(value: Any) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    return part(head) + b"." + part({"exp": NOW + 60} if claims is None else claims) + b"."


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", None, 7, ["HS256"]])
def test_an_unsigned_token_is_refused_however_it_is_spelt(algorithm: Any) -> None:
    for made in (unsigned({"alg": algorithm, "typ": "JWT"}), unsigned({"alg": algorithm}) + b"AAAA"):
        with pytest.raises(NotAuthenticated):
            verify(way("jwt"), Example("", {b"authorization": b"Bearer " + made}, secret=HS))


def test_a_public_key_never_passes_for_a_secret() -> None:
    import hashlib
    import hmac

    asymmetric = way("jwt", algorithms=["RS256"])
    body = unsigned({"alg": "HS256", "typ": "JWT"})[:-1]
    forged = (
        body + b"." + base64.urlsafe_b64encode(hmac.digest(PUBLIC.encode(), body, hashlib.sha256)).rstrip(b"=")
    )
    with pytest.raises(NotAuthenticated):
        verify(asymmetric, Example("", {b"authorization": b"Bearer " + forged}), PUBLIC)
    verify(asymmetric, token(key=RSA, algorithm="RS256"), PUBLIC)
    with pytest.raises(NotAuthenticated):
        verify(asymmetric, token(key=RSA, algorithm="RS512"), PUBLIC)
    with pytest.raises(ConfigurationError):
        way("jwt").key(PUBLIC)
    with pytest.raises(ConfigurationError):
        asymmetric.key(HS)
    assert (asymmetric.origin, way("jwt").origin) == ("given", "made")


@pytest.mark.filterwarnings("ignore:The RSA key")
def test_weak_keys_and_unknown_extensions_are_refused() -> None:
    short = rsa.generate_private_key(65537, 1024)
    pem = short.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    with pytest.raises(NotAuthenticated):
        verify(way("jwt", algorithms=["RS256"]), token(key=short, algorithm="RS256"), pem)
    with pytest.raises(NotAuthenticated):
        verify(way("jwt"), token(crit=["exp"]))
    with pytest.raises(NotAuthenticated):
        verify(way("jwt"), Example("", {b"authorization": b"Bearer " + b"a" * 20_000 + b".b.c"}, secret=HS))


def test_a_token_may_stand_in_another_header() -> None:
    bearer = token().headers[b"authorization"].removeprefix(b"Bearer ")
    found = way("jwt", header="X-Token")
    verify(found, Example("", {b"x-token": bearer}, secret=HS))
    with pytest.raises(NotAuthenticated):
        verify(found, token())


# -- certificates ---------------------------------------------------------------------------------------------


def certificate(begins: int = 2026, ends: int = 2056, dns: str = "api.erp.example") -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "erp.example")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(datetime(begins, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(ends, 1, 1, tzinfo=UTC))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(dns)]), critical=False)
        .sign(key, hashes.SHA256())
    )


CERTIFICATE = certificate()
DER = base64.b64encode(CERTIFICATE.public_bytes(Encoding.DER))
PEM = CERTIFICATE.public_bytes(Encoding.PEM).decode()
CHAIN = base64.b64encode(certificate().public_bytes(Encoding.DER))
FINGERPRINT = CERTIFICATE.fingerprint(hashes.SHA256()).hex()


def handed_on(value: bytes, header: bytes = b"client-cert", proxied: bool = True) -> Example:
    return Example("", {header: value}, proxied=proxied)


@pytest.mark.parametrize(
    "value",
    [
        b":" + DER + b":",
        DER,
        quote(DER).encode(),
        quote(PEM).encode(),
        quote(PEM, safe="+=/").encode(),
        b'Hash=ab;Cert="' + quote(PEM, safe="").encode() + b'";Subject="CN=erp.example"',
    ],
)
def test_a_certificate_is_read_as_proxies_write_it(value: bytes) -> None:
    verify(way("mtls", fingerprints=[FINGERPRINT]), handed_on(value))
    verify(way("mtls", fingerprints=[FINGERPRINT.upper()], header="X-C"), handed_on(value, b"x-c"))


@pytest.mark.parametrize("value", [DER + b"," + CHAIN, quote(DER + b"," + CHAIN, safe="").encode()])
def test_behind_a_certificate_stands_its_chain_in_traefiks_header_and_in_no_other(value: bytes) -> None:
    header = "X-Forwarded-Tls-Client-Cert"
    verify(way("mtls", fingerprints=[FINGERPRINT], header=header), handed_on(value, header.lower().encode()))
    with pytest.raises(NotAuthenticated, match="cannot be read"):
        verify(way("mtls", fingerprints=[FINGERPRINT]), handed_on(value))


@pytest.mark.parametrize("subject", ["erp.example", "api.erp.example"])
def test_a_certificate_is_told_by_its_names(subject: str) -> None:
    verify(way("mtls", subjects=["other", subject]), handed_on(DER))
    with pytest.raises(NotAuthenticated):
        verify(way("mtls", subjects=["example", "*.erp.example"]), handed_on(DER))


@pytest.mark.parametrize(
    "example",
    [
        lambda: handed_on(DER, proxied=False),
        lambda: handed_on(DER, b"x-other"),
        lambda: handed_on(DER + b", " + DER),
        lambda: handed_on(DER + b",, " + CHAIN),
        lambda: handed_on(CHAIN + b"," + DER),
        lambda: handed_on(base64.b64encode(certificate().public_bytes(Encoding.DER))),
        lambda: handed_on(b"A" * 40_000),
        lambda: handed_on(DER[:-40]),
    ],
)
def test_a_certificate_from_elsewhere_another_or_a_broken_one_is_refused(example: Callable[[], Example]) -> None:
    with pytest.raises(NotAuthenticated):
        verify(way("mtls", fingerprints=[FINGERPRINT]), example())


def test_a_certificate_out_of_its_time_is_refused_even_if_it_is_pinned() -> None:
    for old in (certificate(2020, 2025), certificate(2050)):
        found = way("mtls", fingerprints=[old.fingerprint(hashes.SHA256()).hex(":")])
        with pytest.raises(NotAuthenticated, match="not valid now"):
            verify(found, handed_on(base64.b64encode(old.public_bytes(Encoding.DER))))
