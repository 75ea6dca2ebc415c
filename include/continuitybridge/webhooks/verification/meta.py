"""Signatures as Meta's platforms (Facebook, Instagram, WhatsApp) make them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from continuitybridge.webhooks.verification._signing import HubSignature
from continuitybridge.webhooks.verification.base import Example, VerificationSettings


class MetaSettings(VerificationSettings):
    type: Literal["meta"] = Field(default="meta", description="The way's name.")


class Meta(HubSignature[MetaSettings]):
    """`X-Hub-Signature-256: sha256=<hex>`, HMAC-SHA256 of the body under the app's secret: give that with
    `bridge endpoint rotate-secret --secret-file`.

    Meta asks by GET (`hub.mode`, `hub.challenge`, `hub.verify_token`) whether the address is yours before it sends
    anything: set the trigger's `challenge` to `{type: hub, verify_token: …}` with the token entered there.
    """

    name = "meta"
    label = "Meta"
    summary = "HMAC-SHA256 of the body in X-Hub-Signature-256, under the app's secret; verifies addresses by GET."
    Settings = MetaSettings
    origin = "given"
    content_types = ("application/json",)
    examples = (
        Example(
            "A notification",
            secret="9f2c0a7b5e1d4c8896aa01b2c3d4e5f6",  # noqa: S106
            headers={
                b"x-hub-signature-256": b"sha256=f3f54cd4fb0a8d13a8a7a9d2f8e8f1f763fe2da2c9ce72d57ec6ff36e2bfd8cc"
            },
            body=b'{"object":"page","entry":[]}',
        ),
    )
