"""Signatures that the providers' own libraries made (stripe 16.1.0, twilio 9.13.0, squareup 46.0.0), and what each
scheme has of its own."""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from typing import Any

import pytest
from ways import NOW, verify, way

from continuitybridge.errors import ConfigurationError, NotAuthenticated
from continuitybridge.webhooks.verification import VERIFIERS
from continuitybridge.webhooks.verification.base import Example


def refused(name: str, example: Example, settings: dict[str, Any] | None = None, **altered: Any) -> None:
    with pytest.raises(NotAuthenticated):
        verify(way(name, **(settings or {})), example, **altered)


# -- Stripe ---------------------------------------------------------------------------------------------------

FIRST = b"07f8d85882781ba06fb1dfad31318bf8e1ddc252e348d8bc427737f7cf7c90fe"
SECOND = b"e8525f449553c598f36ec007a690fcf19b5e315cbdf0da0b3bfd786413dd8b9f"
STRIPE = Example(
    "two signatures while a secret is rolled",
    {
        b"stripe-signature": b"t=1790000000,v1="
        + FIRST
        + b",v1="
        + SECOND
        + b",v0=6ffbb59b2300aae63f272406069a9788598b"
    },
    '{"id": "evt_2", "name": "Zoë"}'.encode(),
)


def test_stripe_any_v1_of_several_suffices_whichever_secret_is_known() -> None:
    found = way("stripe")
    verify(found, STRIPE, "whsec_1")
    verify(found, STRIPE, "whsec_2")
    with pytest.raises(NotAuthenticated):
        verify(found, STRIPE, "whsec_3")


@pytest.mark.parametrize(
    "header",
    [
        b"v1=" + FIRST,
        b"t=1790000000",
        b"t=1790000000,v0=" + FIRST,
        b"t=1790000000,t=1790000000,v1=" + FIRST,
        b"t=1790000000.0,v1=" + FIRST,
        b"t=+1790000000,v1=" + FIRST,
        b"t=,v1=" + FIRST,
        b"t=1790000001,v1=" + FIRST,
    ],
)
def test_stripe_a_header_that_says_less_is_refused(header: bytes) -> None:
    with pytest.raises(NotAuthenticated):
        verify(way("stripe"), STRIPE, "whsec_1", headers={b"stripe-signature": header})


# -- Slack ----------------------------------------------------------------------------------------------------


def slack(body: bytes) -> Example:
    digest = hmac.new(b"s" * 32, b"v0:1790000000:" + body, hashlib.sha256).hexdigest()
    headers = {b"x-slack-request-timestamp": b"1790000000", b"x-slack-signature": b"v0=" + digest.encode()}
    return Example("", headers, body, "s" * 32)


def test_slack_answers_a_signed_url_verification_with_its_challenge_and_nothing_else() -> None:
    found = way("slack")
    asked = slack(b'{"token": "t", "challenge": "3eZbrw1aB", "type": "url_verification"}')
    verify(found, asked)
    answer = found.answer(asked)
    assert answer is not None
    assert (answer.content_type, answer.body) == (b"text/plain; charset=utf-8", b"3eZbrw1aB")
    for body in (
        b'{"type": "event_callback", "event": {"text": "\\"url_verification\\""}}',
        b'{"type": "url_verification"}',
        b'{"type": "url_verification", "challenge": 7}',
        b'["url_verification"]',
        b'"url_verification',
    ):
        verify(found, slack(body))
        assert found.answer(slack(body)) is None


# -- Twilio ---------------------------------------------------------------------------------------------------

FORM = Example(
    "values that repeat, are empty, and need encoding; a port",
    {
        b"content-type": b"application/x-www-form-urlencoded; charset=UTF-8",
        b"x-twilio-signature": b"AW1fjIqKH6gCCdVsLlhNrfZr1e0=",
    },
    b"Body=Gr%C3%BCezi+%26+hallo&To=%2B41790000000&Media=b&Media=a&Media=b&Empty=",
    "twilio-token",
    url="https://sms.example:8443/hook?x=%20y",
)
JSON = Example(
    "JSON, bound by its hash",
    {b"content-type": b"application/json", b"x-twilio-signature": b"UXaA9GFT+QIdwIST3oLxtdeMut0="},
    b'{"sid": "MM1"}',
    "twilio-token",
    url="https://sms.example/hook?bodySHA256=305c556d54048f1ea19c0849a91c83c86f63014430d7a7a9e6c682aae974d3a7",
)


def test_twilio_forms_and_json_bodies_are_believed_as_its_library_signs_them() -> None:
    verify(way("twilio"), FORM)
    verify(way("twilio"), JSON)
    upper = JSON.url[:40] + JSON.url[40:].replace("d3a7", "D3A7")
    refused("twilio", JSON, url=upper)
    refused("twilio", JSON, body=b'{"sid": "MM2"}')
    refused("twilio", FORM, body=FORM.body + b"&More=1")
    refused("twilio", FORM, url="https://sms.example:8443/hook?x=y")


