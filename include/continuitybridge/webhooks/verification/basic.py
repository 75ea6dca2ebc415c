"""User name and password."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from continuitybridge.nodes.base import hints
from continuitybridge.webhooks.verification._credential import Credential
from continuitybridge.webhooks.verification._signing import from_base64
from continuitybridge.webhooks.verification.base import Example, Received, VerificationSettings

DEFAULT_USERNAME = "webhook"


class BasicSettings(VerificationSettings):
    type: Literal["basic"] = Field(default="basic", description="The way's name.")
    username: str = Field(
        default=DEFAULT_USERNAME,
        pattern=r"^[^\x00-\x1f\x7f:]{1,128}$",
        description="User name; no colon.",
        json_schema_extra=hints(placeholder=DEFAULT_USERNAME),
    )


class Basic(Credential[BasicSettings]):
    """`Authorization: Basic <base64 of name:password>` (RFC 7617, UTF-8). The endpoint's secret is the password;
    one of the sender's own may have any characters but control characters. Nothing binds it to the body: send it
    over TLS only."""

    name = "basic"
    label = "Basic"
    summary = "User name and password as Authorization: Basic."
    Settings = BasicSettings
    headers = ("authorization",)
    scheme = 'Basic realm="webhook", charset="UTF-8"'
    characters = "characters, none of them a control character or blank at either end"
    examples = (
        Example(
            "A user",
            settings={"username": "erp"},
            secret="cbh_1f9mJZ0sQp4eUJ8n2b7VvKx3YtRwLqGd",  # noqa: S106
            headers={
                b"authorization": b"Basic ZXJwOmNiaF8xZjltSlowc1FwNGVVSjhuMmI3VnZLeDNZdFJ3THFHZA==",
            },
        ),
    )

    def __init__(self, settings: BasicSettings) -> None:
        super().__init__(settings)
        self._username = settings.username.encode()

    def is_fit(self, secret: str) -> bool:
        # Surrogates and private characters belong to nobody's password; spaces and colons may.
        return secret == secret.strip() and secret.isprintable()

    def shown(self, secret: str) -> bytes:
        return self._username + b":" + secret.encode()

    def verify(self, received: Received, keys: Sequence[Any], now: float) -> None:
        scheme, _, encoded = received.headers.get(b"authorization", b"").partition(b" ")
        shown = from_base64(encoded.strip()) if scheme.lower() == b"basic" else None
        if not shown:
            raise self.refused("user name and password are needed as Authorization: Basic")
        self.check(shown, keys)
