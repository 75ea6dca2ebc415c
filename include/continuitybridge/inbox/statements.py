"""Statements as a generator gives them: each with its parameters, and it gets the rows back. What runs them, and
whether it waits in a thread or in an event loop, is the caller's; all of one generator belong into one
transaction."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any

import psycopg

Rows = list[tuple[Any, ...]]
Statements = Generator[tuple[str, Sequence[Any]], Rows, Any]


def run(connection: psycopg.Connection[Any], statements: Statements) -> Any:
    """Run them on this connection; gives what the generator gives."""
    try:
        statement, parameters = next(statements)
        while True:
            cursor = connection.execute(statement, parameters)
            statement, parameters = statements.send(cursor.fetchall() if cursor.description else [])
    except StopIteration as end:
        return end.value


def columns(rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """Rows as the arrays that `unnest` takes; there must be one row at least."""
    return [list(column) for column in zip(*rows, strict=True)]
