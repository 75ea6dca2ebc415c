"""Signatures as Twilio makes them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qsl, urlsplit

from pydantic import Field

from continuitybridge.nodes.base import hints
from continuitybridge.webhooks.verification._signing import Signing, from_base64, several
from continuitybridge.webhooks.verification.base import Example, Received, VerificationSettings

HEADER = "x-twilio-signature"
ALGORITHM = "x-twilio-webhooks-signature-settings"
FORM = b"application/x-www-form-urlencoded"
MAX_PARAMETERS = 1000
_PORTS = {"http": 80, "https": 443}


class TwilioSettings(VerificationSettings):
    type: Literal["twilio"] = Field(default="twilio", description="The way's name.")
    url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s?#]+$",
        description="The address as Twilio calls it, without the query. Without it the endpoint's address below "
        "`BRIDGE_PUBLIC_URL`.",
        json_schema_extra=hints(placeholder="https://bridge.example/bridge/hooks/aurora/prod/sms"),
    )


class Twilio(Signing[TwilioSettings]):
    """`X-Twilio-Signature: <base64>`: HMAC-SHA1 of the whole URL, query included, followed by the form's
    parameters, sorted, name and value after one another, under the account's auth token: give it with `bridge
    endpoint rotate-secret --secret-file`. A body that is no form is bound by the query's `bodySHA256`. Where
    `X-Twilio-Webhooks-Signature-Settings` says HMAC_SHA256, that is the algorithm, and the secret the shared
    key. The default port may stand in the signed URL or not.

    Nothing in the signature is a time. `I-Twilio-Idempotency-Token` is the idempotency key unless the trigger
    names another; `form_parser` reads forms.
    """

    name = "twilio"
    label = "Twilio"
    summary = "HMAC-SHA1 over URL and form parameters in X-Twilio-Signature; JSON bodies by bodySHA256."
    Settings = TwilioSettings
    headers = (HEADER,)
    origin = "given"
    content_types = ("application/x-www-form-urlencoded", "application/json")
    idempotency = MappingProxyType({"header": "i-twilio-idempotency-token"})
    examples = (
        Example(
            "Twilio's own test values",
            secret="12345",  # noqa: S106
            url="https://mycompany.com/myapp.php?foo=1&bar=2",
            headers={
                b"content-type": b"application/x-www-form-urlencoded",
                b"x-twilio-signature": b"0/KCTR6DLpKmkAf8muzZqo1nDgQ=",
            },
            body=b"CallSid=CA1234567890ABCDE&From=%2B12349013030&To=%2B18005551212&Caller=%2B12349013030&Digits=1234",
        ),
    )

    def takes_get(self) -> bool:
        return True

    def verify(self, received: Received, keys: Sequence[Any], now: float) -> None:
        given = self.require(received.headers, HEADER)
        settings = received.headers.get(ALGORITHM.encode(), b"")
        algorithm = hashlib.sha256 if b"algorithm=HMAC_SHA256" in settings else hashlib.sha1
        parameters = self._parameters(received)
        self.check(
            [
                hmac.digest(key, url.encode(errors="replace") + parameters, algorithm)
                for key in keys
                for url in self._urls(received.url)
            ],
            [from_base64(each) for each in several(given)],
            HEADER,
        )

    def _urls(self, url: str) -> list[str]:
        if self.settings.url is not None:
            _, mark, query = url.partition("?")
            url = self.settings.url + mark + query
        try:
            parts = urlsplit(url)
            port, default = parts.port, _PORTS.get(parts.scheme)
        except ValueError:
            raise self.refused("the address cannot be read") from None
        if port is not None and port != default:
            return [url]
        return [_at(parts, ""), _at(parts, f":{default}")]

    def _parameters(self, received: Received) -> bytes:
        """What is signed behind the URL; refuses a body that the signature says nothing about."""
        query = received.url.partition("?")[2]
        digests = [value for name, value in self._fields(query) if name == "bodySHA256"]
        if digests:
            actual = hashlib.sha256(received.body).hexdigest()
            if len(digests) != 1 or not hmac.compare_digest(digests[0].lower().encode(), actual.encode()):
                raise self.refused("bodySHA256 is not the body's")
            return b""
        if not received.body:
            return b""
        if received.headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != FORM:
            raise self.refused("the signature covers forms, and other bodies by bodySHA256")
        try:
            text = received.body.decode("ascii")
        except UnicodeDecodeError:
            raise self.refused("the form is not percent-encoded") from None
        found: dict[str, set[str]] = {}
        for name, value in self._fields(text):
            found.setdefault(name, set()).add(value)
        signed = "".join(name + value for name in sorted(found) for value in sorted(found[name]))
        return signed.encode(errors="replace")

    def _fields(self, text: str) -> list[tuple[str, str]]:
        try:
            return parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_PARAMETERS, errors="replace")
        except ValueError:
            raise self.refused(f"there are more than {MAX_PARAMETERS} parameters") from None


def _at(parts: SplitResult, port: str) -> str:
    """The URL with this port, its query as it came."""
    host = parts.netloc.rpartition(":")[0] if parts.port is not None else parts.netloc
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{host}{port}{parts.path}{query}"
