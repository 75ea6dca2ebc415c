"""What triage keeps shows no secret, in whatever notation it came."""

from __future__ import annotations

from typing import Any

import pytest

from continuitybridge.inbox.capture import SCRUBBED, scrub, scrub_text


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "userPassword",
        "X-API-Key",
        "api_key",
        "apiKey",
        "Authorization",
        "client_secret",
        "accessToken",
        "refresh-tokens",
        "Set-Cookie",
        "cvc",
        "cardNumber",
    ],
)
def test_what_is_named_like_a_secret_is_not_kept(name: str) -> None:
    assert scrub({"order": {name: "s3cret"}}) == {"order": {name: SCRUBBED}}


@pytest.mark.parametrize("name", ["author", "passenger", "pinned", "tokenized_at", "monkey", "keys", "order_key"])
def test_what_only_sounds_like_one_is_kept(name: str) -> None:
    assert scrub({name: "x"}) == {name: "x"}


@pytest.mark.parametrize(
    "text",
    [
        "<ns:Password type='x'>s3cret</ns:Password>",
        "password=s3cret&user=anna",
        '{"apiToken": "s3cret"}',
        "Authorization: Bearer s3cret-s3cret",
        "postgresql://anna:s3cret@host/db",
        "token: 's3cret'",
        "url=password=s3cret",
        '{"password": "s3cret with s3cret words"}',
        "<order><secret><![CDATA[s3cret]]></secret></order>",
        '<login password="s3cret"/>',
        "GET /?access_token=s3cret HTTP/1.1",
    ],
)
def test_secrets_in_texts_are_not_kept(text: str) -> None:
    assert "s3cret" not in scrub_text(text)
    assert SCRUBBED in scrub_text(text)


@pytest.mark.parametrize(
    "piece", ["<", "password", "a.b-c_", "bearer ", "x://", "<password ", "token=", "://a:", "=", "' : ", "basic"]
)
def test_no_content_makes_scrubbing_slow(piece: str) -> None:
    """A pattern that backtracks takes minutes for this; the time limit of a test is the witness."""
    for text in (piece * 4_000, piece * 4_000 + "=", "x" * 20_000 + piece * 4_000):
        scrub_text(text)


def test_orders_are_kept_as_they_are() -> None:
    order: dict[str, Any] = {"po": 4711, "lines": [{"sku": "A-1", "qty": 2.5, "note": None}], "ok": True}
    assert scrub(order) == order
    text = "<order><po>4711</po><country>CH</country></order>"
    assert scrub_text(text) == text


def test_deep_and_long_content_is_cut_short() -> None:
    deep: Any = "x"
    for _ in range(100):
        deep = [deep]
    assert "nested deeper" in str(scrub(deep))
    assert len(scrub({"text": "x" * 100_000})["text"]) < 5_000
    many = scrub([list(range(1_000))] * 1_000)
    assert len(str(many)) < 50_000
    assert many[0] == list(range(1_000))
    assert "[more]" in str(many)
