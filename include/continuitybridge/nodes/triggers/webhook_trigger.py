"""Messages that arrive by HTTP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from continuitybridge.nodes import _legacy
from continuitybridge.nodes.base import Example, NodeConfig, TriggerNode, hints

_SLUG = r"^[a-z0-9][a-z0-9._-]{0,127}$"
_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]*/(?:\*|[a-z0-9][a-z0-9!#$&^_.+-]*)|\*/\*", re.IGNORECASE)
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class WebhookTriggerConfig(NodeConfig):
    slug: str = Field(
        pattern=_SLUG,
        description="Last part of the address `/bridge/hooks/{organization}/{environment}/{slug}`; one of its "
        "kind in the environment. Small letters, digits, `-`, `_` and `.`.",
        json_schema_extra=hints(placeholder="orders"),
    )
    verification: Literal["standard_webhooks", "api_key"] = Field(
        default="standard_webhooks",
        description="How a sender proves who it is: an HMAC-SHA256 signature by Standard Webhooks 1.0, or a key "
        "in a header. The secret is made when the flow is deployed, and shown once.",
    )
    content_types: list[str] = Field(
        default=["application/json", "application/xml", "text/xml"],
        min_length=1,
        description="Media types that are taken; others are answered with 415. `text/*` and `*/*` work, and "
        "`application/json` takes `+json` types as well, `application/xml` `+xml` ones.",
    )
    idempotency: str | None = Field(
        default=None,
        description="Header with the key that tells a repetition from a new message. Without it `webhook-id`, "
        "else `idempotency-key`; a request with neither is always new.",
        json_schema_extra=hints(placeholder="x-request-id"),
    )
    max_body_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Largest body in bytes; larger ones are answered with 413. Without it, and never more than, "
        "`BRIDGE_MAX_MESSAGE_BYTES`.",
    )

    @field_validator("content_types")
    @classmethod
    def _media_types(cls, types: list[str]) -> list[str]:
        for name in types:
            if not _MEDIA_TYPE.fullmatch(name):
                raise ValueError(f"{name!r} is not a media type such as application/json or text/*")
        return types

    @field_validator("idempotency")
    @classmethod
    def _header_name(cls, name: str | None) -> str | None:
        if name is not None and not _HEADER.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of an HTTP header")
        return name


class WebhookTrigger(TriggerNode[WebhookTriggerConfig]):
    """Gives the flow an address of its own: `POST /bridge/hooks/{organization}/{environment}/{slug}`.

    A request that is verified is stored, answered with `202` and the message's id, and then run. The answer
    comes after the message is safe on disk and before the flow has run. The message's body is the request's, as
    received, so that a parser usually comes next; its headers are the request's in lower case, without
    credentials.

    A repetition (the same key at the same address) gets the answer of the first one and does not run again; the
    same key with another body is answered with `409`.

    Older flows' keys are read on import: `webhookSlug`, `webhookMethod` (POST only), and the `endpointName`,
    `authMethod` and `payloadFormat` of `ingress` nodes.
    """

    type = "webhook_trigger"
    category = "trigger"
    label = "Webhook"
    summary = "Receives messages by HTTP at an address of its own."
    Config = WebhookTriggerConfig
    legacy_types = ("ingress",)
    examples = (
        Example(
            "Orders, signed by the sender",
            config={"slug": "orders"},
            input=b'{"order": "PO-1"}',
            output=b'{"order": "PO-1"}',
        ),
        Example(
            "CSV from a system that can only send a fixed header",
            config={"slug": "stock", "verification": "api_key", "content_types": ["text/csv"]},
            input=b"sku,qty\nA-1,3\n",
            output=b"sku,qty\nA-1,3\n",
        ),
    )

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        ours = _legacy.renamed(config, {"webhookSlug": "slug", "endpointName": "slug"})
        method = str(ours.pop("webhookMethod", "POST")).upper()
        if method != "POST":
            raise _legacy.refused("webhookMethod", method, "webhooks are received by POST")
        if "authMethod" in ours:
            ours.setdefault("verification", _verification(ours.pop("authMethod")))
        if "payloadFormat" in ours:
            ours.setdefault("content_types", _content_types(ours.pop("payloadFormat")))
        for key, harmless in _INGRESS.items():
            _legacy.unsupported(ours, key, "is not a setting of the webhook here", *harmless)
            ours.pop(key, None)
        return ours


_INGRESS: Mapping[str, tuple[Any, ...]] = {
    "allowedIPs": ("", None, []),
    "validateSchema": (False, "false"),
    "interfaceId": ("", None),
    "enableLogging": (True, False, "true", "false"),
    "rateLimitPerMinute": (0, 60, "0", "60"),
}
"""Keys of `ingress` nodes, with the values that lose nothing."""


def _verification(method: Any) -> str:
    known = {"api_key": "api_key", "hmac": "standard_webhooks", "signature": "standard_webhooks"}
    if method not in known:
        raise _legacy.refused("authMethod", method, f"senders are verified by {' or '.join(known)}")
    return known[method]


def _content_types(payload_format: Any) -> list[str]:
    known = {
        "json": ["application/json"],
        "xml": ["application/xml", "text/xml"],
        "csv": ["text/csv"],
        "text": ["text/plain"],
    }
    if payload_format not in known:
        raise _legacy.refused("payloadFormat", payload_format, f"must be one of {', '.join(known)}")
    return known[payload_format]
