"""What a caller who waits for a flow's result is answered: configuration and the program that makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from continuitybridge import problems
from continuitybridge.engine.message import Message, Reply
from continuitybridge.errors import ConfigurationError, TransformFailed
from continuitybridge.nodes.base import NodeConfig, hints
from continuitybridge.nodes.http.request import HEADER_NAME, encoded, header_value
from continuitybridge.nodes.language.problems import Problems
from continuitybridge.nodes.language.template import Value, compile_data, scope_of

MAX_LIMIT_S = 300.0
NO_CONTENT = 204
_BODILESS = frozenset({204, 304})
_OURS = frozenset(
    {
        "connection",
        "content-length",
        "transfer-encoding",
        "keep-alive",
        "te",
        "trailer",
        "upgrade",
        "date",
        "server",
    }
    | {"proxy-authenticate", "proxy-authorization", "www-authenticate", "bridge-message-id"}
    # What a browser would do with them concerns the whole platform, whose address the webhook shares.
    | {"set-cookie", "clear-site-data", "content-security-policy", "strict-transport-security", "alt-svc"}
    | {"x-content-type-options", "service-worker-allowed", "refresh"}
)


class ResultConfig(NodeConfig):
    """How the result is answered."""

    limit_s: float = Field(
        default=30.0,
        gt=0,
        le=MAX_LIMIT_S,
        description="Longest time in seconds that a caller is held; then it is answered with `202` and the "
        "address where the message can be followed. The message goes on.",
    )
    from_: list[str] = Field(
        default_factory=list,
        alias="from",
        description="Steps whose messages are the result, where they leave the flow. Empty: any step.",
    )
    status: int | str = Field(
        default=200,
        description="Status of the answer: a number from 200 to 599, or a template that gives one.",
        json_schema_extra=hints(language="jinja", placeholder="{{ vars.deliver.status }}"),
    )
    headers: dict[str, str] = Field(
        default_factory=dict,
        description="Headers of the answer: name → template; what is null is left out.",
        json_schema_extra=hints(language="jinja", placeholder="Location: '/orders/{{ body.id }}'"),
    )
    body: Any = Field(
        default=None,
        description="What is answered instead of the message's body: a text template, or data whose texts are "
        "templates (a text that is one placeholder gives the value itself). An empty text answers without a body.",
        json_schema_extra=hints(language="jinja", multiline=True),
    )
    when: Literal["settled", "ended"] = Field(
        default="settled",
        description="When a result is answered: `settled`, once what became of the message is on disk; `ended`, "
        "some milliseconds sooner, as soon as the flow has ended: in the end the message may then stand otherwise "
        "than it was answered, where the outcome could not be written. Failures are always answered once they are "
        "on disk.",
    )
    on_retry: Literal["wait", "accept"] = Field(
        default="wait",
        description="What a caller gets when the message failed and will be tried again: `wait` holds it, as the "
        "next try may succeed within the limit, and answers `202` at once when that comes later; `accept` always "
        "answers `202` at once.",
    )
    errors: dict[str, int] = Field(
        default_factory=dict,
        description="Failure code → status of the answer, where it is to be another than the usual one.",
        json_schema_extra=hints(placeholder="delivery-failed: 504"),
    )
    explain: bool = Field(
        default=True,
        description="Tell the caller what is wrong with its content (`detail` and `violations` of invalid-payload "
        "and validation-failed). `false`: code and title only.",
    )

    @field_validator("status")
    @classmethod
    def _is_a_status(cls, status: int | str) -> int | str:
        if isinstance(status, int) and not 200 <= status <= 599:
            raise ValueError(f"{status} is no status of an answer; write a number from 200 to 599")
        return status

    @field_validator("errors")
    @classmethod
    def _are_codes(cls, errors: dict[str, int]) -> dict[str, int]:
        for code, status in errors.items():
            if code not in problems.FAILURE_STATUS:
                known = ", ".join(problems.FAILURE_STATUS)
                raise ValueError(f"{code!r} is not the code of a failure; there are {known}")
            if not 400 <= status <= 599:
                raise ValueError(f"{code}: {status} is no status of a failure; write a number from 400 to 599")
        return errors


class ReplyMaker:
    """A `ResultConfig`, compiled."""

    def __init__(self, config: ResultConfig) -> None:
        """Raises `ConfigurationError` with every problem of the templates; fields as in `result`."""
        found = Problems()
        self._from = frozenset(config.from_)
        self._headers: list[tuple[str, Value]] = []
        with found.noting():
            self._status = _status_of(config.status)
        for name, text in config.headers.items():
            with found.noting():
                _check_header(name)
                self._headers.append((name.lower(), Value(text, field=f"result.headers.{name}")))
        with found.noting():
            self._body = None if config.body is None else compile_data(config.body, field="result.body")
        self._empty = config.body == ""
        found.raise_any()

    def counts(self, node_id: str) -> bool:
        """Whether a message that leaves the flow at this step is a result."""
        return not self._from or node_id in self._from

    def make(self, message: Message | None, max_bytes: int) -> Reply:
        """The answer for the message that left the flow; `204` for None: none did. Raises `TransformFailed`
        when the templates cannot be applied to it."""
        if message is None:
            return Reply(NO_CONTENT)
        scope = scope_of(message)
        status = self._status(scope)
        headers: dict[str, str] = {}
        content = b""
        if not self._empty and status not in _BODILESS:
            if self._body is None:
                content, headers["content-type"] = encoded(message.body, message.headers.get("content-type"))
            else:
                content, headers["content-type"] = encoded(self._body(scope), None)
        if len(content) > max_bytes:
            raise TransformFailed(
                f"the answer has {len(content)} bytes, {max_bytes} are allowed (BRIDGE_REPLY_MAX_BYTES)"
            )
        for name, value in self._headers:
            given = value.evaluate(scope)
            if given is not None:
                headers[name] = header_value(name, given)
        if not content:
            headers.pop("content-type", None)
        return Reply(status, headers, content, message.id)


def _status_of(given: int | str) -> Callable[[Mapping[str, Any]], int]:
    if isinstance(given, int):
        return lambda scope: given
    value = Value(given, field="result.status")
    if value.constant:
        try:
            _status(given)
        except TransformFailed as error:
            raise ConfigurationError(error.detail, field="result.status", value=given) from None
    return lambda scope: _status(value.evaluate(scope))


def _status(given: Any) -> int:
    text = given.strip() if isinstance(given, str) else given
    if isinstance(text, str) and len(text) == 3 and text.isascii() and text.isdigit():
        text = int(text)
    if isinstance(text, int) and not isinstance(text, bool) and 200 <= text <= 599:
        return text
    raise TransformFailed(f"result.status gave {str(given)[:100]!r}, which is no status from 200 to 599")


def _check_header(name: str) -> None:
    if not HEADER_NAME.fullmatch(name):
        raise ConfigurationError(f"{name!r} is no header name", field=f"result.headers.{name}", value=name)
    if name.lower() in _OURS:
        raise ConfigurationError(f"{name} is not for a flow to set", field=f"result.headers.{name}", value=name)
