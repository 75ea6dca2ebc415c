"""A key that the sender shows with each request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from continuitybridge.nodes.base import hints
from continuitybridge.webhooks.verification._credential import Credential, bearer
from continuitybridge.webhooks.verification.base import Example, Received, VerificationSettings
from continuitybridge.webhooks.verification.keyed_hash import HEADER_NAME


class ApiKeySettings(VerificationSettings):
    type: Literal["api_key"] = Field(default="api_key", description="The way's name.")
    header: str | None = Field(
        default=None,
        pattern=HEADER_NAME,
        description="Header with the key. Without it `X-API-Key`, or `Authorization: Bearer`.",
        json_schema_extra=hints(placeholder="X-Auth-Token"),
    )
    prefix: str = Field(
        default="",
        max_length=32,
        description="What stands before the key in that header, a space included.",
        json_schema_extra=hints(placeholder="Token ", advanced=True),
    )


class ApiKey(Credential[ApiKeySettings]):
    """`X-API-Key: <key>` or `Authorization: Bearer <key>` (RFC 6750), not both with different keys; or a header
    of its own. Nothing binds the key to the body: whoever reads one request can make others, so send it over TLS
    only.
    """

    name = "api_key"
    label = "API key"
    summary = "A key in a header."
    Settings = ApiKeySettings
    headers: tuple[str, ...] = ("x-api-key", "authorization")
    scheme = "Bearer"
    examples = (
        Example(
            "In X-API-Key",
            secret="cbh_1f9mJZ0sQp4eUJ8n2b7VvKx3YtRwLqGd",  # noqa: S106
            headers={b"x-api-key": b"cbh_1f9mJZ0sQp4eUJ8n2b7VvKx3YtRwLqGd"},
        ),
        Example(
            "In a header of the sender's own",
            settings={"header": "X-Gitlab-Token"},
            secret="cbh_1f9mJZ0sQp4eUJ8n2b7VvKx3YtRwLqGd",  # noqa: S106
            headers={b"x-gitlab-token": b"cbh_1f9mJZ0sQp4eUJ8n2b7VvKx3YtRwLqGd"},
        ),
    )

    def __init__(self, settings: ApiKeySettings) -> None:
        super().__init__(settings)
        self._header = settings.header.lower() if settings.header else None
        self._prefix = settings.prefix.encode()
        if self._header is not None:
            self.headers = (self._header,)

    def verify(self, received: Received, keys: Sequence[Any], now: float) -> None:
        headers = received.headers
        if self._header is not None:
            value = headers.get(self._header.encode(), b"")
            if not value.startswith(self._prefix):
                value = b""
            shown = {value[len(self._prefix) :].strip()} - {b""}
        else:
            shown = {headers.get(b"x-api-key", b""), bearer(headers.get(b"authorization", b""))} - {b""}
        if len(shown) != 1:
            where = self._header or "X-API-Key or as Authorization: Bearer"
            raise self.refused(f"one key is needed, in {where}")
        self.check(shown.pop(), keys)
