"""What holds for every way of verification: its documented examples are believed, and nothing else is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ways import NOW, verify, way

from continuitybridge.errors import ConfigurationError, NotAuthenticated
from continuitybridge.nodes import registry
from continuitybridge.nodes.base import BuildContext
from continuitybridge.webhooks.verification import VERIFIERS, _reference
from continuitybridge.webhooks.verification.base import Example

EXAMPLES = [
    pytest.param(name, example, id=f"{name}: {example.title}")
    for name, cls in VERIFIERS.items()
    for example in cls.examples
    if not cls.asks
]
COVER_THE_BODY = {"standard_webhooks", "github", "meta", "shopify", "stripe", "slack", "twilio", "square", "hmac"}
MADE = [
    ("standard_webhooks", {}),
    ("github", {}),
    ("hmac", {}),
    ("hmac", {"key_encoding": "hex"}),
    ("hmac", {"key_encoding": "base64"}),
    ("api_key", {}),
    ("bearer", {}),
    ("basic", {}),
    ("jwt", {}),
]


def test_every_way_has_an_example_and_its_name_is_its_settings_type() -> None:
    for name, cls in VERIFIERS.items():
        assert cls.examples, name
        assert cls.Settings.model_fields["type"].default == name
        assert cls.__doc__
        assert cls.summary


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_a_documented_example_is_believed_as_it_is_and_not_altered(name: str, example: Example) -> None:
    found = way(name, **example.settings)
    verify(found, example)
    if name in COVER_THE_BODY:
        for body in (example.body + b" ", example.body[:-1], b""):
            with pytest.raises(NotAuthenticated):
                verify(found, example, body=body)
    for header, value in example.headers.items():
        if header == b"content-type":
            continue
        for other in (b"", value[:-6], value[:-6] + b"AAAAAA", b"\xff" + value, value.swapcase()[::-1]):
            with pytest.raises(NotAuthenticated):
                verify(found, example, headers={header: other})
    if found.origin == "none":
        return
    with pytest.raises(NotAuthenticated):
        found.verify(example, [], example.at)
    other_secret = "whsec_" + "A" * 43 + "=" if name == "standard_webhooks" else example.secret[:-1] + "x"
    with pytest.raises(NotAuthenticated):
        verify(found, example, other_secret)
    verify(found, example, other_secret, example.secret)
    verify(found, example, example.secret, other_secret)


@pytest.mark.parametrize(("name", "example"), [p for p in EXAMPLES if p.values[0] in ("stripe", "slack", "hmac")])
def test_signed_times_are_taken_within_300_s_on_either_side(name: str, example: Example) -> None:
    found = way(name, **example.settings)
    if name == "hmac" and "timestamp_header" not in example.settings:
        return
    for offset in (-300, 300):
        verify(found, example, at=example.at + offset)
    for offset in (-301, 301, 10**9):
        with pytest.raises(NotAuthenticated, match="300 s"):
            verify(found, example, at=example.at + offset)


@pytest.mark.parametrize(("name", "settings"), MADE)
def test_secrets_that_are_made_here_have_at_least_24_random_bytes(name: str, settings: dict[str, Any]) -> None:
    found = way(name, **settings)
    first, second = found.generate(), found.generate()
    assert first != second
    assert found.key(first) != found.key(second)
    assert found.weakness(first) is None
    assert len(found.key(first)) >= 24


@pytest.mark.parametrize("name", ["shopify", "stripe", "slack", "twilio", "square", "meta"])
def test_a_providers_secret_is_never_made_here_and_a_short_one_is_taken_with_a_warning(name: str) -> None:
    found = way(name)
    with pytest.raises(ConfigurationError):
        found.generate()
    assert "5 bytes" in (found.weakness("12345") or "")
    found.key("12345")
    assert found.weakness("x" * 24) is None
    for unfit in ("", " x", "x\n", "\ud800"):
        with pytest.raises(ConfigurationError) as refused:
            found.key(unfit)
        assert not unfit.strip() or unfit not in str(refused.value)


def test_a_repetition_is_told_by_what_the_provider_says_of_it() -> None:
    assert {name: dict(cls.idempotency) for name, cls in VERIFIERS.items() if cls.idempotency} == {
        "standard_webhooks": {"header": "webhook-id"},
        "github": {"header": "x-github-delivery"},
        "shopify": {"header": "x-shopify-webhook-id"},
        "stripe": {"json_path": "$.id", "changed": "same"},
        "slack": {"json_path": "$.event_id", "changed": "same"},
        "square": {"json_path": "$.event_id", "changed": "same"},
        "twilio": {"header": "i-twilio-idempotency-token"},
    }


PUBLIC = (
    "-----BEGIN PUBLIC KEY-----\n"
    "MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n"
    "-----END PUBLIC KEY-----"
)
ALL = [
    *(way(name) for name in VERIFIERS if name not in ("mtls", "hmac") and not VERIFIERS[name].asks),
    way("mtls", subjects=["x"]),
    way("hmac", timestamp_header="x-time", id_header="x-id", signed="{id}.{timestamp}.{url}{query}{method}{body}"),
    way("hmac", encoding="base64url", prefix="p="),
    way("jwt", algorithms=["EdDSA"]),
]
HEADERS = sorted(
    {name.encode() for found in ALL for name in found.headers}
    | {b"content-type", b"x-time", b"x-id", b"x-signature", b"x-twilio-webhooks-signature-settings"}
)
PIECES = [
    *(
        b"v1,",
        b"v1a,",
        b"sha256=",
        b"v0=",
        b"t=1790000000,v1=",
        b"Bearer ",
        b"Basic ",
        b"p=",
        b".",
        b",",
        b" ",
        b"=",
    ),
    *(
        b"1790000000",
        b"AAAA",
        b"eyJhbGciOiJub25lIn0.e30.",
        b"eyJhbGciOiJIUzI1NiIsImtpZCI6W119.e30.AAAA",
        b'Cert="',
    ),
    *(
        b":MIIB:",
        b"application/x-www-form-urlencoded",
        b"algorithm=HMAC_SHA256",
        b"%00",
        b"-----BEGIN CERTIFICATE-----",
    ),
]
VALUES = st.lists(st.sampled_from(PIECES) | st.binary(max_size=20), max_size=5).map(b"".join)


@given(
    st.dictionaries(st.sampled_from(HEADERS), VALUES, max_size=8),
    st.binary(max_size=60) | st.sampled_from([b"a=1&b=%ff", b'{"type":"url_verification"}', b"[" * 500]),
    st.sampled_from(["", "?", "?bodySHA256=x", "?bodySHA256=%ff&bodySHA256=", "?" + "&" * 3000, "?ä=\ud800"]),
    st.sampled_from([NOW, 0.0, 1e12]),
    st.booleans(),
)
def test_whatever_a_request_is_the_answer_is_a_refusal(
    headers: dict[bytes, bytes], body: bytes, query: str, now: float, proxied: bool
) -> None:
    request = Example("", headers, body, url=f"https://x.example/h{query}", at=now, proxied=proxied)
    for found in ALL:
        secret = {"standard_webhooks": "whsec_" + "A" * 40}.get(found.name, "x" * 40)
        if found.origin == "given" and found.name == "jwt":
            secret = PUBLIC
        keys = [] if found.origin == "none" else [found.key(secret)]
        with pytest.raises(NotAuthenticated):
            found.verify(request, keys, now)
        if found.prepares:
            try:
                asyncio.run(found.prepare(request, keys))
            except NotAuthenticated:
                continue


def test_the_reference_page_is_what_the_classes_say() -> None:
    page = Path(__file__).parents[3] / "docs" / "verification.md"
    assert page.read_text() == _reference.reference(), "run: make docs"


def test_settings_are_checked_when_the_flow_is_written_and_the_field_is_named() -> None:
    def problems(verification: Any, **config: Any) -> dict[str, Any]:
        with pytest.raises(ConfigurationError) as refused:
            registry.build(
                "webhook_trigger", {"slug": "s", "verification": verification, **config}, BuildContext()
            )
        [problem] = refused.value.facts["problems"]
        return dict(problem)

    assert problems("githup")["nearest"] == ["github"]
    assert problems({"type": "hmac", "headr": "x"})["field"] == "verification.headr"
    assert problems({"type": "hmac", "algorithm": "md5"})["field"] == "verification.algorithm"
    assert "need each other" in problems({"type": "hmac", "timestamp_header": "x-t"})["message"]
    assert "need each other" in problems({"type": "hmac", "signed": "{timestamp}.{body}"})["message"]
    assert problems({"type": "hmac", "signed": "{bod}"})["field"] == "verification.signed"
    assert problems({"type": "hmac", "signed": "{id}{body}", "id_header": "i"})["field"] == "verification.signed"
    assert "cannot be mixed" in problems({"type": "jwt", "algorithms": ["HS256", "RS256"]})["message"]
    assert problems({"type": "jwt", "algorithms": ["none"]})["field"].startswith("verification.algorithms")
    assert "audience" in problems({"type": "jwt", "jwks_url": "https://a.example/jwks"})["message"]
    assert problems({"type": "jwt", "jwks_url": "http://a.example/jwks"})["field"] == "verification.jwks_url"
    assert problems({"type": "jwt", "jwks_url": "file:///etc/passwd"})["field"] == "verification.jwks_url"
    assert "who may send" in problems({"type": "mtls"})["message"]
    assert problems({"type": "basic", "username": "a:b"})["field"] == "verification.username"
    assert "GET" in problems("github", methods=["GET"])["message"]
    assert "crc" in problems("github", challenge="crc")["message"]
    assert problems("github", allowed_ips=["10.0.0.0/33"])["field"] == "allowed_ips"
    assert problems("github", idempotency={"json_path": "$..id"})["field"] == "idempotency.json_path"
    assert problems("github", idempotency={"xml_path": "//id"})["field"] == "idempotency.xml_path"
    assert "one of" in problems("github", idempotency={"header": "a", "content": True})["message"]
