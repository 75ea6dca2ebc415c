"""Typed errors: each carries its facts as attributes and a retry verdict.

One place maps them to an HTTP answer (`problems.py`, RFC 9457) and one to a task state (`airflow/`).
Outsiders see `code` and `title`; `detail` and `facts` are for those who may see the organization's data.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar


class Verdict(StrEnum):
    """Whether doing the same thing again can help."""

    TRANSIENT = "transient"
    TERMINAL = "terminal"


class BridgeError(Exception):
    """Base of every error the platform raises on purpose.

    `code` is stable and kebab-case, `title` is one sentence that holds for every instance of the class,
    `detail` says what was wrong this time and what would be valid, `facts` are the values behind it.
    """

    code: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Something went wrong inside the platform"
    verdict: Verdict = Verdict.TERMINAL

    def __init__(self, detail: str, /, *, verdict: Verdict | None = None, **facts: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.facts: dict[str, Any] = facts
        if verdict is not None:
            self.verdict = verdict

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.detail, self.verdict, self.facts))


def _rebuild(cls: type[BridgeError], detail: str, verdict: Verdict, facts: dict[str, Any]) -> BridgeError:
    error = cls.__new__(cls)
    BridgeError.__init__(error, detail, verdict=verdict, **facts)
    return error


class NodeError(BridgeError):
    """A node could not process one message. Raised by `Node.process`; it fails that message only."""

    code = "node-failed"
    title = "A node could not process the message"


class InvalidPayload(NodeError):
    """The message's content is not what the node reads (malformed JSON, XML, CSV, wrong type)."""

    code = "invalid-payload"
    title = "The payload is not in the format this node reads"


class ValidationFailed(NodeError):
    """The content is readable but breaks declared rules; `facts['violations']` lists them."""

    code = "validation-failed"
    title = "The payload breaks the declared rules"


class TransformFailed(NodeError):
    """The content is readable, but a program, mapping, stylesheet or template cannot be applied to it."""

    code = "transform-failed"
    title = "The message could not be transformed"


class LimitExceeded(NodeError):
    """A configured limit was exceeded; facts: `limit` (its setting's name), `allowed`, `found`."""

    code = "limit-exceeded"
    title = "A configured limit was exceeded"


class DeliveryFailed(NodeError):
    """A destination refused, failed or could not be reached; the verdict says whether to try again."""

    code = "delivery-failed"
    title = "The destination did not take the message"
    verdict = Verdict.TRANSIENT


class ReconnectNeeded(NodeError):
    """The connection has no token and gets none by itself: somebody has to connect the account again, or put its
    credentials right; facts: `connection`, `reason`. Nothing was sent."""

    code = "reconnect-needed"
    title = "The connection's account has to be connected again"


class EgressRefused(NodeError):
    """A call would go where the platform calls nothing: into its own network, to itself; facts: `host`, `port`.
    Nothing was sent."""

    code = "egress-refused"
    title = "The platform does not call this address"


class DestinationClosed(NodeError):
    """The platform does not call the destination now; facts: `destination`, `retry_after_s`. Nothing was sent. It
    is no attempt: the message keeps those it has and comes back to the same node; no error route takes it."""

    code = "destination-closed"
    title = "The destination is not called now"
    verdict = Verdict.TRANSIENT


class DestinationPaused(DestinationClosed):
    """Somebody paused the destination."""

    code = "destination-paused"
    title = "The destination is paused"


class CircuitOpen(DestinationClosed):
    """The destination failed too often in a row, and rests for a while."""

    code = "circuit-open"
    title = "The destination failed too often and rests for a while"


class Incomplete(NodeError):
    """A wait ended without what was waited for; facts say what is missing."""

    code = "incomplete"
    title = "Not everything arrived that the message waited for"


class SubflowFailed(NodeError):
    """The flow that was called gave no result; facts: `flow`, `message_id`."""

    code = "subflow-failed"
    title = "The called flow gave no result"


class NodeCrashed(NodeError):
    """The process running the node ended while it worked on this message (memory, crash)."""

    code = "node-crashed"
    title = "The node's process ended while it worked on the message"


class ReplyFailed(BridgeError):
    """The message was processed, but the answer for its caller could not be made (templates, size)."""

    code = "reply-failed"
    title = "The message was processed, but its answer could not be made"


class Skipped(BridgeError):
    """Somebody took the message out of the flow before it was done."""

    code = "skipped"
    title = "The message was taken out of the flow by hand"