def test_twilio_a_body_that_the_signature_does_not_cover_is_refused() -> None:
    bare = Example(
        "",
        {b"x-twilio-signature": b64encode(hmac.digest(b"t", b"https://a.example/h", "sha1"))},
        b"",
        "t",
        url="https://a.example/h",
    )
    verify(way("twilio"), bare)
    verify(way("twilio"), bare, method="GET")
    refused("twilio", bare, body=b'{"sid": 1}', headers={b"content-type": b"application/json"})
    refused("twilio", bare, body=b"x=1", headers={b"content-type": b"application/x-www-form-urlencoded"})
    refused("twilio", bare, url="https://a.example/h?bodySHA256=")


def test_twilio_the_default_port_may_be_signed_or_not_and_the_address_may_be_told() -> None:
    for signed in (b"https://a.example/h", b"https://a.example:443/h"):
        signature = b64encode(hmac.digest(b"t", signed, "sha1"))
        for seen in ("https://a.example/h", "https://a.example:443/h"):
            verify(way("twilio"), Example("", {b"x-twilio-signature": signature}, b"", "t", url=seen))
        told = way("twilio", url="https://a.example/h")
        verify(told, Example("", {b"x-twilio-signature": signature}, b"", "t", url="http://127.0.0.1:8080/other"))


def test_twilio_the_shared_key_setting_selects_sha256() -> None:
    headers = {
        b"x-twilio-signature": b64encode(hmac.digest(b"t", b"https://a.example/h", "sha256")),
        b"x-twilio-webhooks-signature-settings": b"key=WK1,algorithm=HMAC_SHA256",
    }
    example = Example("", headers, b"", "t", url="https://a.example/h")
    verify(way("twilio"), example)
    refused("twilio", example, headers={b"x-twilio-webhooks-signature-settings": b""})


# -- Square ---------------------------------------------------------------------------------------------------


def test_square_url_and_body_are_signed_and_the_url_may_be_told() -> None:
    example = Example(
        "",
        {b"x-square-hmacsha256-signature": b"qK2nDY9bsaHpPNcE9lZhCu9F8iYiCEtPcRFQ/IxcpsY="},
        '{"event_id":"e1","ü":1}'.encode(),
        "sq-key-0123456789",
        url="https://pay.example/hook",
    )
    verify(way("square"), example)
    refused("square", example, url="https://pay.example/hook/")
    verify(way("square", url="https://pay.example/hook"), example, url="http://127.0.0.1/x")


# -- GitHub and those alike -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        b"757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
        b"sha1=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
        b"sha256=",
        b"sha256=zz",
        b"sha256=757107ea",
    ],
)
def test_github_another_scheme_or_a_shorter_digest_is_refused(header: bytes) -> None:
    refused("github", VERIFIERS["github"].examples[0], headers={b"x-hub-signature-256": header})


def test_of_several_signatures_in_one_header_any_valid_one_suffices() -> None:
    for name in ("github", "shopify", "slack", "square", "twilio"):
        example = VERIFIERS[name].examples[0]
        found = way(name, **example.settings)
        [header] = [h for h in example.headers if b"signature" in h or b"hmac" in h]
        value = example.headers[header]
        for several in (b"AAAA, " + value, value + b",", b"," * 10 + value):
            verify(found, example, headers={header: several})
        refused(name, example, dict(example.settings), headers={header: b"," * 100 + value})


# -- HMAC, described ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha384", "sha512"])
@pytest.mark.parametrize("encoding", ["hex", "base64", "base64url"])
def test_hmac_every_algorithm_and_encoding(algorithm: str, encoding: str) -> None:
    raw = hmac.digest(b"k" * 32, b"body", algorithm)
    written = {
        "hex": raw.hex().encode(),
        "base64": b64encode(raw),
        "base64url": b64encode(raw, b"-_").rstrip(b"="),
    }[encoding]
    found = way("hmac", header="X-S", algorithm=algorithm, encoding=encoding, prefix="v=")
    verify(found, Example("", {b"x-s": b"v=" + written}, b"body", "k" * 32))
    with pytest.raises(NotAuthenticated):
        verify(found, Example("", {b"x-s": written}, b"body", "k" * 32))


