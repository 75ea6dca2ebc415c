"""What a webhook's caller is answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import orjson

from continuitybridge import problems
from continuitybridge.inbox import replies
from continuitybridge.inbox.replies import Notice
from continuitybridge.vault.cipher import DecryptionFailed
from continuitybridge.vault.keyring import Cipher
from continuitybridge.webhooks.target import Target
from continuitybridge.webhooks.verification import Answer, Headers

Answered = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers, body."""

_WITHOUT_BODY = frozenset({204, 304})
_BEHAVE: tuple[tuple[bytes, bytes], ...] = (
    # The address is the platform's: what a flow answers must not act there as a page of the platform's. The server
    # adds what every answer bears (`browser_headers`).
    (b"content-security-policy", b"sandbox; default-src 'none'"),
)


def challenge(answer: Answer) -> Answered:
    """A provider's question about the address."""
    headers = [
        (b"content-type", answer.content_type),
        (b"content-length", str(len(answer.body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    return 200, headers, answer.body


def accepted(message_id: str, status_url: str, *, duplicate: bool) -> Answered:
    """The message is on disk; where it can be followed."""
    body = orjson.dumps({"id": message_id, "status_url": status_url, "duplicate": duplicate})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"location", status_url.encode()),
    ]
    return 202, headers, body


def result(
    target: Target,
    keys: Cipher,
    message_id: str,
    notice: Notice,
    status_url: Callable[[], str],
    *,
    duplicate: bool,
) -> Answered:
    """What the flow made of the message, or why it could not; only then it says where to look."""
    if notice.status == 202 and notice.content is None and notice.reply is None:
        return accepted(message_id, status_url(), duplicate=duplicate)
    if notice.reply is not None:
        content = replies.Content(notice.reply.headers, notice.reply.body)
    else:
        try:
            content = replies.open_content(keys, target.organization_id, message_id, notice.content)
        except DecryptionFailed:
            notice, content = _unreadable(target.organization_id, message_id), replies.Content()
    more: dict[str, Any] = {"Bridge-Message-Id": message_id}
    if duplicate:
        more["Idempotent-Replayed"] = "true"
    if notice.code is not None or notice.status is None:
        problem = problems.of_failure(
            notice.code or "",
            message_id,
            status_url=status_url(),
            statuses=target.failure_statuses,
            explanation=content.explanation if target.explains else None,
        )
        named = {"content-type": problems.MEDIA_TYPE, **problem.headers, **more}
        return problem.status, _headers(problem.status, named, problem.body()), problem.body()
    return notice.status, _headers(notice.status, {**content.headers, **more}, content.body), content.body


def preference(headers: Headers) -> float | None:
    """How long the caller prefers to wait, in seconds (RFC 7240): `Prefer: wait=5`, or `respond-async`, which is
    not at all. None: he does not say."""
    value = headers.get(b"prefer")
    if value is None:
        return None
    seconds: float | None = None
    for given in value.decode("latin-1").lower().split(","):
        name, _, text = given.partition(";")[0].partition("=")
        text = text.strip().strip('"')
        if name.strip() == "respond-async":
            return 0.0
        if name.strip() == "wait" and text.isascii() and text.isdigit() and len(text) < 7 and seconds is None:
            seconds = float(text)
    return seconds


def _headers(status: int, named: dict[str, Any], body: bytes) -> list[tuple[bytes, bytes]]:
    headers = [(name.lower().encode("latin-1"), str(value).encode("latin-1")) for name, value in named.items()]
    headers += _BEHAVE
    if "cache-control" not in named:
        headers.append((b"cache-control", b"no-store"))
    if status not in _WITHOUT_BODY:
        headers.append((b"content-length", str(len(body)).encode()))
    return headers


def _unreadable(organization_id: UUID, message_id: str) -> Notice:
    return Notice(organization_id, message_id, known=True, code=DecryptionFailed.code)
