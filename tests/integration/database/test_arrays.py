"""Arrays made in one go arrive as psycopg's own do."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from continuitybridge.database import arrays
from continuitybridge.database.arrays import ByteaArray, Int4Array, TextArray
from continuitybridge.database.embedded import EmbeddedPostgres


@pytest.fixture(scope="module")
def connection(postgres: EmbeddedPostgres) -> Any:
    with psycopg.connect(postgres.admin_url, autocommit=True) as connection:
        yield connection


def echoed(connection: Any, array: Any, kind: str) -> list[Any]:
    [(found,)] = connection.execute(f"SELECT %b::{kind}[]", (array,)).fetchall()
    return list(found)


words_of_any_script = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)


ORIGIN = datetime(2000, 1, 1, tzinfo=UTC)


@given(
    st.lists(st.none() | st.binary(max_size=5), max_size=5),
    st.lists(st.none() | words_of_any_script, max_size=5),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5),
)
def test_what_is_sent_arrives(
    connection: Any, blobs: list[bytes | None], words: list[str | None], numbers: list[int]
) -> None:
    assert echoed(connection, ByteaArray(blobs), "bytea") == blobs
    assert echoed(connection, TextArray([None if w is None else w.encode() for w in words]), "text") == words
    assert echoed(connection, Int4Array(numbers), "int4") == numbers


@given(
    st.lists(st.booleans(), max_size=5),
    st.lists(st.none() | st.integers(-(2**15), 2**15 - 1), max_size=5),
    st.lists(st.none() | st.floats(allow_nan=False), max_size=5),
    st.lists(st.none() | st.datetimes(timezones=st.timezones()), max_size=5),
    st.lists(st.none() | st.uuids(), max_size=5),
    st.lists(st.none() | words_of_any_script, max_size=5),
)
def test_what_is_sent_of_other_kinds_arrives_too(
    connection: Any,
    flags: list[bool],
    numbers: list[int | None],
    measures: list[float | None],
    times: list[datetime | None],
    ids: list[UUID | None],
    words: list[str | None],
) -> None:
    assert echoed(connection, arrays.BoolArray(flags), "bool") == flags
    assert echoed(connection, arrays.Int2Array(numbers), "int2") == numbers
    assert echoed(connection, arrays.Float8Array(measures), "float8") == measures
    # By how far they are apart: a time that a change of the clock makes twice is equal to none of another zone.
    arrived = echoed(connection, arrays.TimestamptzArray(times), "timestamptz")
    assert [each and each - ORIGIN for each in arrived] == [each and each - ORIGIN for each in times]
    assert echoed(connection, arrays.UuidArray(ids), "uuid") == ids
    assert echoed(connection, arrays.texts(words), "text") == words
