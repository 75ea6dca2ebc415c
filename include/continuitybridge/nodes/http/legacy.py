"""Reads the keys of older HTTP nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from continuitybridge.errors import ConfigurationError
from continuitybridge.nodes import _legacy
from continuitybridge.nodes.language import legacy

SHARED_KEYS = frozenset({"url", "method", "headers", "body"})
"""Keys that older nodes have too: they do not tell whose configuration it is."""

_WITH_BODY = ("POST", "PUT", "PATCH")


def from_http_request(config: Mapping[str, Any]) -> dict[str, Any]:
    """`queryParams`, `timeout` (ms), `retryAttempts`, `followRedirects`, `validateSSL`, `responseField`; texts and
    JSON texts; placeholders `{{$.a.b}}` and `{{field}}`. Unless said otherwise the method was GET, redirects were
    followed and the answer went under `response`; there it is now `{status, headers, body}`."""
    old = {key: value for key, value in config.items() if value not in (None, "", {})}
    method = str(old.pop("method", "GET")).upper()
    ours: dict[str, Any] = {"url": legacy.template(str(old.pop("url", "")), key="url"), "method": method}
    for key, name in (("headers", "headers"), ("queryParams", "query")):
        given = _object(old.pop(key, None), key)
        if given:
            ours[name] = legacy.templates({field: _text(value) for field, value in given.items()}, key=key)
    body = old.pop("body", None)
    if method in _WITH_BODY:
        ours["body"] = legacy.templates(_json_or_text(body), key="body") if body is not None else ""
        if isinstance(ours["body"], str) and ours["body"].lstrip().startswith(("{", "[")):
            # A JSON text with bare placeholders is no JSON until it is filled in.
            headers = ours.setdefault("headers", {})
            if "content-type" not in {name.lower() for name in headers}:
                headers["Content-Type"] = "application/json"
    _read_times(old, ours)
    ours["follow_redirects"] = _legacy.boolean(old.pop("followRedirects", True), "followRedirects")
    if not _legacy.boolean(old.pop("validateSSL", True), "validateSSL"):
        ours["verify_tls"] = False
    ours["response"] = f"body.{old.pop('responseField', 'response')}"
    return {**ours, **old}


def _read_times(old: dict[str, Any], ours: dict[str, Any]) -> None:
    """Their time-out held for one attempt, and the waits between attempts doubled from a second."""
    retries = min(_legacy.integer(old.pop("retryAttempts", 0), "retryAttempts"), 10)
    attempt_s = _legacy.integer(old.pop("timeout", 30_000), "timeout") / 1000
    ours["retries"] = retries
    ours["attempt_timeout_s"] = attempt_s
    ours["timeout_s"] = max(attempt_s, min(600.0, attempt_s * (retries + 1) + 2.0**retries))


def _object(value: Any, key: str) -> dict[str, Any]:
    value = _json_or_text(value)
    if value is not None and not isinstance(value, Mapping):
        raise ConfigurationError(f"{key} is an object of names and values", field=key, value=value)
    return dict(value or {})


def _json_or_text(value: Any) -> Any:
    """What stood in a form's text field: JSON where it is JSON."""
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
