"""Signatures of senders that have no file of their own here: an HMAC, described."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from continuitybridge.errors import ConfigurationError
from continuitybridge.nodes.base import hints
from continuitybridge.webhooks.verification._signing import (
    Signing,
    from_base64,
    from_base64url,
    from_hex,
    several,
)
from continuitybridge.webhooks.verification.base import (
    Example,
    Received,
    VerificationSettings,
    text_key,
    weakness,
)

HEADER_NAME = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$"
_PLACES = ("body", "timestamp", "id", "method", "url", "path", "query")
_PLACE = re.compile(r"\{([^{}]*)\}")
_DECODE: dict[str, Callable[[bytes], bytes | None]] = {
    "hex": from_hex,
    "base64": from_base64,
    "base64url": from_base64url,
}


class HmacSettings(VerificationSettings):
    type: Literal["hmac"] = Field(default="hmac", description="The way's name.")
    header: str = Field(
        default="X-Signature",
        pattern=HEADER_NAME,
        description="Header with the signature, or several with commas between them.",
        json_schema_extra=hints(placeholder="X-Signature"),
    )
    algorithm: Literal["sha256", "sha512", "sha384", "sha1"] = Field(
        default="sha256", description="Hash function of the HMAC."
    )
    encoding: Literal["hex", "base64", "base64url"] = Field(
        default="hex", description="How the signature is written."
    )
    prefix: str = Field(
        default="",
        max_length=32,
        description="What stands before the signature in the header.",
        json_schema_extra=hints(placeholder="sha256="),
    )
    signed: str = Field(
        default="{body}",
        max_length=200,
        description="What is signed: `{body}`, and with it as needed `{timestamp}`, `{id}`, `{method}`, `{url}` "
        "(whole), `{path}`, `{query}`, joined by whatever stands between.",
        json_schema_extra=hints(placeholder="{timestamp}.{body}"),
    )
    timestamp_header: str | None = Field(
        default=None,
        pattern=HEADER_NAME,
        description="Header with the time of sending: an integer within 300 s of now on either side. It has to be "
        "signed.",
        json_schema_extra=hints(placeholder="X-Timestamp"),
    )
    timestamp_unit: Literal["s", "ms"] = Field(
        default="s", description="Whether the timestamp counts seconds or milliseconds."
    )
    id_header: str | None = Field(
        default=None,
        pattern=HEADER_NAME,
        description="Header with the id that is signed.",
        json_schema_extra=hints(placeholder="X-Request-Id", advanced=True),
    )
    key_encoding: Literal["text", "base64", "hex"] = Field(
        default="text",
        description="How the secret is written: its characters are the key, or they encode it.",
        json_schema_extra=hints(advanced=True),
    )

    @field_validator("signed")
    @classmethod
    def _has_known_places(cls, signed: str) -> str:
        found = _PLACE.findall(signed)
        unknown = [name for name in found if name not in _PLACES]
        if unknown or found.count("body") != 1:
            raise ValueError(f"has {{body}} once, and of {', '.join(f'{{{name}}}' for name in _PLACES[1:])} any")
        if re.search(r"\{id\}(\{|$)", signed):
            raise ValueError("something has to stand behind {id}, or where it ends could be disputed")
        return signed

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        for place, header in (("timestamp", self.timestamp_header), ("id", self.id_header)):
            if (f"{{{place}}}" in self.signed) != (header is not None):
                raise ValueError(
                    f"{place}_header and {{{place}}} in signed need each other: what is not signed proves nothing"
                )
        return self


class Hmac(Signing[HmacSettings]):
    """An HMAC in a header, as described by the settings. With `prefix`, `encoding` and `signed` most providers'
    signatures can be told; the secret is made here, or theirs.

    - Zoom: `header: x-zm-signature`, `prefix: v0=`, `timestamp_header: x-zm-request-timestamp`,
      `signed: "v0:{timestamp}:{body}"`
    - Dropbox: `header: X-Dropbox-Signature`, with `challenge: echo`
    - X (Twitter): `header: x-twitter-webhooks-signature`, `prefix: sha256=`, `encoding: base64`, with
      `challenge: crc`
    - Bitbucket, Gitea: `header: X-Hub-Signature`, `prefix: sha256=`

    Without `timestamp_header` nothing tells when a request was made: who records one can send it again.
    """

    name = "hmac"
    label = "HMAC"
    summary = "An HMAC in a header: algorithm, encoding, prefix, timestamp and what is signed as configured."
    Settings = HmacSettings
    examples = (
        Example(
            "Time and body, as Zoom signs them",
            settings={
                "header": "x-zm-signature",
                "prefix": "v0=",
                "timestamp_header": "x-zm-request-timestamp",
                "signed": "v0:{timestamp}:{body}",
            },
            secret="a-secret-token-of-thirty-two-byte",  # noqa: S106
            headers={
                b"x-zm-request-timestamp": b"1790000000",
                b"x-zm-signature": b"v0=0103a80895a3e230d361f3e2c7df00331a57de5af2d5f20e5793b9f07a6221f4",
            },
        ),
        Example(
            "The body alone, SHA-512 in base64",
            settings={"header": "X-Body-Signature", "algorithm": "sha512", "encoding": "base64"},
            secret="a-secret-token-of-thirty-two-byte",  # noqa: S106
            headers={
                b"x-body-signature": b"mg2cjTNWttM7xnX+oeBxzhmprqA8xiZ+I6DngdrsYKfCDTW/ET"
                b"g8ajpVRmMRBH3mtAqpnp78ywVs6VfS0L976g=="
            },
        ),
    )

    def __init__(self, settings: HmacSettings) -> None:
        super().__init__(settings)
        self._name = settings.header.lower()
        self.headers = (self._name,)
        self._prefix = settings.prefix.encode()
        self._timestamp = settings.timestamp_header.lower() if settings.timestamp_header else None
        self._id = settings.id_header.lower() if settings.id_header else None
        self._digest = getattr(hashlib, settings.algorithm)
        self._decode = _DECODE[settings.encoding]
        # Texts and names of places in turn.
        self._parts = _PLACE.split(settings.signed)
        self._after_id = self._parts[self._parts.index("id", 1) + 1].encode() if self._id else b""

    def takes_get(self) -> bool:
        return "{url}" in self.settings.signed or "{query}" in self.settings.signed

    def generate(self) -> str:
        if self.settings.key_encoding == "hex":
            return secrets.token_hex(32)
        if self.settings.key_encoding == "base64":
            import base64

            return base64.b64encode(secrets.token_bytes(32)).decode()
        return secrets.token_urlsafe(32)

    def key(self, secret: str) -> bytes:
        raw = text_key(secret, "an HMAC secret")
        if self.settings.key_encoding == "text":
            return raw
        decoded = _DECODE[self.settings.key_encoding](raw)
        if not decoded:
            raise ConfigurationError(f"the secret is no {self.settings.key_encoding}", field="secret")
        return decoded

    def weakness(self, secret: str) -> str | None:
        return weakness(len(self.key(secret)))

    def verify(self, received: Received, keys: Sequence[Any], now: float) -> None:
        given = self.require(received.headers, self._name)
        values = {"body": received.body}
        if self._timestamp is not None:
            values["timestamp"] = self.require(received.headers, self._timestamp)
            per_s = 1 if self.settings.timestamp_unit == "s" else 1000
            self.check_time(values["timestamp"], now, self._timestamp, per_s=per_s)
        if self._id is not None:
            values["id"] = self.require(received.headers, self._id)
            if self._after_id in values["id"]:
                raise self.refused(f"{self._id} must not contain {self._after_id.decode()!r}")
        signed = self._signed(received, values)
        prefix = self._prefix
        self.check(
            [hmac.digest(key, signed, self._digest) for key in keys],
            [self._decode(each[len(prefix) :]) for each in several(given) if each.startswith(prefix)],
            self._name,
        )

    def _signed(self, received: Received, values: dict[str, bytes]) -> bytes:
        if len(self._parts) == 3 and not self._parts[0] and not self._parts[2]:
            return received.body
        address, _, query = received.url.partition("?")
        values["method"] = received.method.encode()
        values["url"] = received.url.encode(errors="replace")
        values["query"] = query.encode(errors="replace")
        values["path"] = ("/" + address.split("/", 3)[-1]).encode(errors="replace")
        return b"".join(values[part] if number % 2 else part.encode() for number, part in enumerate(self._parts))
