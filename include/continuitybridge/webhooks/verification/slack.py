"""Signatures as Slack makes them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Literal

import orjson
from pydantic import Field

from continuitybridge.webhooks.verification._signing import Signing, from_hex, several
from continuitybridge.webhooks.verification.base import Answer, Example, Received, VerificationSettings

HEADER = "x-slack-signature"
TIMESTAMP = "x-slack-request-timestamp"
MAX_CHALLENGE_BYTES = 4096


class SlackSettings(VerificationSettings):
    type: Literal["slack"] = Field(default="slack", description="The way's name.")


class Slack(Signing[SlackSettings]):
    """`X-Slack-Signature: v0=<hex>`: HMAC-SHA256 of `v0:<X-Slack-Request-Timestamp>:<body>` under the app's
    signing secret: give it with `bridge endpoint rotate-secret --secret-file`. The timestamp is an integer
    within 300 s of now on either side.

    Events come as JSON, slash commands and interactions as forms (`form_parser` reads them). A signed
    `url_verification` is answered with its challenge and does not become a message. An event's `event_id` is the
    idempotency key unless the trigger names another; forms have none.
    """

    name = "slack"
    label = "Slack"
    summary = "HMAC-SHA256 over version, time and body in X-Slack-Signature; answers url_verification."
    Settings = SlackSettings
    headers = (HEADER, TIMESTAMP)
    origin = "given"
    content_types = ("application/json", "application/x-www-form-urlencoded")
    idempotency = MappingProxyType({"json_path": "$.event_id", "changed": "same"})
    examples = (
        Example(
            "Slack's own test values: a slash command",
            secret="8f742231b10e8888abcd99yyyzzz85a5",  # noqa: S106
            headers={
                b"content-type": b"application/x-www-form-urlencoded",
                b"x-slack-request-timestamp": b"1531420618",
                b"x-slack-signature": b"v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
            },
            body=b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow"
            b"&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner"
            b"&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands"
            b"%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
            b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c",
            at=1531420618,
        ),
    )

    def verify(self, received: Received, keys: Sequence[Any], now: float) -> None:
        timestamp = self.require(received.headers, TIMESTAMP)
        given = self.require(received.headers, HEADER)
        self.check_time(timestamp, now, TIMESTAMP)
        signed = b"v0:%b:%b" % (timestamp, received.body)
        self.check(
            [hmac.digest(key, signed, hashlib.sha256) for key in keys],
            [from_hex(each[3:]) for each in several(given) if each.startswith(b"v0=")],
            HEADER,
        )

    def answer(self, received: Received) -> Answer | None:
        # Every event says its type; only small ones can be the handshake.
        if len(received.body) > MAX_CHALLENGE_BYTES or b'"url_verification"' not in received.body:
            return None
        try:
            event = orjson.loads(received.body)
        except ValueError:
            return None
        challenge = event.get("challenge") if isinstance(event, dict) else None
        if not isinstance(challenge, str) or event.get("type") != "url_verification":
            return None
        return Answer(b"text/plain; charset=utf-8", challenge.encode())
