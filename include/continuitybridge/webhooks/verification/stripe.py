"""Signatures as Stripe makes them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field

from continuitybridge.webhooks.verification._signing import Signing, from_hex
from continuitybridge.webhooks.verification.base import Example, Received, VerificationSettings

HEADER = "stripe-signature"


class StripeSettings(VerificationSettings):
    type: Literal["stripe"] = Field(default="stripe", description="The way's name.")


class Stripe(Signing[StripeSettings]):
    """`Stripe-Signature: t=<seconds>,v1=<hex>`: HMAC-SHA256 of `<t>.<body>` under the endpoint's signing secret
    `whsec_…`, all of it as text: give it with `bridge endpoint rotate-secret --secret-file`. While Stripe rolls a
    secret it sends several `v1`; any valid one suffices. Other schemes (`v0`) are passed over. `t` is an integer
    within 300 s of now on either side.

    The event's `id` in the body is the idempotency key unless the trigger names another; a repetition whose body
    differs (`pending_webhooks` counts down) is a repetition all the same.
    """

    name = "stripe"
    label = "Stripe"
    summary = "HMAC-SHA256 over time and body in Stripe-Signature."
    Settings = StripeSettings
    headers = (HEADER,)
    origin = "given"
    content_types = ("application/json",)
    idempotency = MappingProxyType({"json_path": "$.id", "changed": "same"})
    examples = (
        Example(
            "An event",
            secret="whsec_test_secret",  # noqa: S106
            headers={
                b"stripe-signature": b"t=1790000000,"
                b"v1=457062d02748b30635cad13e5105beb5fdcd83434f34342414d2b60a5cea2ced"
            },
            body=b'{"id": "evt_1", "object": "event"}',
        ),
    )

    def verify(self, received: Received, keys: Sequence[Any], now: float) -> None:
        times: list[bytes] = []
        candidates: list[bytes | None] = []
        for part in self.require(received.headers, HEADER).split(b","):
            name, _, value = part.strip().partition(b"=")
            if name == b"t":
                times.append(value)
            elif name == b"v1":
                candidates.append(from_hex(value))
        if len(times) != 1:
            raise self.refused(f"{HEADER} must have one t=")
        self.check_time(times[0], now, f"t in {HEADER}")
        signed = b"%b.%b" % (times[0], received.body)
        self.check([hmac.digest(key, signed, hashlib.sha256) for key in keys], candidates, HEADER)
