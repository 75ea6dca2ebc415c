"""Arrays as PostgreSQL's binary protocol has them, made in one go.

psycopg builds an array element by element through its adapters: for the many short ones of a group commit that is
most of the work. These know their elements' type beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from struct import Struct
from uuid import UUID

import psycopg
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format

_HEAD = Struct("!iiiii").pack  # dimensions, whether there are nulls, element type, size, lower bound
_LENGTH = Struct("!i").pack
_SHORT = Struct("!h").pack
_LONG = Struct("!q").pack
_DOUBLE = Struct("!d").pack
_BOOLEAN = (b"\x00", b"\x01")
_ORIGIN = datetime(2000, 1, 1, tzinfo=UTC)  # of PostgreSQL's timestamps
_MICROSECOND = timedelta(microseconds=1)
_NULL = _LENGTH(-1)


class Array:
    """A one-dimensional array of one of the types below, ready to be sent."""

    element: int
    oid: int

    __slots__ = ("data",)

    def __init__(self, items: Sequence[bytes | None]) -> None:
        parts = [b""]
        nulls = 0
        for item in items:
            if item is None:
                nulls = 1
                parts.append(_NULL)
            else:
                parts.append(_LENGTH(len(item)))
                parts.append(item)
        if items:
            parts[0] = _HEAD(1, nulls, self.element, len(items), 1)
        else:
            parts[0] = _HEAD(0, 0, self.element, 0, 0)[:12]
        self.data = b"".join(parts)


class ByteaArray(Array):
    """`bytea[]` of bytes."""

    element, oid = 17, 1001
    __slots__ = ()


class TextArray(Array):
    """`text[]` of UTF-8 bytes."""

    element, oid = 25, 1009
    __slots__ = ()


def texts(items: Sequence[str | None]) -> TextArray:
    """`text[]` of strings."""
    return TextArray([None if item is None else item.encode() for item in items])


class BoolArray(Array):
    """`bool[]`; no nulls."""

    element, oid = 16, 1000
    __slots__ = ()

    def __init__(self, items: Sequence[bool]) -> None:
        super().__init__([_BOOLEAN[item] for item in items])


class Int2Array(Array):
    """`int2[]` of numbers."""

    element, oid = 21, 1005
    __slots__ = ()

    def __init__(self, numbers: Sequence[int | None]) -> None:
        super().__init__([None if number is None else _SHORT(number) for number in numbers])


class Int4Array(Array):
    """`int4[]` of numbers; no nulls."""

    element, oid = 23, 1007
    __slots__ = ()

    def __init__(self, numbers: Sequence[int]) -> None:
        super().__init__([_LENGTH(number) for number in numbers])


class Int8Array(Array):
    """`int8[]` of numbers; no nulls."""

    element, oid = 20, 1016
    __slots__ = ()

    def __init__(self, numbers: Sequence[int]) -> None:
        super().__init__([_LONG(number) for number in numbers])


class Float8Array(Array):
    """`float8[]` of numbers."""

    element, oid = 701, 1022
    __slots__ = ()

    def __init__(self, numbers: Sequence[float | None]) -> None:
        super().__init__([None if number is None else _DOUBLE(number) for number in numbers])


class TimestamptzArray(Array):
    """`timestamptz[]` of times that know their time zone."""

    element, oid = 1184, 1185
    __slots__ = ()

    def __init__(self, times: Sequence[datetime | None]) -> None:
        super().__init__([None if each is None else _LONG((each - _ORIGIN) // _MICROSECOND) for each in times])


class UuidArray(Array):
    """`uuid[]`."""

    element, oid = 2950, 2951
    __slots__ = ()

    def __init__(self, ids: Sequence[UUID | None]) -> None:
        super().__init__([None if each is None else each.bytes for each in ids])


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Array) -> Buffer:
        return obj.data


def _register(kind: type[Array]) -> None:
    dumper = type(f"{kind.__name__}Dumper", (_ArrayDumper,), {"oid": kind.oid})
    psycopg.adapters.register_dumper(kind, dumper)


for _kind in Array.__subclasses__():
    _register(_kind)