class ConfigurationError(BridgeError):
    """A setting, flow, connection or call is wrong; nothing was done."""

    code = "configuration-error"
    title = "The configuration is not valid"


class ReferenceMissing(ConfigurationError):
    """The secret store outside has nothing where a secret refers to; facts: `secret`, `backend`, `path`."""

    code = "secret-reference-missing"
    title = "The secret store has nothing where the secret refers to"


class Blocked(BridgeError):
    """The address is blocked for a while, or until somebody lifts it; facts: `retry_after_s` where it ends."""

    code = "blocked"
    title = "Requests from this address are refused for now"


class NotFound(BridgeError):
    """The thing does not exist, or is not the caller's: the two cannot be told apart."""

    code = "not-found"
    title = "Not found"


class Conflict(BridgeError):
    """The request contradicts what is stored (immutable version, same idempotency key with other body)."""

    code = "conflict"
    title = "The request contradicts what is stored"


class NotAuthenticated(BridgeError):
    """The caller is not known: no credential, or none that holds."""

    code = "not-authenticated"
    title = "The request is not authenticated"


class NotAllowed(BridgeError):
    """The caller is known and may not do this."""

    code = "not-allowed"
    title = "The caller may not do this"


class OrganizationSuspended(NotAllowed):
    """The organization is suspended: it is read only, and nothing of it runs."""

    code = "organization-suspended"
    title = "The organization is suspended"


class MethodNotAllowed(BridgeError):
    """The address does not take this HTTP method; facts: `allow`, the methods that it takes."""

    code = "method-not-allowed"
    title = "The address does not take this method"


class Gone(BridgeError):
    """The thing exists and is switched off."""

    code = "gone"
    title = "Switched off"


class RequestTimeout(BridgeError):
    """The caller did not send its request in the time allowed; facts: `allowed` in seconds."""

    code = "request-timeout"
    title = "The request did not arrive in time"
    verdict = Verdict.TRANSIENT


class PayloadTooLarge(BridgeError):
    """The body is larger than allowed; facts: `allowed` in bytes."""

    code = "payload-too-large"
    title = "The body is larger than allowed"


class HeadTooLarge(BridgeError):
    """The request's address and headers are larger, or more, than allowed; facts: `allowed` in bytes."""

    code = "head-too-large"
    title = "The request's address or headers are too large"


class UnsupportedContent(BridgeError):
    """The content type or coding is not one that is taken; facts: `valid`."""

    code = "unsupported-media-type"
    title = "The content type or coding is not taken here"


class UnreadableContent(BridgeError):
    """The content cannot be what the request declares it to be."""

    code = "unprocessable-content"
    title = "The content is not what the request declares"


class TooManyRequests(BridgeError):
    """The caller's rate is above its limit; facts: `retry_after_s`."""

    code = "too-many-requests"
    title = "Too many requests"
    verdict = Verdict.TRANSIENT


class QuotaExceeded(BridgeError):
    """The organization has as many of a thing as it may; facts: `resource`, `allowed`, `used`."""

    code = "quota-exceeded"
    title = "The organization has as many of this as it may"


class AllowanceExhausted(TooManyRequests):
    """The organization has begun as much in this hour or day as it may, or holds as many bytes; facts: `resource`,
    `allowed`, `used`, `retry_after_s`."""

    code = "allowance-exhausted"
    title = "The organization's allowance is used up"


class StaleLease(BridgeError):
    """The lease's epoch is no longer the message's: another worker holds or has settled it."""

    code = "stale-lease"
    title = "Another worker holds or has settled this message"


class Unavailable(BridgeError):
    """A service the platform needs does not answer now, or has no room; facts: `retry_after_s` if known."""

    code = "unavailable"
    title = "A needed service does not answer"
    verdict = Verdict.TRANSIENT


class BackendRefused(Unavailable):
    """A secret store outside answers and does not tell: the platform's own credential for it does not hold; facts:
    `backend`. It is the operator's to put right, and asked again then."""

    code = "secret-backend-refused"
    title = "The secret store refuses the platform"


class StoresUnreadable(Unavailable):
    """The file in which the operator declares the secret stores is bad, and none is known here from before. It is
    the operator's to put right, and read again then."""

    code = "secret-stores-unreadable"
    title = "The declaration of the secret stores cannot be read"


def class_of(code: str) -> type[BridgeError] | None:
    """The class with this code, among those that are imported."""
    found: list[type[BridgeError]] = [BridgeError]
    for cls in found:
        if cls.code == code:
            return cls
        found += cls.__subclasses__()
    return None