def test_hmac_signs_what_the_template_says_byte_for_byte() -> None:
    url = "https://a.example/p/q?x=1&y=%20"
    signed = b"POST|/p/q|x=1&y=%20|" + url.encode() + b"|id-7|1790000000123|" + b"\x00\xff"
    found = way(
        "hmac",
        header="X-S",
        signed="{method}|{path}|{query}|{url}|{id}|{timestamp}|{body}",
        timestamp_header="X-T",
        timestamp_unit="ms",
        id_header="X-I",
        key_encoding="base64",
    )
    headers = {
        b"x-s": hmac.digest(b"\x00key\xff", signed, "sha256").hex().encode(),
        b"x-t": b"1790000000123",
        b"x-i": b"id-7",
    }
    example = Example("", headers, b"\x00\xff", b64encode(b"\x00key\xff").decode(), at=NOW, url=url)
    verify(found, example)
    for altered in (
        {"method": "PUT"},
        {"url": url + "1"},
        {"headers": {b"x-i": b"id-8"}},
        {"headers": {b"x-i": b"id|7"}},
        {"headers": {b"x-t": b"1790000000124"}},
        {"headers": {b"x-t": b"1790000000"}},
    ):
        with pytest.raises(NotAuthenticated):
            verify(found, example, **altered)


def timed(unit: str, timestamp: bytes) -> Example:
    """A request whose time is signed as it is written."""
    signature = hmac.digest(b"k" * 32, timestamp + b".body", "sha256").hex().encode()
    settings = {"header": "X-S", "signed": "{timestamp}.{body}", "timestamp_header": "X-T", "timestamp_unit": unit}
    return Example("", {b"x-s": signature, b"x-t": timestamp}, b"body", "k" * 32, settings, at=NOW)


@pytest.mark.parametrize(
    ("unit", "timestamp", "is_taken"),
    [
        ("s", b"1790000300", True),
        ("s", b"1790000301", False),
        ("ms", b"1790000300999", True),
        ("ms", b"1790000301000", False),
        ("ms", b"1789999700000", True),
        ("ms", b"1789999699999", False),
        ("s", b"0000001790000000", True),
        ("s", b"00000001790000000", False),
    ],
)
def test_a_time_is_taken_to_the_second_and_is_written_in_16_digits_at_most(
    unit: str, timestamp: bytes, is_taken: bool
) -> None:
    example = timed(unit, timestamp)
    if is_taken:
        verify(way("hmac", **example.settings), example)
    else:
        refused("hmac", example, dict(example.settings))


@pytest.mark.parametrize(
    ("unit", "named"), [("s", "an integer: seconds since"), ("ms", "an integer: milliseconds")]
)
def test_who_sends_no_time_is_told_its_unit(unit: str, named: str) -> None:
    example = timed(unit, b"now")
    with pytest.raises(NotAuthenticated, match=named):
        verify(way("hmac", **example.settings), example)


def test_sixteen_signatures_of_a_request_are_looked_at() -> None:
    right = hmac.digest(b"k" * 32, b"body", "sha256").hex().encode()
    found = way("hmac", header="X-S")
    for before, after, is_taken in ((0, 40, True), (15, 40, True), (16, 0, False), (16, 40, False)):
        shown = b",".join([b"00"] * before + [right] + [b"00"] * after)
        example = Example("", {b"x-s": shown}, b"body", "k" * 32)
        if is_taken:
            verify(found, example)
        else:
            with pytest.raises(NotAuthenticated):
                verify(found, example)


@pytest.mark.parametrize("padding", [b"", b"=", b"=="])
def test_base64url_is_read_with_its_padding_or_without_and_nothing_else_is(padding: bytes) -> None:
    for algorithm in ("sha1", "sha256", "sha512"):
        raw = hmac.digest(b"k" * 32, b"body", algorithm)
        bare = b64encode(raw, b"-_").rstrip(b"=")
        found = way("hmac", header="X-S", algorithm=algorithm, encoding="base64url")
        verify(found, Example("", {b"x-s": bare + padding}, b"body", "k" * 32))
        for other in (b"=" + bare, b"!!!!" + bare, bare[:5] + b"    " + bare[5:]):
            with pytest.raises(NotAuthenticated):
                verify(found, Example("", {b"x-s": other}, b"body", "k" * 32))


def test_base64url_may_end_with_any_letter() -> None:
    found = way("hmac", header="X-S", algorithm="sha384", encoding="base64url")
    for number in range(400):
        body = str(number).encode()
        written = b64encode(hmac.digest(b"k" * 32, body, "sha384"), b"-_")
        verify(found, Example("", {b"x-s": written}, body, "k" * 32))


@pytest.mark.parametrize("name", ["slack", "stripe", "hmac", "introspection"])
def test_a_secret_has_8192_characters_at_most(name: str) -> None:
    found = way(name, **({"url": "https://a.example/", "client_id": "c"} if name == "introspection" else {}))
    assert found.key("x" * 8192)
    with pytest.raises(ConfigurationError, match="8192 characters"):
        found.key("x" * 8193)
