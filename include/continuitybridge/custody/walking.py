"""Walking a column's rows within an organization, in bounded batches, each a transaction of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, cast
from uuid import UUID

from psycopg import Connection, sql
from psycopg.rows import dict_row

from continuitybridge import database
from continuitybridge.custody.registry import Column
from continuitybridge.vault.columns import EncryptedColumn, FingerprintColumn, Role, Row

BATCH = 200
"""Rows at once: of the largest payloads that stand in the database these are some tens of megabytes."""


_UNHURRIED = "SET LOCAL statement_timeout = 0"
"""Where few rows or none are left to find, one statement looks at all of them."""


def acting_as(role: Role, organization_id: UUID) -> AbstractContextManager[Connection[Any]]:
    """A transaction of that role; every query here names the organization too."""
    if role == "app":
        return database.tenant(organization_id)
    return database.relay() if role == "relay" else database.platform()


def batches(
    column: Column, organization_id: UUID, *, only: str | None = None, **given: Any
) -> Iterator[list[Row]]:
    """All rows in which the column is set, ordered by its key. `only`: a condition in which `{c}` is the column.
    What is written meanwhile may or may not be among them."""
    last: Row | None = None
    while True:
        with acting_as(column.reader, organization_id) as connection:
            rows = _read(connection, column, organization_id, last, only, given)
        if rows:
            yield rows
        if len(rows) < BATCH:
            return
        last = rows[-1]


def again(column: Column, organization_id: UUID, row: Row) -> Row | None:
    """The row as it is now; None when it is gone."""
    query = _select(column) + sql.SQL(" AND ") + _same(column)
    with (
        acting_as(column.reader, organization_id) as connection,
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        cursor.execute(query, {"organization": organization_id, **_key(column, row)})
        return cursor.fetchone()


def replace(
    connection: Connection[Any], column: EncryptedColumn, organization_id: UUID, row: Row, new: bytes
) -> int:
    """Put `new` in the column's place in the caller's transaction; 0 when the row is not what it was, or somebody
    works on it: then nothing is done, and nobody is waited for."""
    where = sql.SQL("WHERE t.organization_id = %(organization)s AND t.{} = %(old)s AND ").format(
        sql.Identifier(column.column)
    ) + _same(column)
    table = sql.Identifier("bridge", column.table)
    values = {"organization": organization_id, "old": row[column.column], "new": new, **_key(column, row)}
    free = connection.execute(sql.SQL("SELECT FROM {} t {} FOR UPDATE SKIP LOCKED").format(table, where), values)
    if not free.rowcount:
        return 0
    update = sql.SQL("UPDATE {} t SET {} = %(new)s {}").format(table, sql.Identifier(column.column), where)
    return connection.execute(update, values).rowcount


def count(column: Column, organization_id: UUID, only: str, **given: Any) -> int:
    """How many rows there are for which `only` holds (see `batches`)."""
    query = sql.SQL("SELECT count(*) FROM ({}) AS found").format(_select(column) + _only(column, only))
    with acting_as(column.reader, organization_id) as connection:
        connection.execute(_UNHURRIED)
        [(found,)] = connection.execute(query, {"organization": organization_id, **given})
    return int(found)


def key_text(column: Column, row: Row) -> str:
    """The row's key, for people."""
    return ", ".join(
        f"{name}={value.hex() if isinstance(value, bytes) else value}"
        for name, value in ((name, row[name]) for name in column.key)
        if name != "tableoid"
    )


def _read(
    connection: Connection[Any],
    column: Column,
    organization_id: UUID,
    last: Row | None,
    only: str | None,
    given: Mapping[str, Any],
) -> list[Row]:
    query = _select(column)
    values: dict[str, Any] = {"organization": organization_id, "batch": BATCH, **given}
    if only is not None:
        query += _only(column, only)
    order = sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(name)) for name in column.key)
    if last is not None:
        bound = sql.SQL(", ").join(sql.Placeholder(f"key_{name}") for name in column.key)
        query += sql.SQL(" AND ({}) > ({})").format(order, bound)
        values |= _key(column, last)
    query += sql.SQL(" ORDER BY {} LIMIT %(batch)s").format(order)
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(_UNHURRIED)
        cursor.execute(query, values)
        return list(cursor.fetchall())


def _only(column: Column, only: str) -> sql.Composable:
    return sql.SQL(cast("Any", f" AND ({only.replace('{c}', f't.{column.column}')})"))


def _same(column: Column) -> sql.Composable:
    return sql.SQL(" AND ").join(
        sql.SQL("t.{} = {}").format(sql.Identifier(name), sql.Placeholder(f"key_{name}")) for name in column.key
    )


def _key(column: Column, row: Row) -> dict[str, Any]:
    return {f"key_{name}": row[name] for name in column.key}


def _select(column: Column) -> sql.Composed:
    names = dict.fromkeys((*column.key, column.column))
    items: list[sql.Composable] = [sql.SQL("t.{}").format(sql.Identifier(name)) for name in names]
    items += [
        sql.SQL("t.{}").format(sql.Identifier(each)) if each.isidentifier() else sql.SQL(cast("Any", each))
        for each in column.more
    ]
    query = sql.SQL("SELECT {} FROM {} t WHERE t.organization_id = %(organization)s AND t.{} IS NOT NULL").format(
        sql.SQL(", ").join(items), sql.Identifier("bridge", column.table), sql.Identifier(column.column)
    )
    if isinstance(column, FingerprintColumn):
        query += sql.SQL(" AND ") + sql.SQL(cast("Any", column.keyed))
    return query
