"""Builds requests from a declaration and a message. What comes from the message can fill a place in the request
but not change its shape: no other host, no further path segment, header or query parameter."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlencode

from continuitybridge.engine.message import Message
from continuitybridge.errors import ConfigurationError, TransformFailed
from continuitybridge.nodes import hidden
from continuitybridge.nodes.base import ConnectionInfo
from continuitybridge.nodes.http.address import parse
from continuitybridge.nodes.language import json_text
from continuitybridge.nodes.language.problems import Problems
from continuitybridge.nodes.language.template import Template, Value, compile_data, scope_of

IDEMPOTENCY_KEY = "idempotency-key"
WITHOUT_BODY = frozenset({"GET", "HEAD", "DELETE"})
"""Methods that send no body unless one is declared."""

HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OURS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "te", "trailer", "upgrade", "expect"}
    | {"accept-encoding", IDEMPOTENCY_KEY}
)
_SECRET = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key"})
_ORIGIN = re.compile(r"(?P<origin>https?://(?P<authority>[^/?#]*))(?P<rest>.*)", re.DOTALL)
_ALWAYS = {"user-agent": "ContinuityBridge", "accept": "*/*", "accept-encoding": "identity"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Request:
    """One request, ready to send. `shown` is its address without query and credentials, for texts; `secrets` must
    not appear in any text about it, and `credential`, which is part of them, not even in what the answer says."""

    method: str
    url: str
    lines: str = field(repr=False)
    """Its headers as they go over the wire, without Host and Content-Length."""
    content: bytes | None = field(repr=False)
    shown: str
    secrets: tuple[str, ...] = field(default=(), repr=False)
    credential: tuple[str, ...] = field(default=(), repr=False)


class _Prepared(NamedTuple):
    base_url: str
    headers: dict[str, str]
    credentials: dict[str, str]
    secrets: tuple[str, ...]
    credential: tuple[str, ...]


def _prepared(connection: ConnectionInfo | None, origin: str) -> _Prepared:
    headers = dict(_ALWAYS)
    if connection is None:
        return _Prepared(origin, headers, {}, (), ())
    try:
        parse(connection.base_url)
    except ValueError as error:
        raise TransformFailed(f"the connection {connection.name!r} cannot be called: {error}") from None
    for name, value in connection.headers.items():
        if not HEADER_NAME.fullmatch(name):
            raise TransformFailed(f"the connection {connection.name!r} declares a header whose name is none")
        headers[name.lower()] = header_value(name, value)
    credentials = credentials_of(connection)
    values = (*credentials.values(), *connection.headers.values(), *connection.auth.values())
    plain = {value for value in values if len(value) >= hidden.LEAST_CHARACTERS}
    credential = hidden.of_connection(connection)
    secrets = tuple(sorted({*plain, *credential}, key=len, reverse=True))
    return _Prepared(connection.base_url, headers, credentials, secrets, credential)


class RequestBuilder:
    """A declared request, compiled. `url` is the whole address, or `path` goes behind a connection's."""

    __slots__ = ("_body", "_headers", "_last", "_method", "_origin", "_path", "_query")

    def __init__(
        self,
        *,
        method: str,
        url: str | None,
        path: str,
        query: Mapping[str, Any],
        headers: Mapping[str, str],
        body: Any,
    ) -> None:
        """Raises `ConfigurationError` with every problem of addresses, headers and templates."""
        problems = Problems()
        self._method = method
        self._origin = ""
        self._last: tuple[ConnectionInfo | None, _Prepared] | None = None
        with problems.noting():
            if url is not None:
                self._origin, path = split_url(url)
            self._path = Template(path, field="path" if url is None else "url", for_path=True)
        self._query: list[tuple[str, Callable[[Mapping[str, Any]], Any]]] = []
        for name, value in query.items():
            with problems.noting():
                self._query.append((name, compile_data(value, field=f"query.{name}")))
        self._headers: list[tuple[str, Value]] = []
        for name, text in headers.items():
            with problems.noting():
                _check_header(name)
                self._headers.append((name.lower(), Value(text, field=f"headers.{name}")))
        self._body: Callable[[Message, Mapping[str, Any]], tuple[bytes | None, str]]
        with problems.noting():
            self._body = _body_of(body, method)
        problems.raise_any()

    def build(self, message: Message, connection: ConnectionInfo | None, idempotency_key: str) -> Request:
        """Raises `TransformFailed` when a value is missing or cannot stand where it is wanted."""
        prepared = self._prepare(connection)
        scope = scope_of(message)
        address = _joined(prepared.base_url, self._path.render(scope))
        _refuse_dots(address)
        shown = address.partition("?")[0]
        query = self._query_string(scope)
        if query:
            address += ("&" if "?" in address else "?") + query
        content, content_type = self._body(message, scope)
        headers = dict(prepared.headers)
        if content is not None:
            headers["content-type"] = content_type
        for name, value in self._headers:
            given = value.evaluate(scope)
            if given is not None:
                headers[name] = header_value(name, given)
        headers.update(prepared.credentials)
        headers[IDEMPOTENCY_KEY] = header_value(IDEMPOTENCY_KEY, idempotency_key)
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        return Request(self._method, address, lines, content, shown, prepared.secrets, prepared.credential)

    def _prepare(self, connection: ConnectionInfo | None) -> _Prepared:
        """What does not change from message to message, made once as long as the connection stays the same."""
        last = self._last
        if last is None or last[0] is not connection:
            last = self._last = (connection, _prepared(connection, self._origin))
        return last[1]

    def _query_string(self, scope: Mapping[str, Any]) -> str:
        pairs: list[tuple[str, str]] = []
        for name, make in self._query:
            value = make(scope)
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict | list):
                    raise TransformFailed(f"query.{name}: a parameter is text, a number or a list of them")
                if item is not None:
                    pairs.append((name, item if isinstance(item, str) else json_text.dumps(item)))
        return urlencode(pairs, quote_via=quote)


