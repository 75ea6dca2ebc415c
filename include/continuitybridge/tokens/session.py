"""Sessions by cookie: logging in, and what the cookies that come back mean (RFC 6265)."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from http.cookies import CookieError, Morsel, SimpleCookie
from urllib.parse import urlencode, urlsplit

import orjson

from continuitybridge.connections.auth import CookieAuth
from continuitybridge.tokens import calls
from continuitybridge.tokens.calls import Failed, Refused
from continuitybridge.tokens.kept import Obtained


def log_in(auth: CookieAuth, base_url: str) -> Obtained:
    """A new session: `access` is the value of the header `Cookie`. It ends with the first of its cookies, at the
    latest after `lifetime_s`. Raises `Refused` when the declared cookies do not come, or are not for the
    connection's host, `Failed` without an answer."""
    url = str(auth.login_url)
    fields = {name: value.get_secret_value() for name, value in auth.fields.items()}
    if auth.content == "json":
        answer = calls.post(url, orjson.dumps(fields).decode(), content_type="application/json")
    else:
        answer = calls.post(url, urlencode(fields))
    if answer.status >= 500 or answer.status in (408, 425, 429):
        raise Failed(f"{calls.host(url)} answered {answer.status}")
    found = _cookies(answer.headers.get("set-cookie", ""), calls.hostname(url), base_url)
    if answer.status >= 400 or not set(auth.cookies) <= found.keys():
        raise Refused(f"logging in at {calls.host(url)} was answered with {answer.status} and without the cookies")
    ends = [auth.lifetime_s, *filter(None, (_lifetime_s(each) for each in found.values()))]
    value = "; ".join(f"{name}={each.coded_value}" for name, each in found.items())
    if not value.isascii() or not value.isprintable():
        raise Refused(f"{calls.host(url)} gave cookies that cannot be sent")
    return Obtained(value, None, float(min(ends)))


def _cookies(header: str, login_host: str, base_url: str) -> dict[str, Morsel[str]]:
    """The living cookies that the connection's address may be sent. Each line is one `Set-Cookie`."""
    parts = urlsplit(base_url)
    host = (parts.hostname or "").lower()
    kept: dict[str, Morsel[str]] = {}
    for line in header.split("\n"):
        try:
            parsed: SimpleCookie = SimpleCookie(line)
        except CookieError:
            continue
        for name, morsel in parsed.items():
            domain = morsel["domain"].lstrip(".").lower()
            # A server may give cookies for its own host and its own domain only.
            own = login_host == domain or login_host.endswith(f".{domain}") if domain else True
            meant = (host == domain or host.endswith(f".{domain}")) if domain else host == login_host
            lives = (_lifetime_s(morsel) or 1.0) > 0
            if own and meant and lives and (parts.scheme == "https" or not morsel["secure"]):
                kept[name] = morsel
            elif not lives:
                kept.pop(name, None)
    return kept


def _lifetime_s(cookie: Morsel[str]) -> float | None:
    """How long it lives, in seconds; None until the browser is closed."""
    if (age := cookie["max-age"]) and age.lstrip("-").isdigit():
        return float(age) or -1.0
    if cookie["expires"]:
        try:
            return (parsedate_to_datetime(cookie["expires"]).timestamp() - time.time()) or -1.0
        except (TypeError, ValueError, OverflowError):
            return None
    return None
