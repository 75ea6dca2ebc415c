"""Messages that arrive by HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from typing import Annotated, Any, Literal, Self, cast, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from continuitybridge.engine.message import Message, Reply
from continuitybridge.nodes import _legacy
from continuitybridge.nodes.base import BuildContext, Example, NodeConfig, TriggerNode, hints
from continuitybridge.nodes.http.reply import ReplyMaker, ResultConfig
from continuitybridge.nodes.mapping.paths import singular_steps
from continuitybridge.webhooks.verification import DEFAULT, AnySettings, VerificationSettings, verifier

_SLUG = r"^[a-z0-9][a-z0-9._-]{0,127}$"
_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]*/(?:\*|[a-z0-9][a-z0-9!#$&^_.+-]*)|\*/\*", re.IGNORECASE)
_HEADER = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$"
_XML_PATH = re.compile(r"(/[^\s/@\[\]*:]+)+(/@[^\s/@\[\]*:]+)?")


Method = Literal["POST", "PUT", "PATCH", "GET"]
Handshake = Literal["hub", "crc", "echo", "okta"]


class Idempotency(NodeConfig):
    """Where the key stands that tells a repetition from a new message. One source, or none for the default's."""

    header: str | None = Field(
        default=None,
        pattern=_HEADER,
        description="Header with the key.",
        json_schema_extra=hints(placeholder="x-request-id"),
    )
    json_path: str | None = Field(
        default=None,
        max_length=400,
        description="Path to one value of a JSON body: `$.order.id`, `$['a b'][0]`.",
        json_schema_extra=hints(placeholder="$.order.id"),
    )
    xml_path: str | None = Field(
        default=None,
        max_length=400,
        description="Path from the root to the first element, or attribute, of an XML body: `/Order/Id`, "
        "`/Order/@number`. Names without their namespace.",
        json_schema_extra=hints(placeholder="/Order/Id"),
    )
    content: bool = Field(default=False, description="The body is the key: the same bytes are the same message.")
    required: bool = Field(
        default=False,
        description="Answer 422 to a request without a key. Otherwise it is always a new message.",
    )
    changed: Literal["refuse", "same"] | None = Field(
        default=None,
        description="What a request is that has a known key and another body: refused with 409 (`refuse`, the "
        "default), or the same message (`same`), for keys that name an event for certain.",
    )
    window_days: int | None = Field(
        default=None,
        ge=1,
        le=3660,
        description="How long a key is remembered, in days. Without it `BRIDGE_IDEMPOTENCY_WINDOW_DAYS`.",
    )

    @field_validator("json_path")
    @classmethod
    def _names_one_value(cls, path: str | None) -> str | None:
        if path is not None and not singular_steps(path):
            raise ValueError(f"{path!r} is no path to one value such as $.order.id or $['a b'][0]")
        return path

    @field_validator("xml_path")
    @classmethod
    def _names_one_element(cls, path: str | None) -> str | None:
        if path is not None and not _XML_PATH.fullmatch(path):
            raise ValueError(f"{path!r} is no path to one element such as /Order/Id or /Order/@number")
        return path

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if sum((bool(self.header), bool(self.json_path), bool(self.xml_path), self.content)) > 1:
            raise ValueError("one of header, json_path, xml_path and content is the key")
        return self


class Challenge(NodeConfig):
    """How the address is verified by its provider before anything is sent to it."""

    type: Handshake = Field(
        description="`hub`: GET with `hub.challenge` (Meta, WebSub). `crc`: GET with `crc_token`, answered with "
        "its HMAC (X). `echo`: GET or POST with `challenge` or `validationToken` in the query (Dropbox, "
        "Microsoft Graph). `okta`: GET with the header `X-Okta-Verification-Challenge`."
    )
    verify_token: str | None = Field(
        default=None,
        max_length=256,
        description="With `hub`: what `hub.verify_token` must be. No secret: it only says that the address is "
        "expected.",
    )


def _by_type(given: Any) -> Any:
    return {"type": given} if isinstance(given, str) else given


def _by_header(given: Any) -> Any:
    return {"header": given} if isinstance(given, str) else given


_Idempotency = Annotated[Idempotency, BeforeValidator(_by_header, json_schema_input_type=str | Idempotency)]
_Challenge = Annotated[Challenge, BeforeValidator(_by_type, json_schema_input_type=Handshake | Challenge)]


