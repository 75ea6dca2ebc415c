"""Whether a browser's request comes from the platform's own pages.

A browser sends the session's cookie with requests that another site's page makes. What such a page cannot do is
say where the request comes from: `Sec-Fetch-Site` (W3C Fetch Metadata) and `Origin` (RFC 6454) are the browser's.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from continuitybridge.settings import get_settings

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""Methods that change nothing (RFC 9110, 9.2.1)."""


def is_ours(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the request says that a page of the platform made it, or a person without any page. `headers` have
    lower-case names. Where neither header is there, nothing says so."""
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        return site in (b"same-origin", b"none")
    origin = headers.get(b"origin")
    if origin is None:
        return False
    text = origin.decode("latin-1")
    # A proxy may have put another host into Host: what the platform is called outside counts as well.
    return text == _outside() or _netloc(text) == headers.get(b"host", b"").decode("latin-1").lower()


def is_anothers(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the request says that somebody else's page made it. A program says nothing."""
    return (b"sec-fetch-site" in headers or b"origin" in headers) and not is_ours(headers)


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _outside() -> str:
    parts = urlsplit(get_settings().external_url)
    return f"{parts.scheme}://{parts.netloc}"
