"""Signatures as Square makes them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field

from continuitybridge.nodes.base import hints
from continuitybridge.webhooks.verification._signing import Signing, from_base64, several
from continuitybridge.webhooks.verification.base import Example, Received, VerificationSettings

HEADER = "x-square-hmacsha256-signature"


class SquareSettings(VerificationSettings):
    type: Literal["square"] = Field(default="square", description="The way's name.")
    url: str | None = Field(
        default=None,
        pattern=r"^https?://\S+$",
        description="The notification URL exactly as the subscription has it. Without it the endpoint's address "
        "below `BRIDGE_PUBLIC_URL`, with the request's query.",
        json_schema_extra=hints(placeholder="https://bridge.example/bridge/hooks/aurora/prod/payments"),
    )


class Square(Signing[SquareSettings]):
    """`x-square-hmacsha256-signature: <base64>`: HMAC-SHA256 of the notification URL followed by the body, under
    the subscription's signature key: give it with `bridge endpoint rotate-secret --secret-file`. The URL has to
    be the subscription's to the letter: set `BRIDGE_PUBLIC_URL`, or `url` here.

    The event's `event_id` is the idempotency key unless the trigger names another.
    """

    name = "square"
    label = "Square"
    summary = "HMAC-SHA256 over notification URL and body in x-square-hmacsha256-signature."
    Settings = SquareSettings
    headers = (HEADER, "x-square-signature")
    origin = "given"
    content_types = ("application/json",)
    idempotency = MappingProxyType({"json_path": "$.event_id", "changed": "same"})
    examples = (
        Example(
            "A payment",
            secret="asdf1234",  # noqa: S106
            headers={b"x-square-hmacsha256-signature": b"2kRE5qRU2tR+tBGlDwMEw2avJ7QM4ikPYD/PJ3bd9Og="},
            body=b'{"hello":"world"}',
            settings={"url": "https://example.com/webhook"},
        ),
    )

    def verify(self, received: Received, keys: Sequence[Any], now: float) -> None:
        given = self.require(received.headers, HEADER)
        url = self.settings.url or received.url
        signed = url.encode(errors="replace") + received.body
        self.check(
            [hmac.digest(key, signed, hashlib.sha256) for key in keys],
            [from_base64(each) for each in several(given)],
            HEADER,
        )