class WebhookTriggerConfig(NodeConfig):
    slug: str = Field(
        pattern=_SLUG,
        description="Last part of the address `/bridge/hooks/{organization}/{environment}/{slug}`; one of its "
        "kind in the environment. Small letters, digits, `-`, `_` and `.`.",
        json_schema_extra=hints(placeholder="orders"),
    )
    verification: AnySettings = Field(
        default=cast("VerificationSettings", DEFAULT),
        validate_default=True,
        description="How a sender proves who it is: a way's name, or an object with the name as `type` and the "
        "way's settings. All ways: [docs/verification.md](../verification.md). A secret that is made here is made "
        "when the flow is deployed, and shown once.",
    )
    allowed_ips: list[str] = Field(
        default=[],
        description="Addresses and networks that may send, in addition to the verification; all when empty. "
        "Behind a proxy `BRIDGE_TRUSTED_PROXIES` must name it.",
        json_schema_extra=hints(placeholder="203.0.113.0/24"),
    )
    methods: list[Method] = Field(
        default=["POST"],
        min_length=1,
        description="HTTP methods that bring a message. Of a GET the query is the message, as a form.",
    )
    content_types: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Media types that are taken; others are answered with 415. `text/*` and `*/*` work, and "
        "`application/json` takes `+json` types as well, `application/xml` `+xml` ones. Without it what the "
        "verification's providers send: mostly `application/json`, `application/xml`, `text/xml`.",
    )
    idempotency: _Idempotency | None = Field(
        default=None,
        description="Where the key stands that tells a repetition from a new message; a text is a header's name. "
        "Without it where the verification's providers put it, else `webhook-id`, else `idempotency-key`; a "
        "request without a key is always new.",
        json_schema_extra=hints(placeholder="x-request-id"),
    )
    challenge: _Challenge | None = Field(
        default=None,
        description="How the provider verifies the address, when it asks before it sends: a name, or an object. "
        "Slack's `url_verification` is answered without it.",
    )
    max_body_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Largest body in bytes; larger ones are answered with 413. Without it, and never more than, "
        "`BRIDGE_MAX_MESSAGE_BYTES`.",
    )
    reply: Literal["accepted", "result"] = Field(
        default="accepted",
        description="What a request is answered with: `accepted` as soon as the message is safe on disk, or the "
        "`result` once the flow has dealt with it.",
    )
    result: ResultConfig | None = Field(
        default=None, description="How the result is answered, with `reply: result`; each key has a default."
    )

    @model_validator(mode="after")
    def _result_is_asked_for(self) -> Self:
        if self.result is not None and self.reply != "result":
            raise ValueError("result says how the result is answered, and goes with reply: result")
        return self

    @field_validator("content_types")
    @classmethod
    def _media_types(cls, types: list[str] | None) -> list[str] | None:
        for name in types or ():
            if not _MEDIA_TYPE.fullmatch(name):
                raise ValueError(f"{name!r} is not a media type such as application/json or text/*")
        return types

    @field_validator("allowed_ips")
    @classmethod
    def _networks(cls, given: list[str]) -> list[str]:
        for each in given:
            try:
                ip_network(each, strict=False)
            except ValueError:
                raise ValueError(
                    f"{each!r} is no address or network such as 203.0.113.7 or 203.0.113.0/24"
                ) from None
        return given

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        way = verifier(self.verification)
        if "GET" in self.methods and not way.takes_get():
            raise ValueError(
                f"methods: a GET has no body, and {way.name} signs nothing else; take another verification"
            )
        if self.challenge is not None and self.challenge.type == "crc" and way.name != "hmac":
            raise ValueError("challenge: crc is answered with the secret of verification hmac")
        return self


