"""Reads answers: never more than allowed, compressed or not, and what they say about trying again."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.message import Message as HeaderParser
from email.utils import parsedate_to_datetime
from typing import Any

from continuitybridge.errors import DeliveryFailed, LimitExceeded, Verdict
from continuitybridge.nodes.hidden import without
from continuitybridge.nodes.http.request import Request
from continuitybridge.nodes.http.wire import RawAnswer, Reading
from continuitybridge.nodes.language import json_text

TRANSIENT_STATUSES = frozenset({408, 425, 429})
"""4xx that may pass; all 5xx may, all other 4xx and unfollowed redirects will not."""

EXCERPT_CHARACTERS = 500
_EXCERPT_BYTES = 8 * 1024
_DRAIN_BYTES = 64 * 1024
_LONGEST_RETRY_AFTER_S = 86_400.0
_KEPT_HEADERS = 50


@dataclass(frozen=True)
class Answer:
    """An answer as read. `headers` have lower-case names."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""

    @property
    def retry_after_s(self) -> float | None:
        """`Retry-After` (RFC 9110, 10.2.3) in seconds from now."""
        text = self.headers.get("retry-after", "").strip()
        if not text:
            return None
        if text.isascii() and text.isdigit():
            return min(float(text[:9]), _LONGEST_RETRY_AFTER_S)
        try:
            moment = parsedate_to_datetime(text)
        except (TypeError, ValueError, IndexError, OverflowError):
            return None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return min(max(0.0, (moment - datetime.now(UTC)).total_seconds()), _LONGEST_RETRY_AFTER_S)

    def without(self, credential: tuple[str, ...]) -> Answer:
        """The same where nothing of the credential was sent back in its headers, which later nodes may see."""
        sent = "\n".join(self.headers.values())
        if not any(each in sent for each in credential):
            return self
        return replace(self, headers={name: scrubbed(value, credential) for name, value in self.headers.items()})

    def told(self) -> dict[str, str]:
        """The headers that later nodes may see: no cookies."""
        kept = [(name, value) for name, value in self.headers.items() if not name.startswith("set-cookie")]
        return {name: value[:1000] for name, value in kept[:_KEPT_HEADERS]}

    def body(self) -> Any:
        """The content as its type says: JSON data, text, or bytes; None when there is none."""
        if not self.content:
            return None
        kind, charset = _content_type(self.headers.get("content-type", ""))
        if kind == "application/json" or kind.endswith("+json"):
            try:
                return json_text.loads(self.content.decode())
            except ValueError:
                return self.content.decode(errors="replace")
        if kind.startswith("text/") or kind.endswith(("/xml", "+xml", "/x-www-form-urlencoded")):
            try:
                return self.content.decode(charset or "utf-8", errors="replace")
            except LookupError:
                return self.content.decode(errors="replace")
        return self.content

    def as_data(self) -> dict[str, Any]:
        """The answer as JSON data: `status`, `headers`, `body`; a body that is bytes as base64 text."""
        body = self.body()
        if isinstance(body, bytes):
            body = base64.b64encode(body).decode()
        return {"status": self.status, "headers": self.told(), "body": body}


def reading(limit: int, wanted: Callable[[int], bool]) -> Reading:
    """How much of an answer is read: all that is allowed where its status makes it `wanted`; else only so
    much that the connection can be used again, or an excerpt shown."""

    def of(status: int, headers: dict[str, str]) -> tuple[int, bool]:
        if wanted(status):
            # Compressed, something may be a little longer than it is.
            return (limit if _coding(headers) == "" else limit + limit // 100 + 1024), True
        if 200 <= status < 300:
            return _DRAIN_BYTES, False
        return _EXCERPT_BYTES, True

    return of


def read(raw: RawAnswer, *, limit: int, wanted: bool) -> Answer:
    """The answer with its content decoded. Where that is `wanted`, one that exceeds `limit` bytes raises
    `LimitExceeded`, and one that cannot be decoded `DeliveryFailed`; else it is an excerpt."""
    if not wanted:
        content = b""
        if not 200 <= raw.status < 300:
            with suppress(DeliveryFailed):
                content = _decoded(raw, _EXCERPT_BYTES)[:_EXCERPT_BYTES]
        return Answer(raw.status, raw.headers, content)
    content = _decoded(raw, limit) if not raw.cut else b""
    if raw.cut or len(content) > limit:
        raise LimitExceeded(
            f"the destination's answer (status {raw.status}) is larger than {limit} bytes",
            limit="max_response_bytes",
            allowed=limit,
            found=f"more than {limit}",
            status=raw.status,
        )
    return Answer(raw.status, raw.headers, content)


def _coding(headers: Mapping[str, str]) -> str:
    coding = headers.get("content-encoding")
    if coding is None:
        return ""
    coding = coding.strip().lower()
    return "" if coding == "identity" else coding


def _decoded(raw: RawAnswer, limit: int) -> bytes:
    """Up to a little more than `limit` bytes: a bomb is inflated no further."""
    coding = _coding(raw.headers)
    if not coding:
        return raw.content
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise DeliveryFailed(
            f"the destination answered in the coding {coding[:40]!r}, which was not asked for",
            verdict=Verdict.TERMINAL,
            status=raw.status,
        )
    try:
        return zlib.decompressobj(wbits=47).decompress(raw.content, limit + 1)
    except zlib.error as error:
        raise DeliveryFailed(f"the destination's answer cannot be inflated: {error}") from None


def refusal(request: Request, answer: Answer) -> DeliveryFailed:
    """Why a message was not taken, with the verdict that the status stands for."""
    status = answer.status
    transient = status in TRANSIENT_STATUSES or status >= 500
    what = f"{request.method} {request.shown} answered {status}"
    if 300 <= status < 400:
        what += ", a redirect that is not followed"
    facts: dict[str, Any] = {"status": status, "method": request.method, "url": request.shown}
    if answer.retry_after_s is not None:
        facts["retry_after_s"] = answer.retry_after_s
    excerpt = scrubbed(answer.content.decode(errors="replace"), request.secrets)[:EXCERPT_CHARACTERS]
    if excerpt:
        facts["response"] = excerpt
    return DeliveryFailed(what, verdict=Verdict.TRANSIENT if transient else Verdict.TERMINAL, **facts)


def scrubbed(text: str, secrets: tuple[str, ...]) -> str:
    """A text in which a destination may have sent our own credentials back."""
    return without(text, secrets, "***")


def _content_type(header: str) -> tuple[str, str | None]:
    parser = HeaderParser()
    parser["content-type"] = header or "application/octet-stream"
    charset = parser.get_param("charset")
    return parser.get_content_type(), charset if isinstance(charset, str) else None
