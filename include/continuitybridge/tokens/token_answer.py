"""What a token endpoint answers, read as liberally as can be: by the time that it is here, a rotating refresh
token and an authorization code are used up, and what is thrown away cannot be had again.

Successful answers are JSON (RFC 6749, 5.1), or forms as some older servers give them. What such an answer does not
say, or says unreadably, is taken as not said; whether it holds a token is all that counts. oauthlib's reader drops
the token where its lifetime is `""` or `"3600.0"`, and takes a page of HTML for a refusal.
"""

from __future__ import annotations

import json
import math
from typing import Any
from urllib.parse import parse_qsl

from continuitybridge.tokens.kept import Obtained

LONGEST_LIFETIME_S = 365 * 86_400.0
SHORTEST_LIFETIME_S = 1.0


class NoToken(ValueError):
    """There is none in it. `error` is the code that it names instead; "" where it names none."""

    def __init__(self, error: str = "") -> None:
        super().__init__(error or "no token")
        self.error = error


def read(content: bytes) -> Obtained:
    """The token. Raises `NoToken`."""
    found = fields(content)
    if error := named(found):
        raise NoToken(error)
    access = text(found.get("access_token"))
    # What a header takes (RFC 6749, A.12).
    if not access or not (access.isascii() and access.isprintable()):
        raise NoToken
    return Obtained(access, text(found.get("refresh_token")) or None, _lifetime_s(found.get("expires_in")))


def fields(content: bytes) -> dict[str, Any]:
    """What stands in an answer; nothing where it is neither a JSON object nor a form."""
    text = content.decode("utf-8-sig", "replace")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return dict(parse_qsl(text)) if text.isascii() and "<" not in text else {}
    return found if isinstance(found, dict) else {}


def named(found: dict[str, Any]) -> str:
    """The code of an error (RFC 6749, 5.2), "" for none. An object in its place says nothing that is agreed on."""
    error = found.get("error")
    return error if isinstance(error, str) else ""


def number(given: object) -> float | None:
    """A number however it is written; None for what is none, or none that time can be counted by."""
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        return None
    try:
        value = float(given)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _lifetime_s(given: object) -> float | None:
    seconds = number(given)
    if seconds is None or seconds <= 0:
        # A token that had ended when it came would be asked for again at once, and again.
        return None
    return min(max(SHORTEST_LIFETIME_S, seconds), LONGEST_LIFETIME_S)


def text(given: object) -> str:
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    return given if isinstance(given, str) else ""
