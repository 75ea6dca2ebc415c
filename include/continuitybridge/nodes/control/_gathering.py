"""What the nodes that gather messages have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from continuitybridge.engine.message import Body, Message
from continuitybridge.errors import ConfigurationError, Incomplete, InvalidPayload
from continuitybridge.nodes.language.condition import Expression

_JSON_PATH = re.compile(r"\$?\.?[\w$-]+(?:\.[\w$-]+|\[[^\]]+\])*")


def data_of(message: Message) -> Body:
    """The message's body as it stands among others: JSON data; text where it is bytes. Raises `InvalidPayload`
    for bytes that are no UTF-8."""
    body = message.body
    if not isinstance(body, bytes):
        return body
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise InvalidPayload(
            f"the message holds {len(body)} bytes that are no UTF-8 text and cannot stand among others: a parser "
            "belongs before this node",
            found="bytes",
        ) from None


def key_of(expression: Expression, message: Message) -> str:
    """What messages that belong together have in common, as text: equal values give equal texts."""
    value = expression(message)
    if value is None or value == "":
        raise InvalidPayload(f"the key {expression.text} is missing in this message", key=expression.text)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    if len(text) > 10_000:
        raise InvalidPayload("the key has more than 10,000 characters", key=expression.text)
    return text


def split_of(message: Message) -> Mapping[str, Any] | None:
    """What the last split that was not gathered yet left with the message."""
    split = message.vars.get("split")
    if isinstance(split, Mapping) and isinstance(split.get("parent"), str):
        return split
    return None


def without_split(message: Message) -> None:
    """Take the innermost split off the message's vars: its children have been gathered."""
    split = message.vars.get("split")
    outer = split.get("outer") if isinstance(split, Mapping) else None
    message.vars = {name: value for name, value in message.vars.items() if name != "split"}
    if outer is not None:
        message.vars["split"] = outer


def late(what: str) -> Incomplete:
    """The failure of a message whose group has gone on without it."""
    return Incomplete(
        f"{what} had gone on when this message came; a route for `late` takes such messages", reason="late"
    )


def merged(bodies: Sequence[Body], what: str) -> dict[str, Any]:
    """The fields of all bodies in one object; the later one wins. Raises `InvalidPayload`."""
    result: dict[str, Any] = {}
    for body in bodies:
        if not isinstance(body, Mapping):
            raise InvalidPayload(f"{what} merges objects, and one of them is {type(body).__name__}")
        result |= body
    return result


def old_seconds(config: dict[str, Any], names: Mapping[str, float]) -> float | None:
    """Take the old duration keys (name → seconds per unit) out of a configuration."""
    found: float | None = None
    for name, unit in names.items():
        value = config.pop(name, None)
        if value in (None, ""):
            continue
        try:
            found = float(value) * unit
        except (TypeError, ValueError):
            raise ConfigurationError(f"{name}: {value!r} is not a number", field=name, value=value) from None
    return found


def old_path(value: Any, key: str) -> str:
    """An old JSONPath or dotted name as a jq path."""
    from continuitybridge.nodes.language import legacy

    if not isinstance(value, str) or not _JSON_PATH.fullmatch(value.strip()):
        raise ConfigurationError(f"{key}: {value!r} is not a path such as order.lines", field=key, value=value)
    return legacy.jq_path(value)
