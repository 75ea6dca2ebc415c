"""A bearer token that does not change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from continuitybridge.webhooks.verification._credential import Credential, bearer
from continuitybridge.webhooks.verification.base import Example, Received, VerificationSettings


class BearerSettings(VerificationSettings):
    type: Literal["bearer"] = Field(default="bearer", description="The way's name.")


class Bearer(Credential[BearerSettings]):
    """`Authorization: Bearer <token>` (RFC 6750) with a token that is the endpoint's secret. Nothing binds it to
    the body: send it over TLS only. Tokens that an authorization server signs are verified by `jwt`."""

    name = "bearer"
    label = "Bearer token"
    summary = "A fixed token as Authorization: Bearer."
    Settings = BearerSettings
    headers = ("authorization",)
    scheme = "Bearer"
    examples = (
        Example(
            "A token",
            secret="cbh_1f9mJZ0sQp4eUJ8n2b7VvKx3YtRwLqGd",  # noqa: S106
            headers={b"authorization": b"Bearer cbh_1f9mJZ0sQp4eUJ8n2b7VvKx3YtRwLqGd"},
        ),
    )

    def verify(self, received: Received, keys: Sequence[Any], now: float) -> None:
        shown = bearer(received.headers.get(b"authorization", b""))
        if not shown:
            raise self.refused("a token is needed as Authorization: Bearer")
        self.check(shown, keys)
