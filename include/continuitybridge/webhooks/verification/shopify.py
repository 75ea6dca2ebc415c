"""Signatures as Shopify makes them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field

from continuitybridge.webhooks.verification._signing import Signing, from_base64, several
from continuitybridge.webhooks.verification.base import Example, Received, VerificationSettings

HEADER = "x-shopify-hmac-sha256"


class ShopifySettings(VerificationSettings):
    type: Literal["shopify"] = Field(default="shopify", description="The way's name.")


class Shopify(Signing[ShopifySettings]):
    """`X-Shopify-Hmac-Sha256: <base64>`, HMAC-SHA256 of the body under the app's client secret (or the one shown
    below the shop's own webhooks): give it with `bridge endpoint rotate-secret --secret-file`. After the secret
    was rotated Shopify goes on signing with the old one for up to an hour: keep it that long (`--overlap-s`).

    `X-Shopify-Webhook-Id`, the same in every repetition, is the idempotency key unless the trigger names another.
    """

    name = "shopify"
    label = "Shopify"
    summary = "HMAC-SHA256 of the body in X-Shopify-Hmac-Sha256."
    Settings = ShopifySettings
    headers = (HEADER,)
    origin = "given"
    content_types = ("application/json", "application/xml", "text/xml")
    idempotency = MappingProxyType({"header": "x-shopify-webhook-id"})
    examples = (
        Example(
            "An order",
            secret="hush",  # noqa: S106
            headers={b"x-shopify-hmac-sha256": b"qBvrsZF7RfB1iS6BX6IHqJTp5L911P7intnPeTPsH0I="},
            body=b'{"id":820982911946154508}',
        ),
    )

    def verify(self, received: Received, keys: Sequence[Any], now: float) -> None:
        given = self.require(received.headers, HEADER)
        self.check(
            [hmac.digest(key, received.body, hashlib.sha256) for key in keys],
            [from_base64(each) for each in several(given)],
            HEADER,
        )
