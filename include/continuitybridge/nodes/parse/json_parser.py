"""JSON text to values, strictly by RFC 8259."""

from __future__ import annotations

import json
from typing import Any, Literal

import orjson
from pydantic import Field

from continuitybridge.engine.message import Message
from continuitybridge.errors import InvalidPayload, LimitExceeded
from continuitybridge.nodes.base import Example, Node, NodeConfig, RunContext
from continuitybridge.nodes.parse._text import not_utf8, payload_bytes

_BOM = b"\xef\xbb\xbf"
_ALL_DIGITS_TO_ZERO = bytes(ord("0") if chr(byte).isdigit() and byte < 128 else byte for byte in range(256))
_NINETEEN_DIGITS = b"0" * 19
"""Integers of fewer digits always fit 64 bits."""


class JsonParserConfig(NodeConfig):
    duplicate_keys: Literal["refuse", "first", "last"] = Field(
        default="refuse",
        description="What to do when an object has one key twice: refuse the message, or keep the key's first "
        "or last value.",
    )
    byte_order_mark: Literal["ignore", "refuse"] = Field(
        default="ignore",
        description="What to do with a UTF-8 byte order mark in front. RFC 8259 forbids writing one and allows "
        "ignoring it.",
    )


class JsonParser(Node[JsonParserConfig]):
    """Reads the payload as one JSON document and passes its value on.

    **Strict.** Exactly the grammar of RFC 8259: no `NaN` or `Infinity`, no comments, no trailing commas, no
    single quotes, no leading zeros, no raw control characters in strings, nothing behind the document. The text
    is UTF-8; other encodings and halves of surrogate pairs (`"\\ud800"`) are refused. Any value may stand at the
    top, not only objects and lists. A refusal names line and column.

    **Numbers.** Integers are kept exactly, whatever their size up to 4,300 digits (nodes that compute, such as
    `jq`, may work in double precision beyond 2⁵³). Numbers with a fraction or an exponent become IEEE 754
    doubles, as the RFC recommends: `19.90` is passed on as `19.9`, about 17 significant digits survive, and what
    exceeds the range of a double (`1e400`) is refused. Send amounts that need more as text.

    **Duplicate keys.** The RFC leaves open what `{"a": 1, "a": 2}` means, and receivers differ, which has been
    used to slip values past checks. It is refused unless `duplicate_keys` says otherwise.

    **Nesting** deeper than `BRIDGE_MAX_NESTING_DEPTH` fails the message.

    A payload that is already an object or a list (a run that was started with a payload, an earlier parser)
    passes unchanged.
    """

    type = "json_parser"
    category = "parse"
    label = "Parse JSON"
    summary = "Reads a JSON document (RFC 8259) into a value."
    Config = JsonParserConfig
    examples = (
        Example(
            "An order",
            config={},
            input=b'{"order": {"id": "PO-1", "lines": [{"sku": "A", "qty": 2}]}}',
            output={"order": {"id": "PO-1", "lines": [{"sku": "A", "qty": 2}]}},
        ),
        Example(
            "A large integer keeps every digit",
            config={},
            input=b'{"serial": 123456789012345678901234567890}',
            output={"serial": 123456789012345678901234567890},
        ),
        Example(
            "A key that occurs twice is refused",
            config={},
            input=b'{"qty": 1, "qty": 1000}',
            fails="invalid-payload",
        ),
        Example(
            "... or the first value is kept",
            config={"duplicate_keys": "first"},
            input=b'{"qty": 1, "qty": 1000}',
            output={"qty": 1},
        ),
        Example("NaN is not JSON", config={}, input=b'{"weight": NaN}', fails="invalid-payload"),
    )

    def process(self, message: Message, context: RunContext) -> Message:
        body = message.body
        if isinstance(body, dict | list):
            return message
        message.body = self._parse(payload_bytes(body, "JSON"), context.max_nesting_depth)
        return message

    def _parse(self, data: bytes, max_depth: int) -> Any:
        if data.startswith(_BOM):
            if self.config.byte_order_mark == "refuse":
                raise InvalidPayload("the text begins with a byte order mark", offset=0)
            data = data[len(_BOM) :]
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise _refusal(error, data) from None
        # A document opens at least as many brackets as it is deep: counting them spares the walk.
        if len(data) > 2 * max_depth and data.count(b"[") + data.count(b"{") > max_depth:
            _check_depth(value, max_depth)
        if self._is_exact(value, data):
            return value
        try:
            return json.loads(data, object_pairs_hook=self._pairs)
        except ValueError as error:  # an integer of more digits than Python converts
            raise InvalidPayload(f"a number cannot be kept: {error}") from None
        except RecursionError:
            raise LimitExceeded(
                "the document is nested too deeply", limit="max_nesting_depth", allowed=max_depth, found=None
            ) from None

    def _is_exact(self, value: Any, data: bytes) -> bool:
        """Whether orjson, which keeps the last of duplicate keys and makes doubles of integers beyond 64 bits,
        has lost nothing. Errs on the side of no; then the slower reader decides.

        Text that is written back byte for byte has lost nothing. Else: each member of an object has one colon
        outside strings, and colons inside strings are written as they were read, unless escaped.
        """
        try:
            written = orjson.dumps(value)
        except TypeError:  # deeper than it writes
            return False
        if written == data:
            return True
        return _NINETEEN_DIGITS not in data.translate(_ALL_DIGITS_TO_ZERO) and (
            self.config.duplicate_keys == "last"
            or (data.count(b":") == written.count(b":") and b"\\u003" not in data)
        )

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) == len(pairs) or self.config.duplicate_keys == "last":
            return found
        firsts: dict[str, Any] = {}
        for key, value in pairs:
            if key not in firsts:
                firsts[key] = value
            elif self.config.duplicate_keys == "refuse":
                raise InvalidPayload(f"the key {key[:100]!r} occurs twice in one object", key=key[:100])
        return firsts


def _check_depth(value: Any, allowed: int) -> None:
    depth, level = 0, [value]
    while level:
        depth += 1
        if depth > allowed:
            raise LimitExceeded(
                f"the document is nested more than {allowed} levels deep",
                limit="max_nesting_depth",
                allowed=allowed,
                found=depth,
            )
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]


def _refusal(error: orjson.JSONDecodeError, data: bytes) -> InvalidPayload | LimitExceeded:
    try:
        data.decode()
    except UnicodeDecodeError as undecodable:
        return not_utf8(undecodable, data)
    if "depth limit" in error.msg:
        return LimitExceeded(
            "the document is nested more than 1024 levels deep",
            limit="max_nesting_depth",
            allowed=1024,
            found=None,
        )
    if not data.strip(b" \t\r\n"):
        return InvalidPayload("the payload is empty", line=1, column=1)
    return InvalidPayload(
        f"line {error.lineno}, column {error.colno}: {error.msg}", line=error.lineno, column=error.colno
    )
