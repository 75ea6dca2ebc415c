"""The node `http_request`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from continuitybridge.engine.message import Message
from continuitybridge.errors import DeliveryFailed, InvalidPayload, Verdict
from continuitybridge.nodes.base import (
    AsyncNode,
    BuildContext,
    ConnectionInfo,
    Example,
    NodeConfig,
    RunContext,
    hints,
)
from continuitybridge.nodes.http import address
from continuitybridge.nodes.http.answer import Answer, read, reading, refusal, scrubbed
from continuitybridge.nodes.http.client import Client
from continuitybridge.nodes.http.legacy import SHARED_KEYS, from_http_request
from continuitybridge.nodes.http.request import Request, RequestBuilder
from continuitybridge.nodes.http.retry import with_retries
from continuitybridge.nodes.http.wire import ExchangeFailed, RawAnswer
from continuitybridge.nodes.language import json_text

MAX_REDIRECTS = 5
_MARGIN_S = 1.0
"""What the engine waits beyond this node's own limit, whose error says more."""


class Sample(NodeConfig):
    """The answer that stands for the destination's when a flow is emulated."""

    status: int = Field(default=200, ge=100, le=599, description="Status code.")
    headers: dict[str, str] = Field(default_factory=dict, description="Headers.")
    body: Any = Field(default_factory=dict, description="Body: JSON data, or text.")


class HttpRequestConfig(NodeConfig):
    """Configuration of `http_request`."""

    connection: str | None = Field(
        default=None,
        pattern=r"^[a-z][a-z0-9_-]{0,63}$",
        description="Named connection: where the request goes and its credentials.",
        json_schema_extra=hints(placeholder="warehouse"),
    )
    path: str = Field(
        default="",
        description="Path behind the connection's address, a template; values are percent-encoded.",
        json_schema_extra=hints(language="jinja", placeholder="/orders/{{ body.id }}"),
    )
    url: str | None = Field(
        default=None,
        description="Whole address where no connection is needed; a template behind the host.",
        json_schema_extra=hints(language="jinja", placeholder="https://api.example.com/orders"),
    )
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = Field(
        default="POST", description="HTTP method."
    )
    query: dict[str, Any] = Field(
        default_factory=dict,
        description="Query parameters: name → template, number or list; what is null is left out.",
        json_schema_extra=hints(language="jinja", placeholder="warehouse: '{{ body.warehouse }}'"),
    )
    headers: dict[str, str] = Field(
        default_factory=dict,
        description="Headers: name → template; what is null is left out. Credentials belong to a connection.",
        json_schema_extra=hints(language="jinja", placeholder="Content-Type: application/xml"),
    )
    body: Any = Field(
        default=None,
        description="What is sent instead of the message's body: a text template, or data whose texts are "
        "templates (a text that is one placeholder gives the value itself). An empty text sends nothing.",
        json_schema_extra=hints(language="jinja", multiline=True),
    )
    response: str = Field(
        default="vars",
        pattern=r"^(vars|body(\.[A-Za-z_][A-Za-z0-9_-]{0,63})?)$",
        description="Where the answer goes. `vars`: only status and headers, into `vars.<node id>`, and the "
        "message goes on unchanged. `body`: the answer's body takes the place of the message's. `body.<field>`: "
        "`status`, `headers` and `body` of the answer under that field of the message.",
    )
    success: list[int | str] = Field(
        default=["2xx"],
        min_length=1,
        description="Statuses that count as delivered: codes or classes such as 2xx.",
        json_schema_extra=hints(advanced=True),
    )
    timeout_s: float = Field(
        default=30.0, gt=0, le=600, description="Longest time for a message in seconds, retries included."
    )
    attempt_timeout_s: float = Field(
        default=10.0, gt=0, le=600, description="Longest time for one attempt in seconds."
    )
    retries: int = Field(
        default=2,
        ge=0,
        le=10,
        description="Further attempts after a passing failure, within timeout_s. The platform's own retries, with "
        "longer waits, come after these.",
    )
    retry_wait_s: float = Field(
        default=0.5,
        gt=0,
        le=60,
        description="Upper bound of the first wait in seconds; it doubles, each wait is random below it.",
        json_schema_extra=hints(advanced=True),
    )
    follow_redirects: bool = Field(
        default=False,
        description="Follow redirects that stay on the same host and keep the method.",
        json_schema_extra=hints(advanced=True),
    )
    verify_tls: bool = Field(
        default=True,
        description="Check the destination's certificate. False takes any: for test systems.",
        json_schema_extra=hints(advanced=True),
    )
    max_response_bytes: int = Field(
        default=10 * 1024 * 1024,
        ge=1,
        description="Largest answer in bytes where it is used; a larger one fails the message.",
        json_schema_extra=hints(advanced=True),
    )
    sample: Sample = Field(
        default_factory=Sample,
        description="The answer when the flow is emulated.",
        json_schema_extra=hints(advanced=True),
    )

    @field_validator("success")
    @classmethod
    def _are_statuses(cls, success: list[int | str]) -> list[int | str]:
        for status in success:
            text = str(status).lower()
            if len(text) != 3 or text[0] not in "12345" or not (text[1:] == "xx" or text[1:].isdigit()):
                raise ValueError(f"{status!r} is no status; write 201 or 2xx")
        return success

    @model_validator(mode="after")
    def _knows_where_to(self) -> Self:
        if (self.connection is None) == (self.url is None):
            raise ValueError("give either connection or url")
        if self.url is not None and self.path:
            raise ValueError("path goes behind a connection's address; write it into url")
        if self.attempt_timeout_s > self.timeout_s and "attempt_timeout_s" in self.model_fields_set:
            raise ValueError("attempt_timeout_s is longer than timeout_s, which includes it")
        return self


