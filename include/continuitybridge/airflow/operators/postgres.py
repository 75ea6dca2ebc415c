"""Writing rows to PostgreSQL, with Airflow's connections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

if TYPE_CHECKING:
    from airflow.sdk import Context


class PostgresWriteOperator(BaseOperator):
    """Writes the input's rows into a table, in one transaction: all of them or none.

    :param input: one row or a list of rows, each an object (templated).
    :param table: the table, `name` or `schema.name`.
    :param columns: the columns to write, each from the row's key of that name; or column → key. What a row lacks
        is NULL; objects and lists are written as JSON.
    :param key_columns: the columns that tell rows apart (a unique constraint). With them, rows that are there
        already are updated, so that running the task again changes nothing; without them rows are only added, and
        a try whose commit was not heard of adds them twice.
    :param postgres_conn_id: Airflow connection of type Postgres.

    A server that does not answer may come back: `AirflowException`, and the task's `retries` apply. What
    PostgreSQL refuses (types, constraints, missing tables) stands: `AirflowFailException`. The result is the
    number of rows.
    """

    template_fields: Sequence[str] = ("input", "table", "postgres_conn_id")
    template_fields_renderers: ClassVar[dict[str, str]] = {"input": "json"}
    ui_color = "#fdf3e7"

    def __init__(
        self,
        *,
        input: Any,
        table: str,
        columns: Sequence[str] | Mapping[str, str],
        key_columns: Sequence[str] = (),
        postgres_conn_id: str = "postgres_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.input = input
        self.table = table
        self.columns = dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}
        self.key_columns = list(key_columns)
        self.postgres_conn_id = postgres_conn_id
        unknown = [name for name in self.key_columns if name not in self.columns]
        if not self.columns or unknown:
            raise ValueError(f"columns must name what is written, key_columns among them; missing: {unknown}")

    def execute(self, context: Context) -> int:
        """Write; returns the number of rows."""
        import psycopg
        from airflow.providers.postgres.hooks.postgres import PostgresHook

        rows = self._rows()
        if not rows:
            return 0
        try:
            with closing(PostgresHook(postgres_conn_id=self.postgres_conn_id).get_conn()) as connection:
                with connection.cursor() as cursor:
                    cursor.executemany(self._statement(), rows)
                connection.commit()
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise AirflowException(f"PostgreSQL did not take the rows: {_first_line(error)}") from error
        except psycopg.Error as error:
            raise AirflowFailException(f"PostgreSQL refused the rows: {_first_line(error)}") from error
        self.log.info("wrote %d rows to %s", len(rows), self.table)
        return len(rows)

    def _rows(self) -> list[tuple[Any, ...]]:
        given = self.input if isinstance(self.input, list | tuple) else [self.input]
        for row in given:
            if not isinstance(row, Mapping):
                raise AirflowFailException(f"a row is an object, found {type(row).__name__}")
        return [tuple(_value(row.get(key)) for key in self.columns.values()) for row in given]

    def _statement(self) -> Any:
        from psycopg.sql import SQL, Identifier

        names = [Identifier(name) for name in self.columns]
        statement = SQL("INSERT INTO {} ({}) VALUES ({})").format(
            Identifier(*self.table.split(".", 1)), SQL(", ").join(names), SQL(", ").join(SQL("%s") for _ in names)
        )
        if not self.key_columns:
            return statement
        changed = [name for name in self.columns if name not in self.key_columns]
        keys = SQL(", ").join(map(Identifier, self.key_columns))
        if not changed:
            return statement + SQL(" ON CONFLICT ({}) DO NOTHING").format(keys)
        updates = SQL(", ").join(SQL("{0} = excluded.{0}").format(Identifier(name)) for name in changed)
        return statement + SQL(" ON CONFLICT ({}) DO UPDATE SET {}").format(keys, updates)


def _value(value: Any) -> Any:
    from psycopg.types.json import Jsonb

    return Jsonb(value) if isinstance(value, dict | list) else value


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