class WebhookTrigger(TriggerNode[WebhookTriggerConfig]):
    """Gives the flow an address of its own: `POST /bridge/hooks/{organization}/{environment}/{slug}`.

    A request that is verified is stored, answered with `202` and the message's id, and then run. The answer
    comes after the message is safe on disk and before the flow has run. The message's body is the request's, as
    received, so that a parser usually comes next (`form_parser` for forms and GET); its headers are the
    request's in lower case, without credentials.

    A repetition (the same key at the same address) gets the answer of the first one and does not run again; the
    same key with another body is answered with `409`, unless `idempotency.changed` says otherwise.

    With `reply: result` the request is held until the flow has dealt with the message, and answered with what
    left the flow: the message's body, or what the templates of `result` make of it. Where several messages leave
    the flow, the first counts (by their ids: in the order in which they were made), of the steps that `from`
    names; an `aggregate` before the end answers with all of them. Where none does, because a filter dropped it,
    the answer is `204`. A failure that no `on_error` takes is answered at once, as a problem document with its
    code and without insides. Callers that cannot wait say so: `Prefer: respond-async`, or `Prefer: wait=5`
    (RFC 7240).

    Older flows' keys are read on import: `webhookSlug`, `webhookMethod`, and the `endpointName`, `authMethod`,
    `allowedIPs` and `payloadFormat` of `ingress` nodes. A hook that takes GET gets `api_key` where it had no
    authentication.
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
        Example(
            "A provider whose signature has no name here, and whose events have ids",
            config={
                "slug": "shipments",
                "verification": {
                    "type": "hmac",
                    "header": "X-Carrier-Signature",
                    "prefix": "sha256=",
                    "timestamp_header": "X-Carrier-Time",
                    "signed": "{timestamp}.{body}",
                },
                "allowed_ips": ["203.0.113.0/24"],
                "idempotency": {"json_path": "$.event.id", "window_days": 30},
            },
            input=b'{"event": {"id": "evt-1"}}',
            output=b'{"event": {"id": "evt-1"}}',
        ),
        Example(
            "A price, answered in the same request",
            config={
                "slug": "prices",
                "reply": "result",
                "result": {
                    "limit_s": 10,
                    "status": "{{ 200 if body.available else 404 }}",
                    "headers": {"Cache-Control": "max-age=60"},
                    "body": {"sku": "{{ body.sku }}", "price": "{{ body.price }}"},
                    "errors": {"delivery-failed": 504},
                },
            },
            input=b'{"sku": "A-1"}',
            output=b'{"sku": "A-1"}',
        ),
    )

    def build(self, context: BuildContext) -> None:
        self.replies = self.config.reply == "result"
        self._maker = ReplyMaker(self.config.result or ResultConfig()) if self.replies else None

    def addresses(self) -> Iterable[tuple[str, str]]:
        return ((f"verification.{field}", url) for field, url in self.config.verification.addresses())

    def reply_counts(self, node_id: str) -> bool:
        return self._maker is not None and self._maker.counts(node_id)

    def reply(self, message: Message | None, max_bytes: int) -> Reply:
        if self._maker is None:
            return super().reply(message, max_bytes)
        return self._maker.make(message, max_bytes)

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        ours = _legacy.renamed(config, {"webhookSlug": "slug", "endpointName": "slug"})
        if "webhookMethod" in ours:
            method = str(ours.pop("webhookMethod")).upper()
            if method not in get_args(Method):
                raise _legacy.refused("webhookMethod", method, f"must be one of {', '.join(get_args(Method))}")
            if method != "POST":
                ours.setdefault("methods", [method])
        if "authMethod" in ours:
            ours.setdefault("verification", _verification(ours.pop("authMethod")))
        elif "GET" in ours.get("methods", ()):
            ours.setdefault("verification", "api_key")
        if "allowedIPs" in ours:
            allowed = _addresses(ours.pop("allowedIPs"))
            if allowed:
                ours.setdefault("allowed_ips", allowed)
        if "payloadFormat" in ours:
            ours.setdefault("content_types", _content_types(ours.pop("payloadFormat")))
        for key, harmless in _INGRESS.items():
            _legacy.unsupported(ours, key, "is not a setting of the webhook here", *harmless)
            ours.pop(key, None)
        return ours


_INGRESS: Mapping[str, tuple[Any, ...]] = {
    "validateSchema": (False, "false"),
    "interfaceId": ("", None),
    "enableLogging": (True, False, "true", "false"),
    "rateLimitPerMinute": (0, 60, "0", "60"),
}
"""Keys of `ingress` nodes, with the values that lose nothing."""

_AUTH_METHODS: Mapping[str, str] = {
    "api_key": "api_key",
    "apikey": "api_key",
    "bearer_token": "bearer",
    "bearer": "bearer",
    "basic_auth": "basic",
    "oauth2": "jwt",
    "hmac": "standard_webhooks",
    "signature": "standard_webhooks",
}


def _verification(method: Any) -> str:
    if method not in _AUTH_METHODS:
        raise _legacy.refused("authMethod", method, f"must be one of {', '.join(_AUTH_METHODS)}")
    return _AUTH_METHODS[method]


def _addresses(allowed: Any) -> list[str]:
    """What stood in a form's text field: addresses and networks, however they were separated."""
    texts = allowed if isinstance(allowed, list) else re.split(r"[\s,;]+", str(allowed or ""))
    return [text for text in map(str, texts) if text]


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
