"""The key that tells a repetition from a new message: a header, a value in the body, or the body itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from continuitybridge.errors import UnreadableContent
from continuitybridge.nodes.mapping import one_value
from continuitybridge.nodes.mapping.paths import singular_steps
from continuitybridge.nodes.triggers.webhook_trigger import Idempotency
from continuitybridge.webhooks.verification import Headers

MAX_KEY_BYTES = 255
"""Longest key in a header; of longer values in a body a hash is the key."""

_Find = Callable[[Headers, bytes], str | None]


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where an endpoint's idempotency keys come from, and what they do. `window_days` None: the platform's."""

    find: _Find
    required: bool
    same: bool
    window_days: int | None
    reads_body: bool

    @classmethod
    def of(cls, configured: Idempotency | None, default: Mapping[str, Any]) -> KeySource:
        """What a trigger says, completed by where its verification's providers put the key."""
        chosen = configured or Idempotency()
        if not (chosen.header or chosen.json_path or chosen.xml_path or chosen.content):
            given = {**default, **chosen.model_dump(exclude_none=True, exclude_defaults=True)}
            chosen = Idempotency.model_validate(given)
        return cls(
            find=_finder(chosen),
            required=chosen.required,
            same=chosen.changed == "same",
            window_days=chosen.window_days,
            reads_body=bool(chosen.json_path or chosen.xml_path or chosen.content),
        )

    def key(self, headers: Headers, body: bytes) -> str | None:
        """The request's key, None when it has none. Raises `UnreadableContent` for one that is needed and not
        there, or that cannot be one."""
        found = self.find(headers, body)
        if found is None and self.required:
            raise UnreadableContent("the request has no idempotency key, and one is needed here")
        return found


def _finder(chosen: Idempotency) -> _Find:
    if chosen.content:
        return lambda headers, body: "body:" + hashlib.sha256(body).hexdigest()
    if chosen.json_path:
        return _json_finder(chosen.json_path)
    if chosen.xml_path:
        return _xml_finder(chosen.xml_path)
    if chosen.header:
        name = chosen.header.lower().encode()
        return lambda headers, body: _of_header(headers.get(name))
    return lambda headers, body: _of_header(headers.get(b"webhook-id") or headers.get(b"idempotency-key"))


def _of_header(value: bytes | None) -> str | None:
    if not value:
        return None
    text = value.decode("latin-1")
    if len(value) > MAX_KEY_BYTES or not (text.isascii() and text.isprintable()):
        raise UnreadableContent(f"an idempotency key has at most {MAX_KEY_BYTES} printable ASCII characters")
    return text


def _of_body(text: str) -> str | None:
    if not text:
        return None
    # Marked, so that a value in a body never is the key that a header had before the trigger was changed.
    return f"value:{text}"


def _json_finder(path: str) -> _Find:
    steps = singular_steps(path) or []

    def find(headers: Headers, body: bytes) -> str | None:
        try:
            text = one_value.json_of(body)
            value = one_value.at(orjson.loads(text), steps)
            if isinstance(value, float):
                # A number beyond 64 bits loses digits as a float, and two such numbers must not be one key.
                value = one_value.at(json.loads(text, parse_int=str, parse_float=str), steps)
        except (ValueError, RecursionError):
            return None
        if isinstance(value, bool) or not isinstance(value, str | int):
            return None
        return _of_body(str(value))

    return find


def _xml_finder(path: str) -> _Find:
    def find(headers: Headers, body: bytes) -> str | None:
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        # Where what the header says of the charset is wrong, the document's own word is right.
        found = one_value.of_xml(body, content_type, path)
        if found is None and "charset" in content_type.lower():
            found = one_value.of_xml(body, "", path)
        return _of_body(found) if found else None

    return find
