"""What the parsers share: a payload as bytes, and refusals that say where."""

from __future__ import annotations

from typing import Any

from continuitybridge.errors import InvalidPayload


def payload_bytes(body: Any, format_name: str) -> bytes:
    """The text of a payload as UTF-8, or the bytes as received; raises `InvalidPayload` for anything else."""
    if body.__class__ is bytes:
        return body
    if isinstance(body, str):
        try:
            return body.encode()
        except UnicodeEncodeError as error:
            raise InvalidPayload(
                f"the text holds half of a surrogate pair at character {error.start}", offset=error.start
            ) from None
    if isinstance(body, bytes):
        return body
    found = "nothing" if body is None else f"a value of type {type(body).__name__}"
    raise InvalidPayload(f"expected {format_name} as bytes or text, found {found}", found=type(body).__name__)


def not_utf8(error: UnicodeDecodeError, data: bytes) -> InvalidPayload:
    """The refusal of bytes that are not UTF-8, naming UTF-16 and UTF-32 where they are recognisable."""
    line = data.count(b"\n", 0, error.start) + 1
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\x00" in data[:4]
    guess = "; it looks like UTF-16 or UTF-32" if wide else ""
    return InvalidPayload(
        f"line {line}: byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8{guess}",
        line=line,
        offset=error.start,
    )
