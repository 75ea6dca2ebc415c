"""JSON data to text and back, for libraries that take text. orjson where it can; the standard library where
orjson's limits (64-bit integers, nesting) are narrower than the data model's."""

from __future__ import annotations

import json
from typing import Any

import orjson

from continuitybridge.engine.message import Body
from continuitybridge.errors import InvalidPayload, LimitExceeded

_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_NINETEEN_DIGITS = b"0" * 19
"""orjson reads integers beyond 64 bits as floats; only texts that may hold one take the slower reader."""


def dumps(body: Body) -> str:
    """`body` as JSON text; raises `InvalidPayload` when it is not JSON data. NaN and infinities, which JSON
    does not have, become null."""
    try:
        return orjson.dumps(body).decode()
    except TypeError:
        return _slow_dumps(body)


def _slow_dumps(body: Body) -> str:
    if isinstance(body, bytes | bytearray | memoryview):
        raise InvalidPayload(
            f"the node reads JSON data, and the message holds {len(body)} unparsed bytes: "
            "a parser (json_parser, xml_parser, csv_parser) belongs before it",
            found="bytes",
        )
    try:
        return json.dumps(body, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InvalidPayload(f"the message is not JSON data: {error}", found=type(body).__name__) from None
    except RecursionError:
        raise InvalidPayload("the message is nested too deep for this node") from None


def loads(text: str) -> Any:
    """The data in a JSON text, integers exact whatever their size. Raises `ValueError`."""
    try:
        data = text.encode()
        if _NINETEEN_DIGITS in data.translate(_DIGITS_TO_ZERO):
            return json.loads(text)
        return orjson.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None


def check_depth(value: Any, allowed: int) -> None:
    """Raises `LimitExceeded` for data that is nested deeper than `allowed` levels."""
    depth, level = 0, [value]
    while level:
        if depth > allowed:
            raise LimitExceeded(
                f"the content is nested deeper than {allowed} levels (BRIDGE_MAX_NESTING_DEPTH)",
                limit="max_nesting_depth",
                allowed=allowed,
                found=f"more than {allowed}",
            )
        depth += 1
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
