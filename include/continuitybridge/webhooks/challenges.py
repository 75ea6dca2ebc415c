"""Handshakes in which a provider asks an address whether it wants its messages, before it sends any.

What is answered is the provider's own text, as plain text that no browser takes for a page. An answer tells nobody
anything: whoever gets one still has to sign what he sends.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs

import orjson

from continuitybridge.errors import Unavailable, UnreadableContent
from continuitybridge.nodes.triggers.webhook_trigger import Challenge
from continuitybridge.webhooks.verification import Answer, Headers

MAX_CHALLENGE_BYTES = 1024
MAX_PARAMETERS = 100
_TEXT = b"text/plain; charset=utf-8"
_JSON = b"application/json"
_OKTA = b"x-okta-verification-challenge"


def answer(
    challenge: Challenge, method: str, query: bytes, headers: Headers, keys: Sequence[Any]
) -> Answer | None:
    """The answer to a request that is such a challenge; None for any other. Raises `UnreadableContent` for one
    that cannot be answered: a wrong token, or a text that is too long or not printable; `Unavailable` where a
    secret is needed and there is none."""
    given = _parameters(query)
    match challenge.type:
        case "hub" if method == "GET" and "hub.challenge" in given:
            token = given.get("hub.verify_token", "")
            expected = challenge.verify_token
            if expected is not None and not hmac.compare_digest(token.encode(), expected.encode()):
                raise UnreadableContent("hub.verify_token is not the one that is configured")
            if given.get("hub.mode") not in ("subscribe", "unsubscribe"):
                raise UnreadableContent("hub.mode is neither subscribe nor unsubscribe")
            return Answer(_TEXT, _checked(given["hub.challenge"]))
        case "crc" if method == "GET" and "crc_token" in given:
            if not keys:
                raise Unavailable("the endpoint's secrets cannot be opened")
            # The newest: while a secret is rotated, it is the one that its provider is about to use.
            digest = hmac.digest(keys[-1], _checked(given["crc_token"]), hashlib.sha256)
            token = "sha256=" + base64.b64encode(digest).decode()
            return Answer(_JSON, orjson.dumps({"response_token": token}))
        case "okta" if method == "GET" and _OKTA in headers:
            text = _checked(headers[_OKTA].decode("latin-1")).decode()
            return Answer(_JSON, orjson.dumps({"verification": text}))
        case "echo" if method in ("GET", "POST"):
            for name in ("challenge", "validationToken"):
                if name in given:
                    return Answer(_TEXT, _checked(given[name]))
    return None


def _parameters(query: bytes) -> dict[str, str]:
    try:
        found = parse_qs(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_PARAMETERS)
    except ValueError:
        raise UnreadableContent(f"the query has more than {MAX_PARAMETERS} parameters") from None
    return {name: values[0] for name, values in found.items()}


def _checked(text: str) -> bytes:
    if not text or len(text) > MAX_CHALLENGE_BYTES or not (text.isascii() and text.isprintable()):
        raise UnreadableContent(f"a challenge has at most {MAX_CHALLENGE_BYTES} printable ASCII characters")
    return text.encode()
