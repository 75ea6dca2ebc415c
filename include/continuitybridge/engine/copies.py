"""Copies of messages that share nothing which can be changed, and values made plain."""

from __future__ import annotations

import copy
import marshal
from collections.abc import Mapping
from typing import Any

from continuitybridge.engine.message import Body, Message

MAX_DETAIL_CHARACTERS = 4_000


def child_of(
    parent: Message, n: int, body: Body, *, copy_body: bool, more_vars: Mapping[str, Any] | None = None
) -> Message:
    """The `n`th child of a message. Its headers and vars are its own, its body if `copy_body`."""
    variables = _copied(parent.vars) if parent.vars else {}
    if more_vars is not None:
        variables.update(more_vars)
    return Message(
        f"{parent.id}.{n}",
        _copied(body) if copy_body else body,
        dict(parent.headers),
        variables,
        parent.generation,
    )


def copy_of(message: Message) -> Message:
    """The message, sharing nothing that can be changed."""
    return Message(
        message.id,
        _copied(message.body),
        dict(message.headers),
        _copied(message.vars),
        message.generation,
        message.resume,
        message.called,
    )


def _copied(value: Any) -> Any:
    if type(value) is not dict and type(value) is not list:
        return value
    try:
        return marshal.loads(marshal.dumps(value))  # noqa: S302  (our own bytes; the fastest deep copy)
    except ValueError:
        return copy.deepcopy(value)


def plain(value: Any, depth: int = 8) -> Any:
    """`value` as JSON data, for error facts: what is not, becomes its (shortened) text."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str(value[:MAX_DETAIL_CHARACTERS])
    if depth and isinstance(value, Mapping):
        return {str(key)[:200]: plain(item, depth - 1) for key, item in list(value.items())[:100]}
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item, depth - 1) for item in list(value)[:100]]
    try:
        return repr(value)[:200]
    except Exception:
        return f"<{type(value).__name__}>"