class HttpRequest(AsyncNode[HttpRequestConfig]):
    """**Where to.** A named `connection` gives address and credentials, `path` what comes behind; or `url` is the
    whole address. The host never comes from the message. Values in paths are percent-encoded; a missing or empty
    one fails the message.

    **What.** The message's body: data as JSON, text as `text/plain` (`application/xml` with an XML declaration),
    bytes as they came; a declared `Content-Type` wins. `body` declares something else. `GET`, `HEAD` and `DELETE`
    send no body unless declared.

    **Delivered** is a status of `success` (2xx). Other answers are failures: 408, 425, 429 and 5xx, broken
    connections and time-outs pass and are tried again up to `retries` times with random, doubling waits, or as
    long as `Retry-After` asks, all within `timeout_s`; any other status stands. A passing failure that remains is
    tried again later by the platform.

    **At least once.** An attempt whose answer was lost is repeated; where a kept connection just turns out to be
    closed, at once and without counting. Each request bears `Idempotency-Key: <message id>:<node
    id>:<generation>`, the same on every retry and unchanged replay.

    **The answer.** `vars.<node id>` holds `status`, `attempts` and `headers`, as in
    `$vars.deliver.status == 202`; `response` can bring its body into the message.

    **Not everywhere.** Private, local and reserved addresses are not called unless a superadmin allows them
    (`BRIDGE_EGRESS_ALLOW`), the platform itself never. Where an address in `url` shows it, lint says so; where a
    name leads there, the message fails with `egress-refused`, which stands.

    **Tokens.** Where the connection authenticates by a token and the answer says that it does not hold (401),
    another is obtained and the request sent once more; a second refusal stands.

    Redirects are not followed unless allowed, and then on the same host only. Cookies are not kept. Emulated, the
    request is built, nothing is sent, and `sample` is the answer.
    """

    type = "http_request"
    category = "connect"
    label = "HTTP request"
    summary = "Sends a message to an HTTP destination and reads its answer."
    Config = HttpRequestConfig
    examples = (
        Example(
            title="Deliver an order",
            config={"connection": "warehouse", "path": "/orders/{{ body.id }}", "method": "PUT"},
            input={"id": "PO 7", "lines": []},
            output={"id": "PO 7", "lines": []},
        ),
        Example(
            title="Ask for stock and put the answer into the message",
            config={
                "connection": "warehouse",
                "method": "GET",
                "path": "/stock",
                "query": {"sku": "{{ body.sku }}"},
                "response": "body.stock",
                "sample": {"body": {"available": 12}},
            },
            input={"sku": "A-1"},
            output={
                "sku": "A-1",
                "stock": {
                    "status": 200,
                    "headers": {"content-type": "application/json"},
                    "body": {"available": 12},
                },
            },
        ),
        Example(
            title="A body of its own",
            config={
                "url": "https://hooks.example.com/notify",
                "body": {"text": "order {{ body.id }}", "lines": "{{ body.lines | length }}"},
                "response": "body",
                "sample": {"body": {"ok": True}},
            },
            input={"id": "PO-7", "lines": [1, 2]},
            output={"ok": True},
        ),
    )

    def build(self, context: BuildContext) -> None:
        config = self.config
        self._request = RequestBuilder(
            method=config.method,
            url=config.url,
            path=config.path,
            query=config.query,
            headers=config.headers,
            body=config.body,
        )
        self._success = frozenset(str(status).lower() for status in config.success)
        self._into = config.response.removeprefix("body.") if config.response.startswith("body.") else None
        self._reading = reading(config.max_response_bytes, self._wanted)
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def timeout_s(self) -> float:
        return self.config.timeout_s + _MARGIN_S

    def addresses(self) -> Iterable[tuple[str, str]]:
        return () if self.config.url is None else (("url", self.config.url),)

    def calls(self) -> tuple[str | None, str]:
        return self.config.connection, self.config.url or ""

    async def process(self, message: Message, context: RunContext) -> Message:
        name = self.config.connection
        connection = context.services.connection(name) if name is not None else None
        ends = asyncio.get_running_loop().time() + self.config.timeout_s
        try:
            answer, attempts = await self._sent(self._built(message, context, connection), ends)
        except DeliveryFailed as failed:
            renewed = _renewed(failed, connection, context)
            if renewed is None:
                raise
            # A refused credential is dropped and the request sent once more with another; no more than once.
            before = failed.facts["attempts"]
            try:
                answer, attempts = await self._sent(self._built(message, context, renewed), ends)
            except DeliveryFailed as again:
                again.facts["attempts"] += before
                raise
            attempts += before
        return self._answered(message, context, answer, attempts)

    async def _sent(self, request: Request, ends: float) -> tuple[Answer, int]:
        return await with_retries(
            lambda left_s: self._attempt(request, left_s),
            retries=self.config.retries,
            first_wait_s=self.config.retry_wait_s,
            within_s=ends - asyncio.get_running_loop().time(),
        )

    def emulate(self, message: Message, context: RunContext) -> Message:
        name = self.config.connection
        connection = ConnectionInfo(name, "https://emulated.invalid") if name is not None else None
        request = self._built(message, context, connection)
        sample = self.config.sample
        headers = {key.lower(): value for key, value in sample.headers.items()}
        if isinstance(sample.body, str):
            headers.setdefault("content-type", "text/plain; charset=utf-8")
            content = sample.body.encode()
        else:
            headers.setdefault("content-type", "application/json")
            content = b"" if sample.body is None else json.dumps(sample.body).encode()
        answer = Answer(sample.status, headers, content)
        if not self._delivered(answer.status):
            raise refusal(request, answer)
        return self._answered(message, context, answer, 1)

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.aclose()

    def _built(self, message: Message, context: RunContext, connection: ConnectionInfo | None) -> Request:
        if self._into is not None and not isinstance(message.body, dict):
            raise InvalidPayload(
                f"the answer is to go under {self._into!r}, and the message is no object; nothing was sent",
                found=type(message.body).__name__,
            )
        key = f"{message.id}:{context.node_id}:{message.generation}"
        return self._request.build(message, connection, key)

    def _delivered(self, status: int) -> bool:
        return str(status) in self._success or f"{status // 100}xx" in self._success

    async def _attempt(self, request: Request, left_s: float) -> Answer:
        limit_s = min(self.config.attempt_timeout_s, left_s)
        try:
            async with asyncio.timeout(limit_s):
                answer = await self._exchange(request)
        except TimeoutError:
            allowed_s = self.config.timeout_s if limit_s == left_s else limit_s
            reason, verdict = f"was not answered within {allowed_s:g} s", Verdict.TRANSIENT
        except ValueError as error:
            reason, verdict = f"cannot be sent: {error}", Verdict.TERMINAL
        except (ExchangeFailed, OSError) as error:
            reason, verdict = f"failed: {error or type(error).__name__}", Verdict.TRANSIENT
        else:
            if self._delivered(answer.status):
                return answer.without(request.credential)
            raise refusal(request, answer)
        raise DeliveryFailed(
            scrubbed(f"{request.method} {request.shown} {reason}", request.secrets),
            verdict=verdict,
            method=request.method,
            url=request.shown,
        )

    async def _exchange(self, request: Request) -> Answer:
        where = address.parse(request.url)
        for _ in range(MAX_REDIRECTS + 1):
            raw = await self._http().send(request.method, where, request.lines, request.content, self._reading)
            target = self._redirect_of(request.method, where, raw) if self.config.follow_redirects else None
            if target is None:
                break
            where = target
        return read(raw, limit=self.config.max_response_bytes, wanted=self._wanted(raw.status))

    def _wanted(self, status: int) -> bool:
        """Whether the body of such an answer is part of what the node gives."""
        return self.config.response != "vars" and self._delivered(status)

    def _redirect_of(self, method: str, where: address.Address, raw: RawAnswer) -> address.Address | None:
        """Where a redirect leads if it stays on the host and keeps the method: credentials go nowhere else, and a
        delivery does not turn into a query."""
        location = raw.headers.get("location")
        keeps = raw.status in (307, 308) or (raw.status in (301, 302, 303) and method in ("GET", "HEAD"))
        if not location or not keeps or self._delivered(raw.status):
            return None
        return address.redirected(where, location)

    def _http(self) -> Client:
        """The client of the running loop: its connections cannot be used from another."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._loop = loop
            self._client = Client(verify=self.config.verify_tls)
        return self._client

    def _answered(self, message: Message, context: RunContext, answer: Answer, attempts: int) -> Message:
        told = {"status": answer.status, "attempts": attempts, "headers": answer.told()}
        message.vars = {**message.vars, context.node_id: told}
        if self._into is not None:
            message.body = {**message.body, self._into: answer.as_data()}
        elif self.config.response == "body":
            message.body = answer.body()
        if self.config.response != "vars":
            json_text.check_depth(message.body, context.max_nesting_depth)
        return message

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        if any(key in HttpRequestConfig.model_fields and key not in SHARED_KEYS for key in config):
            return dict(config)
        return from_http_request(config)


def _renewed(
    failed: DeliveryFailed, connection: ConnectionInfo | None, context: RunContext
) -> ConnectionInfo | None:
    """The connection with another credential, where the destination refused the one it had."""
    if connection is None or connection.token is None or failed.facts.get("status") not in connection.renew_on:
        return None
    found = context.services.connection(connection.name, refused=connection.token)
    return found if found.token != connection.token else None
