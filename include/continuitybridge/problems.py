"""The one place that maps errors to HTTP answers: problem details (RFC 9457).

Members: `type` (a URN that never changes), `title`, `status`, `detail`, `instance` (`urn:uuid:…`: the id under
which the log knows this occurrence), `code`, and facts that help to put it right (`problems`, `valid`, …).
An error that nobody raised on purpose, and one about the platform's own insides, shows its id and title only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import orjson

from continuitybridge.errors import (
    Blocked,
    BridgeError,
    ConfigurationError,
    Conflict,
    Gone,
    HeadTooLarge,
    LimitExceeded,
    MethodNotAllowed,
    NodeError,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    PayloadTooLarge,
    QuotaExceeded,
    ReconnectNeeded,
    RequestTimeout,
    Skipped,
    StaleLease,
    TooManyRequests,
    Unavailable,
    UnreadableContent,
    UnsupportedContent,
    class_of,
)

MEDIA_TYPE = "application/problem+json"

STATUS: Mapping[type[BridgeError], int] = {
    NotAuthenticated: 401,
    NotAllowed: 403,
    Blocked: 403,
    QuotaExceeded: 403,
    NotFound: 404,
    MethodNotAllowed: 405,
    RequestTimeout: 408,
    Conflict: 409,
    StaleLease: 409,
    Skipped: 409,
    ReconnectNeeded: 409,
    Gone: 410,
    PayloadTooLarge: 413,
    UnsupportedContent: 415,
    ConfigurationError: 422,
    UnreadableContent: 422,
    LimitExceeded: 422,
    NodeError: 422,
    TooManyRequests: 429,
    HeadTooLarge: 431,
    Unavailable: 503,
    BridgeError: 500,
}
"""Class → status; the nearest ancestor counts."""

FAILURE_STATUS: Mapping[str, int] = {
    "invalid-payload": 422,
    "validation-failed": 422,
    "transform-failed": 422,
    "limit-exceeded": 422,
    "delivery-failed": 502,
    "egress-refused": 502,
    "reconnect-needed": 502,
    "unavailable": 503,
    "destination-paused": 503,
    "circuit-open": 503,
    "skipped": 409,
    "node-failed": 500,
    "node-crashed": 500,
    "configuration-error": 500,
    "not-found": 500,
    "lease-expired": 500,
    "decryption-failed": 500,
    "reply-failed": 500,
}
"""Code of a message's failure → status for the caller who waits for its result; codes that are not here: 500.
Unlike `STATUS`, which is about the request itself, it says whose fault it is: the content's (422), the
destination's (502, 503), or the flow's and the platform's (500)."""

EXPLAINED = frozenset({"invalid-payload", "validation-failed"})
"""Failures whose detail is about the caller's own content; that of all others is about the flow's insides."""

_SHOWN_FACTS = (
    "field",
    "value",
    "valid",
    "nearest",
    "problems",
    "violations",
    "diff",
    "flow",
    "limit",
    "allowed",
    "found",
    "resource",
    "used",
)
DEFAULT_RETRY_AFTER_S = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem details answer. `headers` go with it (`Retry-After`, `Allow`, `WWW-Authenticate`)."""

    status: int
    content: dict[str, Any]
    headers: dict[str, str]

    @property
    def instance(self) -> str:
        return str(self.content["instance"])

    def body(self) -> bytes:
        return orjson.dumps(self.content, default=str)


def of(error: BaseException) -> Problem:
    """The answer to an error of any kind."""
    if not isinstance(error, BridgeError):
        error = BridgeError("")
    status = next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)
    content: dict[str, Any] = {
        "type": f"urn:continuitybridge:problem:{error.code}",
        "title": error.title,
        "status": status,
        "instance": f"urn:uuid:{uuid4()}",
        "code": error.code,
    }
    if status < 500:
        content["detail"] = error.detail
        content.update({name: error.facts[name] for name in _SHOWN_FACTS if name in error.facts})
    headers: dict[str, str] = {}
    if status == 401:
        headers["WWW-Authenticate"] = error.facts.get("scheme", "Bearer")
    elif status == 405:
        headers["Allow"] = ", ".join(error.facts.get("allow", ()))
    elif status in (429, 503) or "retry_after_s" in error.facts:
        headers["Retry-After"] = str(math.ceil(error.facts.get("retry_after_s", DEFAULT_RETRY_AFTER_S)))
    return Problem(status, content, headers)


def of_failure(
    code: str,
    message_id: str,
    *,
    status_url: str | None = None,
    statuses: Mapping[str, int] | None = None,
    explanation: Mapping[str, Any] | None = None,
) -> Problem:
    """What the caller of a message that failed is told: code and title, the message's id (`instance` too: triage
    knows it by that), and where the failure is about his own content, what `explanation` (`detail`, `violations`)
    says of it. `statuses` overrides `FAILURE_STATUS`."""
    status = {**FAILURE_STATUS, **(statuses or {})}.get(code, 500)
    cls = class_of(code)
    content: dict[str, Any] = {
        "type": f"urn:continuitybridge:problem:{code}",
        "title": cls.title if cls is not None else BridgeError.title,
        "status": status,
        "instance": f"urn:uuid:{message_id}",
        "code": code,
        "id": message_id,
    }
    if status_url is not None:
        content["status_url"] = status_url
    if explanation and code in EXPLAINED:
        content.update(explanation)
    return Problem(status, content, {})