def split_url(url: str) -> tuple[str, str]:
    """Origin and the rest of an address. The host stands in the flow: no placeholder may be part of it."""
    match = _ORIGIN.fullmatch(url.strip())
    if match is None:
        raise ConfigurationError(
            "an address begins with http:// or https:// and a host",
            field="url",
            value=url,
            valid="https://api.example.com/orders/{{ body.id }}",
        )
    authority = match["authority"]
    if "{" in authority:
        raise ConfigurationError(
            "the host cannot come from the message; use a connection", field="url", value=url, valid="connection"
        )
    if "@" in authority:
        raise ConfigurationError(
            "an address holds no user name or password; use a connection", field="url", valid="connection"
        )
    if not authority or _CONTROL.search(authority) or " " in authority:
        raise ConfigurationError("the address has no host", field="url", value=url)
    return match["origin"], match["rest"]


def credentials_of(connection: ConnectionInfo) -> dict[str, str]:
    """The headers that authenticate against a connection (RFC 7617, RFC 6750, or a key in a header)."""
    auth = connection.auth
    match auth.get("type", "none"):
        case "none":
            return {}
        case "basic":
            pair = f"{auth.get('username', '')}:{auth.get('password', '')}".encode()
            return {"authorization": f"Basic {base64.b64encode(pair).decode()}"}
        case "bearer":
            return {"authorization": f"Bearer {header_value('authorization', auth.get('token', ''))}"}
        case "api_key":
            name = auth.get("header", "X-API-Key").lower()
            return {name: header_value(name, auth.get("value", ""))}
    raise ConfigurationError(
        f"the connection {connection.name!r} authenticates by {auth['type']!r}, which is not known here",
        field="connection",
        value=connection.name,
        valid="none, basic, bearer, api_key",
    )


def _joined(base: str, path: str) -> str:
    if not path or path.startswith("?"):
        return base + path
    return f"{base.rstrip('/')}/{path.lstrip('/')}"


def _refuse_dots(address: str) -> None:
    path = address.partition("?")[0].partition("://")[2]
    if "/." not in path and "/%2" not in path:
        return  # no segment begins with one
    if any(unquote(segment) in (".", "..") for segment in path.split("/")):
        raise TransformFailed("a path has no segments . and ..", path=path)


def _check_header(name: str) -> None:
    if not HEADER_NAME.fullmatch(name):
        raise ConfigurationError(f"{name!r} is no header name", field=f"headers.{name}", value=name)
    if name.lower() in _OURS:
        raise ConfigurationError(f"{name} is set by the platform", field=f"headers.{name}", value=name)
    if name.lower() in _SECRET:
        raise ConfigurationError(
            f"{name} holds credentials, which a flow does not; a connection does",
            field=f"headers.{name}",
            value="***",
            valid="connection",
        )


def header_value(name: str, value: Any) -> str:
    """A value that cannot end its line (RFC 9110, 5.5)."""
    if isinstance(value, dict | list):
        raise TransformFailed(f"headers.{name}: a header is text or a number")
    text = (value if isinstance(value, str) else json_text.dumps(value)).strip()
    if _CONTROL.search(text):
        raise TransformFailed(f"headers.{name}: a header holds no line breaks or control characters")
    if not text.isascii():
        raise TransformFailed(f"headers.{name}: a header holds ASCII characters only")
    return text


def _body_of(body: Any, method: str) -> Callable[[Message, Mapping[str, Any]], tuple[bytes | None, str]]:
    """What makes content and content type: nothing, the message's body, a text template or templated data."""
    if body is None:
        if method in WITHOUT_BODY:
            return lambda message, scope: (None, "")
        return lambda message, scope: encoded(message.body, message.headers.get("content-type"))
    if body == "":
        return lambda message, scope: (None, "")
    make = compile_data(body, field="body")
    return lambda message, scope: encoded(make(scope), None)


def encoded(body: Any, received_as: str | None) -> tuple[bytes, str]:
    """A body as bytes, with its content type: bytes keep the one they came with."""
    if isinstance(body, bytes):
        usable = received_as and received_as.isascii() and not _CONTROL.search(received_as)
        return body, received_as if received_as and usable else "application/octet-stream"
    if isinstance(body, str):
        kind = "application/xml" if body.startswith("<?xml") else "text/plain; charset=utf-8"
        try:
            return body.encode(), kind
        except UnicodeEncodeError:
            raise TransformFailed("the text to send holds half of a surrogate pair") from None
    return json_text.dumps(body).encode(), "application/json"
