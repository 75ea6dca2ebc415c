"""Arrays made in one go arrive as psycopg's own do."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from continuitybridge.database.arrays import ByteaArray, Int4Array, TextArray
from continuitybridge.database.embedded import EmbeddedPostgres


@pytest.fixture(scope="module")
def connection(postgres: EmbeddedPostgres) -> Any:
    with psycopg.connect(postgres.admin_url, autocommit=True) as connection:
        yield connection


def echoed(connection: Any, array: Any, kind: str) -> list[Any]:
    [(found,)] = connection.execute(f"SELECT %b::{kind}[]", (array,)).fetchall()
    return list(found)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)


@given(
    st.lists(st.none() | st.binary(max_size=5), max_size=5),
    st.lists(st.none() | texts, max_size=5),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5),
)
def test_what_is_sent_arrives(
    connection: Any, blobs: list[bytes | None], words: list[str | None], numbers: list[int]
) -> None:
    assert echoed(connection, ByteaArray(blobs), "bytea") == blobs
    assert echoed(connection, TextArray([None if w is None else w.encode() for w in words]), "text") == words
    assert echoed(connection, Int4Array(numbers), "int4") == numbers
